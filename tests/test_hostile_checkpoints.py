"""Checkpoints made to run code, to fill the memory or to mislead: every kind, by every command that reads one."""

import contextlib
import copy
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning import checkpoints, known, load, records
from diffusion_lightning.cli import main
from diffusion_lightning.commands import COMMANDS
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Cosine

from .conftest import small_config, tiny_unet

tried = pytest.mark.tried("Checkpoints")
Checkpoint = dict[str, Any]
Config = dict[str, Any]


class Hostile:
    """Runs code where it is unpickled carelessly."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return (Path.touch, (self.flag,))


def spec(path: str, **arguments: Any) -> Config:
    return {"class_path": path, "init_args": arguments}


def process(flag: Path) -> Config:
    """What would leave the flag if a file's words were instantiated."""
    return spec("subprocess.Popen", args=["touch", str(flag)])


def model(config: Config) -> Config:
    return config["model"]["init_args"]


def deep(levels: int) -> Config:
    return (
        spec("diffusion_lightning.schedules.ZeroTerminalSNR", schedule=deep(levels - 1)) if levels else spec("Cosine")
    )


# Each is given the configuration as data, and a flag that appears if code runs.
EDITS: dict[str, Callable[[Config, Path], Any]] = {
    "a process as the optimizer's process group":
        lambda c, flag: model(c)["optimizer"]["init_args"].update(process_group=process(flag)),
    "a process as a layer's device":
        lambda c, flag: model(c).update(network=spec("torch.nn.Conv2d", in_channels=1, out_channels=1, kernel_size=1,
                                                     device=process(flag))),
    "a process as a number of the schedule":
        lambda c, flag: model(c)["schedule"]["init_args"].update(s=process(flag)),
    "a process as the network":
        lambda c, flag: model(c).update(network=process(flag)),
    "a network in a file of the current folder":
        lambda c, flag: model(c).update(network=spec("evil.Network")),
    "a text in the place of a network":
        lambda c, flag: model(c).update(network="evil.Network"),
    "arguments beside the arguments":
        lambda c, flag: model(c)["network"].update(dict_kwargs={"hook": process(flag)}),
    "a function as the conditioner":
        lambda c, flag: model(c).update(conditioner=spec("functools.partial", func="os.system")),
    "a function as the learning rate's schedule":
        lambda c, flag: model(c).update(lr_scheduler=spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda="evil.call")),
    "a path through what a module imports":
        lambda c, flag: model(c).update(network=spec("diffusion_lightning.provenance.subprocess.Popen",
                                                     args=["touch", str(flag)])),
    "a model of another kind":
        lambda c, flag: c.update(model=process(flag)),
    "data in a file of the current folder":
        lambda c, flag: c.update(data=spec("evil.Data")),
    "a metric that is a process":
        lambda c, flag: c["trainer"]["callbacks"][2]["init_args"].update(metrics=[process(flag)]),
    "an extractor with weights of its own":
        lambda c, flag: c["trainer"]["callbacks"][2]["init_args"]["metrics"][0]["init_args"].update(
            extractor=spec("diffusion_lightning.metrics.InceptionV3", weights="weights.pth")),
    "an extractor of the hub":
        lambda c, flag: c["trainer"]["callbacks"][2]["init_args"]["metrics"][0]["init_args"].update(
            extractor=spec("diffusion_lightning.metrics.CLIP", model="someone/unknown")),
    "a set of the hub":
        lambda c, flag: c.update(data=spec("diffusion_lightning.data.HuggingFace", name="someone/unknown")),
    "a set to be downloaded into a folder of others":
        lambda c, flag: c.update(data=spec("diffusion_lightning.data.CIFAR10", root=str(flag.parent / "theirs"))),
    "a trainer that writes elsewhere, logs to others and has plugins":
        lambda c, flag: c["trainer"].update(
            default_root_dir=str(flag.parent / "theirs"), plugins=[process(flag)], profiler=process(flag),
            logger=spec("diffusion_lightning.loggers.WeightsAndBiases", save_dir=str(flag.parent / "theirs"),
                        offline=True),
            callbacks=[spec("evil.Callback"), process(flag)]),
    "a tree without end": lambda c, flag: model(c).update(schedule=deep(300)),
}  # fmt: skip
TEXTS: dict[str, Callable[[Config, Path], Any]] = {
    "a YAML tag that calls a function": lambda c, flag: f"model: !!python/object/apply:os.system ['touch {flag}']\n",
    "a YAML bomb of aliases": lambda c, flag: (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    ),
    "more text than a configuration has": lambda c, flag: json.dumps({**c, "more": "x" * 2_000_000}),
    "brackets without end": lambda c, flag: '{"model": ' + "[" * 400_000,
    "no text": lambda c, flag: [1, 2, 3],
}
FILES: dict[str, Callable[[Checkpoint, Path], Any]] = {
    "a pickled call in a callback's state": lambda c, flag: c["callbacks"].update(Other=Hostile(flag)),
    "a pickled call as a weight": lambda c, flag: c["state_dict"].update(extra=Hostile(flag)),
}
KINDS = [*EDITS, *TEXTS, *FILES]
# What is not looked at at all does no harm: the model, whose words are good, is read.
HARMLESS = {
    "a process as the optimizer's process group", "a function as the learning rate's schedule",
    "data in a file of the current folder", "a metric that is a process", "an extractor with weights of its own",
    "an extractor of the hub", "a set of the hub", "a set to be downloaded into a folder of others",
    "a trainer that writes elsewhere, logs to others and has plugins",
}  # fmt: skip


