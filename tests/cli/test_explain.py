"""Wrong configurations, of each kind and at each depth, by options and by files: one sentence that names the key."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from diffusion_lightning import records
from diffusion_lightning.cli import main
from diffusion_lightning.cli.explain import Fault, check, words
from diffusion_lightning.cli.given import options, tree

OWN = {
    "faulty.py": """
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()

    def forward(self, x, t, c=None):
        return x.nothing_of_this_name


class Refuses(nn.Module):
    def __init__(self, kind: str = "TypeError") -> None:
        super().__init__()
        raise getattr(__builtins__, kind, None) or __builtins__[kind]("what it says itself")
""",
    "lacks.py": "import os\nimport an_absent_module\n\n\nclass Thing: ...\n",
    "breaks.py": "raise RuntimeError('no licence')\n",
    "unfinished.py": "class Thing(\n",
}

CONFIG = """
model:
  class_path: Diffusion
  init_args:
    shape: [1, 8, 8]
    network: {class_path: UNet, init_args: {in_channels: 1, size: 8, channels: 8, groups: 4, attention: []}}
    schedule: {class_path: Cosine, init_args: {T: 10}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data: {class_path: Digits, init_args: {batch_size: 8}}
trainer:
  accelerator: cpu
  max_steps: 1
  logger: false
  default_root_dir: never
  callbacks:
    - {class_path: SampleGrid, init_args: {n: 4}}
    - {class_path: GenerativeMetrics, init_args: {n: 4, metrics: [{class_path: FrechetDistance, init_args: {extractor: {class_path: DigitsNet}}}]}}
    - {class_path: ReverseChain, init_args: {n: 4}}
"""  # noqa: E501

NETWORK, SCHEDULE = "model.init_args.network", "model.init_args.schedule"
GRID, METRICS, CHAIN = (f"trainer.callbacks.{number}.init_args" for number in range(3))

# The key, the wrong value, the key as the sentence names it, and what else it says.
BOTH = [
    # a value of another type
    ("trainer.max_steps", "many", "trainer.max_steps is many", "it takes int"),
    ("trainer.precision", "17", "trainer.precision is 17", "'bf16-mixed'"),
    ("ema.decay", "much", "ema.decay is much", "it takes float"),
    ("seed_everything", "luck", "seed_everything is luck", "int"),
    ("data.init_args.batch_size", "many", "data.batch_size is many", "it takes int"),
    (f"{NETWORK}.init_args.channels", "abc", "model.network.channels is abc", "it takes int"),
    (f"{NETWORK}.init_args.attention", ["a"], "model.network.attention is a", "it takes int"),
    (f"{NETWORK}.init_args.release", "EDM", "model.network.release is EDM", "'DDPM' or 'IDDPM'"),
    (f"{SCHEDULE}.init_args.T", 1.5, "model.schedule.T is 1.5", "it takes int"),
    ("model.init_args.optimizer.init_args.lr", "fast", "model.optimizer.lr is fast", "it takes float"),
    ("model.init_args.shape", 8, "model.shape is 8", "a list of int"),
    # a key that there is not
    ("trainer.max_stepz", 5, "trainer.max_stepz", "did you mean trainer.max_steps?"),
    ("optimiser", 5, "there is no option optimiser", "correct or remove it"),
    ("ema.decoy", 0.5, "ema.decoy", "did you mean ema.decay?"),
    ("model.init_args.netwrk", 5, "model is a Diffusion, which takes no netwrk", "did you mean network?"),
    (f"{NETWORK}.init_args.chanels", 8, "model.network is a UNet, which takes no chanels", "did you mean channels?"),
    ("model.init_args.optimizer.init_args.lrr", 1, "model.optimizer is an AdamW, which takes no lrr", "mean lr?"),
    ("data.init_args.bach_size", 8, "data is a Digits, which takes no bach_size", "did you mean batch_size?"),
    # a class of another kind, or that there is not
    (SCHEDULE, "DDIM", "model.schedule is DDIM", "it takes a Schedule, such as Betas, Cosine"),
    (SCHEDULE, "Cosinus", "there is no class Cosinus for model.schedule", "did you mean Cosine?"),
    ("model.init_args.weighting", "Simpler", "there is no class Simpler for model.weighting", "did you mean Simple?"),
    ("model", "NoSuchModel", "there is no class NoSuchModel for model", "my_package.my_file.MyClass"),
    ("model", "Cosine", "model is Cosine", "it takes a LightningModule, such as Autoencoder, Consistency, Diffusion"),
    ("model.init_args.optimizer", "torch.optim.Adamm", "torch.optim.Adamm for model.optimizer", "did you mean Adam?"),
    (NETWORK, "faulty.Nett", "there is no class faulty.Nett for model.network", "did you mean Net?"),
    (NETWORK, "nowhere.at.Net", "nowhere.at.Net for model.network", "there is no module nowhere"),
    (NETWORK, "lacks.Thing", "model.network is lacks.Thing",
     "No module named 'an_absent_module' ({here}/lacks.py, line 2)"),
    (NETWORK, "breaks.Thing", "model.network is breaks.Thing", "RuntimeError: no licence ({here}/breaks.py, line 1)"),
    (NETWORK, "unfinished.Thing", "model.network is unfinished.Thing", "SyntaxError: '(' was never closed ({here}/unf"),
    # arguments that are missing
    ("model.init_args.conditioner", "ClassLabels", "model.conditioner is a ClassLabels",
     "without classes (int), which it needs"),
    ("trainer.logger", "nowhere.Logger", "nowhere.Logger for trainer.logger", "there is no module nowhere"),
]  # fmt: skip

OPTIONS = [
    (["--grid.n=many"], "grid.n is many", "it takes int"),
    (["--loss_by_timestep.bands=3"], "loss_by_timestep is a LossByTimestep, which takes no bands", "it takes bins"),
    (["--chain.sampler=Cosine"], "chain.sampler is Cosine", "it takes a Sampler, such as Ancestral"),
    (["--metrics.n=3"], "metrics is a GenerativeMetrics without metrics", "give metrics.metrics"),
    (["--trainer.logger=TensorBoardLogger"], "trainer.logger is a TensorBoardLogger", "without save_dir (str or Path)"),
    (["--trainer.callbacks+=my.Thing"], "my.Thing for trainer.callbacks[3]", "there is no module my"),
    (["--trainer.callbacks+=breaks.Thing"], "trainer.callbacks[3] is breaks.Thing", "RuntimeError: no licence"),
    (["--trainer.callbacks+=SampleGrid", "--trainer.callbacks.m=3"], "trainer.callbacks[3] is a SampleGrid",
     "takes no m: it takes n, sampler, seed"),
    (["--trainer.callbacks.n=few"], "trainer.callbacks[2].n is few", "it takes int"),
    (["--model.init_args.network.faulty"], "faulty", "takes no faulty"),
    (["--checkpoint.monitor"], "--checkpoint.monitor", "expected one argument"),
    (["--model.network", "faulty.Net", "--model.network.width", "wide"], "model.network.width is wide", "takes int"),
    (["--model.conditioner", "ClassLabels", "--model.conditioner.dropout=0.5"], "model.conditioner is a ClassLabels",
     "without classes (int)"),
    (["--config", "nowhere.yaml"], "nowhere.yaml", "does not exist"),
]  # fmt: skip

FILES = [
    ("grid", {"n": "many"}, "grid.n is many", "it takes int"),
    ("grid", {"m": 3}, "grid is a SampleGrid, which takes no m", "it takes n, sampler, seed"),
    ("chain", {"sampler": {"class_path": "DDIM", "init_args": {"stepz": 3}}}, "chain.sampler is a DDIM, which takes no",
     "did you mean steps?"),
    (f"{GRID}.n", "few", "trainer.callbacks[0].n is few", "it takes int"),
    (f"{CHAIN}.frame", 3, "trainer.callbacks[2] is a ReverseChain, which takes no frame", "did you mean frames?"),
    (f"{GRID}.sampler", {"class_path": "Cosine"}, "trainer.callbacks[0].sampler is Cosine", "it takes a Sampler"),
    (f"{GRID}.sampler", {"class_path": "DDIM", "init_args": {"steps": "all"}}, "callbacks[0].sampler.steps is all",
     "int"),
    (f"{METRICS}.metrics.0.init_args.extractor", {"class_path": "InceptionV3", "init_args": {"wights": "x"}},
     "trainer.callbacks[1].metrics[0].extractor is an InceptionV3, which takes no wights", "did you mean weights?"),
    (f"{METRICS}.metrics.0.init_args.extractor.class_path", "DDIM", "callbacks[1].metrics[0].extractor is DDIM",
     "it takes a"),
    (SCHEDULE, {"init_args": {"T": 5}}, "model.schedule.T is given", "model.schedule has no class"),
    (NETWORK, 5, "model.network is 5", "it takes Module"),
]  # fmt: skip

MADE = [
    (["faulty.Refuses"], "model.network is faulty.Refuses",
     "TypeError: what it says itself ({here}/faulty.py, line 16)"),
    (["faulty.Refuses", "--model.network.kind=ValueError"], "model.network is faulty.Refuses",
     "ValueError: what it says"),
    (["faulty.Refuses", "--model.network.kind=KeyError"], "model.network is faulty.Refuses", "KeyError: 'what it says"),
    (["faulty.Net"], "model.network is faulty.Net", "'nothing_of_this_name' ({here}/faulty.py, line 10)"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and files of the user's own."""
    for name, text in {**OWN, "good.yaml": CONFIG}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in OWN:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], words: list[str], names: str, says: str) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    path = str(Path.cwd())
    assert len(said.replace(path, "")) <= 400
    assert not any(word in said for word in ("Namespace(", "NestedArg(", "Traceback"))
    assert names in said
    assert says.format(here=path) in said
    assert not Path("never").exists()