def evaluates(command: str) -> Callable[[str, Path], Any]:
    return lambda ckpt, at: main([
        command, "--ckpt_path", ckpt, "--trainer.default_root_dir", str(at / "out"), "--trainer.enable_progress_bar",
        "false", f"--trainer.limit_{'val' if command == 'validate' else 'test'}_batches", "1",
    ])  # fmt: skip


def fits(option: str) -> Callable[[str, Path], Any]:
    def fit(ckpt: str, at: Path) -> None:
        config = yaml.safe_load(small_config(at).read_text())
        for key in ("callbacks", "logger", "val_check_interval", "check_val_every_n_epoch"):
            del config["trainer"][key]
        config["trainer"].update(max_steps=7, logger=False, limit_val_batches=0, enable_model_summary=False)
        config["model"]["init_args"]["lr_scheduler"] = None
        (at / "fit.yaml").write_text(yaml.safe_dump(config))
        main(["fit", "--config", str(at / "fit.yaml"), option, ckpt])

    return fit


READERS: dict[str, Callable[[str, Path], Any]] = {
    "load": lambda ckpt, at: load(ckpt),
    "predict": lambda ckpt, at: main(["predict", "--ckpt_path", ckpt, "--n", "1", "--out", str(at / "out"),
                                      "--sampler", "DDIM", "--sampler.steps", "1"]),
    "validate": evaluates("validate"),
    "test": evaluates("test"),
    "export": lambda ckpt, at: main(["export", ckpt, str(at / "out")]),
    "import": lambda ckpt, at: main(["import", ckpt, str(at / "out.ckpt")]),
    "fit --init_from": fits("--init_from"),
    "fit --ckpt_path": fits("--ckpt_path"),
}  # fmt: skip
WITHOUT = {"score", "selftest", "cache"}  # commands that read no checkpoint


@pytest.fixture(scope="module")
def whole(run: Path) -> Checkpoint:
    """Of a finished run, with few evaluations in its configuration, since `validate` and `test` repeat them."""
    found = checkpoints.read(run / "checkpoints/last.ckpt")
    config = checkpoints.config(found, run)
    del config["trainer"]["callbacks"][3:]
    metrics = config["trainer"]["callbacks"][2]["init_args"]
    metrics.update(n=66, test_n=66, test_sampler=metrics["sampler"], metrics=metrics["metrics"][:1])
    return {**found, "config": records.text(config)}


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Would appear in the current folder, which holds a module that leaves it when it is imported."""
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "it ran"
    Path("evil.py").write_text(f"from pathlib import Path\nPath({str(found)!r}).touch()\n")
    torch.save({"weights": Hostile(found)}, "weights.pth")
    return found


def made(kind: str, checkpoint: Checkpoint, flag: Path) -> str:
    """The path of a hostile checkpoint of a kind."""
    found = {**checkpoint, "callbacks": dict(checkpoint["callbacks"]), "state_dict": dict(checkpoint["state_dict"])}
    config = checkpoints.config(checkpoint, "")
    if kind in EDITS:
        EDITS[kind](config, flag)
        found["config"] = json.dumps(config)
    elif kind in TEXTS:
        found["config"] = TEXTS[kind](config, flag)
    else:
        FILES[kind](found, flag)
    path = flag.with_name("hostile.ckpt")
    torch.save(found, path)
    return str(path)


# `fit` takes a second: of the kinds that it does not look at, one each here, and the others among the slow tests.
LOOKED_AT = [next(iter(EDITS)), next(iter(TEXTS)), *FILES]
CASES = [
    pytest.param(kind, reader, marks=[pytest.mark.slow] if reader.startswith("fit") and kind not in LOOKED_AT else [])
    for kind in KINDS
    for reader in READERS
]


@tried
@pytest.mark.parametrize(("kind", "reader"), CASES)
def test_a_hostile_checkpoint_runs_nothing(kind: str, reader: str, whole: Checkpoint, flag: Path) -> None:
    path = made(kind, whole, flag)
    # It is refused in one sentence, or what is hostile in it is left alone; any other error is a fault.
    with contextlib.suppress(ValueError, SystemExit):
        READERS[reader](path, flag.parent)
    assert not flag.exists()
    assert not (flag.parent / "theirs").exists()


@tried
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_checkpoint_is_refused_or_its_model_is_read(kind: str, whole: Checkpoint, flag: Path) -> None:
    path = made(kind, whole, flag)
    if kind in HARMLESS:
        name = "denoiser.network.time1.weight"
        assert torch.equal(load(path).state_dict()[name], average(whole)[name])
        return
    with pytest.raises(ValueError, match=r": .*(use|correct|trust|remove|give|name) "):
        load(path)


def average(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return checkpoint["callbacks"]["EMA"]["average"]


def test_every_command_that_reads_a_checkpoint_is_tried() -> None:
    assert {reader.partition(" ")[0] for reader in READERS} == {"load", *COMMANDS} - WITHOUT


@tried
def test_a_library_is_never_taken_from_the_current_folder(flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("no_such_library.py").write_text(Path("evil.py").read_text())
    monkeypatch.syspath_prepend(os.getcwd())
    with pytest.raises(ValueError, match="not installed"):
        known._installed("no_such_library", "model.network")
    assert not flag.exists()


@tried
def test_the_current_folder_is_searched_last(flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no file there passes for a library that is imported later."""
    monkeypatch.setattr(sys, "path", ["", os.getcwd(), *sys.path])
    main(["cache"])
    assert sys.path.index(os.getcwd()) == len(sys.path) - 1
    assert "" not in sys.path