def with_value(key: str, value: Any) -> str:
    config: Any = yaml.safe_load(CONFIG)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    at = config
    for part in parents:
        at = at[part] if isinstance(part, int) else at.setdefault(part, {})
    at[last] = value
    return yaml.safe_dump(config)


@pytest.mark.parametrize(("key", "value", "names", "says"), BOTH, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("by", [pytest.param("file", marks=pytest.mark.slow), "option"])
def test_a_wrong_value_by_a_file_and_by_an_option(
    here: Path, capsys: pytest.CaptureFixture[str], by: str, key: str, value: Any, names: str, says: str
) -> None:
    if by == "option":
        refused(capsys, ["fit", "--config", "good.yaml", f"--{key}", str(value)], names, says)
        return
    (here / "wrong.yaml").write_text(with_value(key, value), encoding="utf-8")
    refused(capsys, ["fit", "--config", "wrong.yaml"], names, says)


@pytest.mark.parametrize(("words", "names", "says"), OPTIONS, ids=lambda x: str(x)[:40])
def test_a_wrong_option(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: str, says: str
) -> None:
    refused(capsys, ["fit", "--config", "good.yaml", *words], names, says)


@pytest.mark.parametrize(("key", "value", "names", "says"), FILES, ids=lambda x: str(x)[:40])
def test_a_wrong_value_deep_in_a_file(
    here: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, names: str, says: str
) -> None:
    (here / "wrong.yaml").write_text(with_value(key, value), encoding="utf-8")
    refused(capsys, ["fit", "--config", "wrong.yaml"], names, says)


@pytest.mark.parametrize(("words", "names", "says"), MADE, ids=lambda x: str(x)[:40])
def test_what_ones_own_class_raises(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: str, says: str
) -> None:
    refused(capsys, ["fit", "--config", "good.yaml", "--model.init_args.network", *words], names, says)


@pytest.mark.parametrize(
    ("words", "names", "says"),
    [
        (["predict", "--out", "x"], "ckpt_path", "required"),
        (["predict", "--ckpt_path", "a", "--out", "x", "--n", "many"], "n is many", "it takes int"),
        (["predict", "--ckpt_path", "a", "--out", "x", "--sampler", "Cosine"], "sampler is Cosine",
         "a Sampler, such as"),
        (["predict", "--ckpt_path", "a", "--out", "x", "--sampler", "DDIM", "--sampler.stepz", "3"],
         "sampler is a DDIM, which takes no stepz", "did you mean steps?"),
        (["predict", "--ckpt_path", "a", "--out", "x", "--sampler.steps", "3"],
         "sampler.steps is given", "such as Ancestral"),
        (["validate", "--ckpt_path", "a", "--trainer.callbacks+=my.Thing"], "my.Thing for trainer.callbacks[0]",
         "there is no module my"),
        (["fit", "--model.network.channels", "8"], "model.network is given", "give model a class_path"),
        (["fit", "--config"], "--config", "expected one argument"),
    ],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_the_other_commands(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: str, says: str
) -> None:
    refused(capsys, words, names, says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("faulty.Net", "trust its module by --trust faulty"),
        ("lacks.Thing", "cannot be imported (ModuleNotFoundError: No module named 'an_absent_module' ({here}/lacks.py"),
        ("breaks.Thing", "cannot be imported (RuntimeError: no licence ({here}/breaks.py, line 1)): correct that file"),
        ("nowhere.Net", "run the command in the folder that holds it ({here} was searched), or install it"),
        ("faulty.Nett", "has no attribute 'Nett'"),
        ("faulty.Refuses", "faulty.Refuses raised TypeError: what it says itself ({here}/faulty.py, line 16)"),
    ],
)
def test_ones_own_network_of_a_checkpoint(here: Path, name: str, says: str) -> None:
    trust = [] if "--trust" in says else [name.partition(".")[0]]
    with pytest.raises(ValueError, match=re.escape(says.format(here=here))):
        records.read({"class_path": name, "init_args": {}}, nn.Module, "model.network", trust).make()


def test_an_option_beats_a_file_that_is_named_after_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.network.channels", "12", "--config", "good.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]["channels"] == 12


def test_options_and_their_values() -> None:
    assert options(["--a", "1", "--b.c=x", "--d", "u", "v", "--e", "--f", "-1"]) == [
        ("a", 1), ("b.c", "x"), ("d", ["u", "v"]), ("e", None), ("f", -1)
    ]  # fmt: skip


def test_the_configuration_of_files_and_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("m: {class_path: A, init_args: {x: 1, y: 2}}\nlist: [B]\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("m: {init_args: {y: 3}}\n", encoding="utf-8")
    given = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert tree([*given, "--m.z", "4", "--list+=C", "--list.k=5"], {}) == {
        "m": {"class_path": "A", "init_args": {"x": 1, "y": 3, "z": 4}},
        "list": ["B", {"class_path": "C", "init_args": {"k": 5}}],
    }
    assert tree([*given, "--m", "D"], {})["m"] == {"class_path": "D", "kept": {"x": 1, "y": 3}}


def test_types_in_words() -> None:
    assert words(int | None) == "int or null"
    assert words(list[str] | bool) == "a list of str or bool"
    with pytest.raises(Fault, match=r"there is no option a\.c"):
        check({"a": {"c": 1}}, {"a.b": int})
    check({"a": {"b": 1}}, {"a.b": int})