@tried
@pytest.mark.parametrize("key", [*checkpoints.KINDS])
@pytest.mark.parametrize("reader", ["load", "fit --ckpt_path"])
def test_a_checkpoint_whose_parts_are_of_another_kind_is_refused(
    key: str, reader: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each a number below zero, a text in the place of a container, or a version that is none."""
    wrong = {int: -1, str: "not one"}.get(checkpoints.KINDS[key], "not one")
    torch.save({**whole, key: 7 if key == checkpoints.WANDB else wrong}, "odd.ckpt")
    if reader == "load":
        with pytest.raises(ValueError, match=rf"{key} in odd\.ckpt is .*: use another checkpoint"):
            load("odd.ckpt")
        return
    with pytest.raises(SystemExit):
        READERS[reader]("odd.ckpt", flag.parent)
    assert f"error: {key} in odd.ckpt is" in capsys.readouterr().err


# The user's word

OWN = """from torch import nn


class Net(nn.Conv2d):
    def __init__(self, width: int = 1) -> None:
        super().__init__(1, 1, 1)

    def forward(self, x_t, t, c=None):
        return super().forward(x_t)
"""


@tried
def test_a_class_of_ones_own_needs_the_users_word(
    whole: Checkpoint, flag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(os.getcwd())
    Path("my_net.py").write_text(OWN)
    config = checkpoints.config(whole, "")
    model(config).update(network=spec("my_net.Net"))
    weights = {"denoiser.network.weight": torch.ones(1, 1, 1, 1), "denoiser.network.bias": torch.zeros(1)}
    path = flag.with_name("own.ckpt")
    torch.save({"state_dict": weights, "config": json.dumps(config), "global_step": 1}, path)
    with pytest.raises(
        ValueError, match=r"my_net\.Net, which is code outside .* --trust my_net, or by trust=\['my_net'\]"
    ):
        load(path)
    with pytest.raises(ValueError, match="--trust my_net"):
        load(path, trust=["my", "my_net.Net", "my_ne"])  # the exact module alone
    assert type(load(path, trust=["my_net"]).denoiser.network).__name__ == "Net"
    main(["export", str(path), "out", "--format", "weights", "--trust", "my_net"])
    assert Path("out/model.safetensors").exists()


@tried
@pytest.mark.parametrize("value", ["someone/unknown", "weights.pth"], ids=["hub name", "file of weights"])
def test_what_lies_outside_of_the_run_needs_the_users_word(value: str, flag: Path) -> None:
    kind, key = ("CLIP", "model") if "/" in value else ("InceptionV3", "weights")
    described = spec(f"diffusion_lightning.metrics.{kind}", **{key: value})
    with pytest.raises(ValueError, match=rf"lies outside of the run: .* --trust {value}"):
        records.read(described, torch.nn.Module, "metric")
    records.read(described, torch.nn.Module, "metric", trust=[value])


# What earlier versions wrote


@tried
@pytest.mark.parametrize("form", ["YAML", "JSON"])
def test_earlier_checkpoints_load(form: str, whole: Checkpoint, tmp_path: Path) -> None:
    config = checkpoints.config(whole, "")
    model(config)["network"]["class_path"] = "diffusion_lightning.networks.unet.UNet"  # by the file it once lay in
    text = yaml.safe_dump(config) if form == "YAML" else json.dumps(config)
    torch.save({**whole, "config": text}, tmp_path / "older.ckpt")
    assert isinstance(load(tmp_path / "older.ckpt"), Diffusion)


@tried
@pytest.mark.parametrize("old", known.RENAMED)
def test_a_name_that_was_changed_is_still_known(old: str) -> None:
    assert known.find(f"diffusion_lightning.metrics.{old}", "x", ()).__name__ == known.RENAMED[old]


def test_new_checkpoints_carry_plain_json(whole: Checkpoint) -> None:
    assert json.loads(whole["config"])["model"]["class_path"] == "diffusion_lightning.modules.Diffusion"


# Sizes


SIZES: dict[str, Callable[[Config], Any]] = {
    "a network of 10¹⁵ weights": lambda c: model(c)["network"]["init_args"].update(channels=1_000_000),
    "a network of 10⁵ layers": lambda c: model(c)["network"]["init_args"].update(blocks=100_000),
    "a number of 300 digits": lambda c: model(c)["network"]["init_args"].update(channels=10**300),
    "10¹² times": lambda c: model(c)["schedule"]["init_args"].update(T=10**12),
    "an image of 10¹⁰ pixels": lambda c: model(c).update(shape=[1, 100_000, 100_000]),
    "10⁶ remembered losses a time": lambda c: model(c).update(
        timesteps=spec("diffusion_lightning.objectives.LossAware", history=1_000_000)),
    "a table of 10⁶ classes": lambda c: model(c).update(
        conditioner=spec("diffusion_lightning.conditioning.ClassLabels", classes=10**6, width=10**6)),
    "a table of 10⁸ positions": lambda c: model(c).update(
        network=spec("diffusion_lightning.networks.DiT", in_channels=1, size=10_000, patch=1, width=8, depth=1,
                     heads=1)),
}  # fmt: skip


@tried
@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_are_not_stored_are_refused_before_memory_is_taken(size: str, whole: Checkpoint) -> None:
    config = copy.deepcopy(checkpoints.config(whole, ""))
    SIZES[size](config)
    with pytest.raises(ValueError, match=r"belongs to another model|past|more parameters|no image|holds .* numbers"):
        checkpoints.restored(whole, config, "x.ckpt", ())


@tried
def test_a_packed_checkpoint_is_refused(tmp_path: Path) -> None:
    """Whose few bytes would become many."""
    torch.save({"state_dict": {"w": torch.zeros(100_000)}}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        checkpoints.read(tmp_path / "packed.ckpt")


@tried
def test_a_tensor_that_says_more_numbers_than_it_stores_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1).expand(10**12)}}, tmp_path / "wide.ckpt")
    with pytest.raises(ValueError, match="says 1,000,000,000,000 numbers and stores fewer"):
        checkpoints.read(tmp_path / "wide.ckpt")


# Damage


@tried
def test_a_flipped_bit_is_refused_wherever_it_lies(tmp_path: Path) -> None:
    path, damaged = tmp_path / "whole.ckpt", tmp_path / "damaged.ckpt"
    torch.save({"state_dict": {f"w{i}": torch.full((50,), 1.5) for i in range(3)}}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        entries = [e for e in file.infolist() if e.file_size]
    for entry in entries:
        stored = zipfile.ZipFile(path).read(entry)
        at = data.index(stored, entry.header_offset) + len(stored) // 2
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.read(damaged)
    assert len(entries) >= 5


@pytest.fixture(scope="module")
def small() -> tuple[Diffusion, Checkpoint]:
    module = Diffusion(tiny_unet(), Cosine(T=20), (1, 8, 8))
    average = {name: p.detach().clone() for name, p in module.named_parameters()}
    return module, {"state_dict": dict(module.state_dict()), "callbacks": {"EMA": {"average": average}}}


@tried
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["NaN", "infinite"])
@pytest.mark.parametrize("side", ["weights", "average"])
def test_weights_that_are_not_finite_are_refused(side: str, value: float, small: tuple[Diffusion, Checkpoint]) -> None:
    module, checkpoint = small
    damaged = copy.deepcopy(checkpoint)
    tensors = damaged["state_dict"] if side == "weights" else average(damaged)
    tensors["denoiser.network.time1.weight"].view(-1)[3] = value
    with pytest.raises(ValueError, match=r"time1\.weight that is not finite"):
        checkpoints.check_fits(module, damaged, "x.ckpt")


@tried
@pytest.mark.parametrize("fault", ["lacks one", "has one more", "has one of another shape"])
def test_an_average_that_is_not_of_all_weights_is_refused(fault: str, small: tuple[Diffusion, Checkpoint]) -> None:
    module, checkpoint = small
    damaged = copy.deepcopy(checkpoint)
    name = "denoiser.network.time1.weight"
    if fault == "has one more":
        average(damaged)["stray"] = torch.zeros(1)
    else:
        average(damaged)[name] = torch.zeros(1)
        if fault == "lacks one":
            del average(damaged)[name]
    with pytest.raises(ValueError, match=r"another model: its average of "):
        checkpoints.check_fits(module, damaged, "x.ckpt")
    checkpoints.check_fits(module, checkpoint, "x.ckpt")


@tried
@pytest.mark.parametrize("place", ["folder", "FIFO", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(place: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if place == "folder":
        path.mkdir()
    elif place == "FIFO":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(ValueError, match="is no file, but a checkpoint is one"):
        checkpoints.read(path)


# The builder


class Taker(UNet):
    def __init__(self, anything: Any = None, call: Callable[[], int] | None = None, **more: Any) -> None:
        super().__init__(**more)


@tried
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"anything": {"class_path": "subprocess.Popen"}}, "takes a plain value"),
        ({"anything": [{"class_path": "subprocess.Popen"}]}, "takes a plain value"),
        ({"call": "os.getpid"}, "takes .*Callable"),
        ({"call": {"class_path": "os.getpid"}}, "takes .*Callable"),
        ({"channels": True}, "takes int"),
        ({"channels": "8"}, "takes int"),
        ({"channels": 8.0}, "takes int"),
        ({"release": "IMDB"}, "takes Literal"),
        ({"attention": 16}, "Sequence"),
        ({"attention": [[16]]}, "takes int"),
        ({"chanels": 8}, r"takes no chanels \(did you mean channels\?\)"),
    ],
    ids=["class for anything", "classes for anything", "function", "function as a class", "bool for int",
         "text for int", "float for int", "word of a list", "number for a list", "list for a number", "misspelt key"],
)  # fmt: skip
def test_a_record_gives_plain_values_of_the_right_kind(arguments: Config, said: str) -> None:
    described = {"class_path": f"{__name__}.Taker", "init_args": arguments}
    with pytest.raises(ValueError, match=said):
        records.read(described, torch.nn.Module, "network", trust=[__name__])


def test_a_record_is_written_as_it_was_read() -> None:
    described = spec(
        "diffusion_lightning.modules.Diffusion", shape=[1, 8, 8], network=spec("UNet", size=8, in_channels=1),
        schedule=spec("ZeroTerminalSNR", schedule=spec("Cosine", T=7)),
    )  # fmt: skip
    written = records.read(described, Diffusion, "model").spec()
    assert written["init_args"]["network"]["init_args"]["size"] == 8
    assert written["init_args"]["network"]["init_args"]["channels"] == 128  # a default, spelled out
    assert records.read(written, Diffusion, "model").spec() == written
