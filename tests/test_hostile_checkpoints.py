"""Checkpoints made to run code, to fill the memory or to mislead: every kind, by every command that reads one."""

import copy
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning import checkpoints, known, load, loading, records
from diffusion_lightning.app.commands import Places
from diffusion_lightning.app.work import Studio
from diffusion_lightning.callbacks.power_ema import LENGTHS
from diffusion_lightning.cli import main
from diffusion_lightning.cli.commands import COMMANDS
from diffusion_lightning.cli.errors import raised_in
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Cosine

from .conftest import UNWATCHED, small_config, tiny_unet

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


def opened(flag: Path) -> Config:
    """What would leave the flag as soon as a file's words were instantiated."""
    return spec("io.FileIO", file=str(flag), mode="w")


def model(config: Config) -> Config:
    return config["model"]["init_args"]


def deep(levels: int) -> Config:
    return (
        spec("diffusion_lightning.schedules.ZeroTerminalSNR", schedule=deep(levels - 1)) if levels else spec("Cosine")
    )


# Each is given the configuration as data, and a flag that appears if code runs.
EDITS: dict[str, Callable[[Config, Path], Any]] = {
    "a file that is opened as the optimizer's process group":
        lambda c, flag: model(c)["optimizer"]["init_args"].update(process_group=opened(flag)),
    "a file that is opened as a layer's device":
        lambda c, flag: model(c).update(network=spec("torch.nn.Conv2d", in_channels=1, out_channels=1, kernel_size=1,
                                                     device=opened(flag))),
    "a file that is opened as a number of the schedule":
        lambda c, flag: model(c)["schedule"]["init_args"].update(s=opened(flag)),
    "a file that is opened as the network":
        lambda c, flag: model(c).update(network=opened(flag)),
    "a network in a file of the current folder":
        lambda c, flag: model(c).update(network=spec("evil.Network")),
    "a text in the place of a network":
        lambda c, flag: model(c).update(network="evil.Network"),
    "arguments beside the arguments":
        lambda c, flag: model(c)["network"].update(dict_kwargs={"hook": opened(flag)}),
    "a function as the conditioner":
        lambda c, flag: model(c).update(conditioner=spec("functools.partial", func="os.system")),
    "a function as the learning rate's schedule":
        lambda c, flag: model(c).update(lr_scheduler=spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda="evil.call")),
    "a path through what a module imports":
        lambda c, flag: model(c).update(network=spec("diffusion_lightning.cli.output.io.FileIO", file=str(flag),
                                                     mode="w")),
    "a model of another kind":
        lambda c, flag: c.update(model=opened(flag)),
    "data in a file of the current folder":
        lambda c, flag: c.update(data=spec("evil.Data")),
    "a metric that opens a file":
        lambda c, flag: c["metrics"]["init_args"].update(metrics=[opened(flag)]),
    "an extractor with weights of its own":
        lambda c, flag: c["metrics"]["init_args"]["metrics"][0]["init_args"].update(
            extractor=spec("diffusion_lightning.extractors.InceptionV3", weights="weights.pth")),
    "a guide that lies elsewhere":
        lambda c, flag: c["metrics"]["init_args"].update(
            guidance=spec("diffusion_lightning.guidance.AutoGuidance", guide="guide.ckpt", scale=2.0)),
    "an extractor of the hub":
        lambda c, flag: c["metrics"]["init_args"]["metrics"][0]["init_args"].update(
            extractor=spec("diffusion_lightning.extractors.CLIP", model="someone/unknown")),
    "a set of the hub":
        lambda c, flag: c.update(data=spec("diffusion_lightning.data.HuggingFace", name="someone/unknown")),
    "a set to be downloaded into a folder of others":
        lambda c, flag: c.update(data=spec("diffusion_lightning.data.CIFAR10", root=str(flag.parent / "theirs"))),
    "a trainer that writes elsewhere, logs to others and has plugins":
        lambda c, flag: c["trainer"].update(
            default_root_dir=str(flag.parent / "theirs"), plugins=[opened(flag)], profiler=opened(flag),
            logger=spec("diffusion_lightning.loggers.WeightsAndBiases", save_dir=str(flag.parent / "theirs"),
                        offline=True),
            callbacks=[spec("evil.Callback"), opened(flag)]),
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
# What is not looked at does no harm: the model, whose words are good, is read.
HARMLESS = [
    "a file that is opened as the optimizer's process group", "a function as the learning rate's schedule",
    "data in a file of the current folder", "a metric that opens a file", "an extractor with weights of its own",
    "a guide that lies elsewhere", "an extractor of the hub", "a set of the hub",
    "a set to be downloaded into a folder of others", "a trainer that writes elsewhere, logs to others and has plugins",
]  # fmt: skip
# Except where data or metrics are what a command is for.
EVALUATED = (
    "data in a file of the current folder", "a metric that opens a file", "an extractor with weights of its own",
    "a guide that lies elsewhere", "an extractor of the hub", "a set of the hub",
    "a set to be downloaded into a folder of others",
)  # fmt: skip
LOOKS = dict.fromkeys(EVALUATED, ("validate", "test", "average --sweep"))


def evaluates(command: str) -> Callable[[str, Path], Any]:
    return lambda ckpt, at: main([
        command, "--ckpt_path", ckpt, "--trainer.default_root_dir", str(at / "out"), "--trainer.enable_progress_bar",
        "false", f"--trainer.limit_{'val' if command == 'validate' else 'test'}_batches", "1",
    ])  # fmt: skip


def fits(option: str, scheduled: bool = False) -> Callable[[str, Path], Any]:
    """`fit` for a seventh step; `scheduled` by the rate of a run of seven, else by one rate alone."""

    def fit(ckpt: str, at: Path) -> None:
        config = yaml.safe_load(small_config(at).read_text())
        config.update(UNWATCHED)
        for key in ("callbacks", "val_check_interval", "check_val_every_n_epoch"):
            del config["trainer"][key]
        config["trainer"].update(max_steps=7, logger=False, limit_val_batches=0, enable_model_summary=False)
        if scheduled:
            model(config)["lr_scheduler"]["init_args"]["total_steps"] = 7
        else:
            model(config)["lr_scheduler"] = None
        (at / "fit.yaml").write_text(yaml.safe_dump(config))
        main(["fit", "--config", str(at / "fit.yaml"), option, ckpt])

    return fit


def sweeps(ckpt: str, at: Path, **more: Any) -> None:
    """`average` of a run with this last checkpoint, whose one snapshot holds a bias of it, and more."""
    for place in ("checkpoints", "averages"):
        (at / "swept" / place).mkdir(parents=True)
    shutil.copy(ckpt, at / "swept/checkpoints/last.ckpt")
    biases = {f"{track}.denoiser.network.conv_out.bias": torch.zeros(1).half() for track in (0, 1)}
    torch.save(
        {"state_dict": biases, "global_step": 6, LENGTHS: [0.05, 0.1], **more}, at / "swept/averages/step=6.ckpt"
    )
    main(["average", str(at / "swept"), "--sweep", "--lengths", "0.05"])


READERS: dict[str, Callable[[str, Path], Any]] = {
    "load": lambda ckpt, at: load(ckpt),
    "predict": lambda ckpt, at: main(["predict", "--ckpt_path", ckpt, "--n", "1", "--out", str(at / "out"),
                                      "--sampler", "DDIM", "--sampler.steps", "1"]),
    "edit": lambda ckpt, at: main(["edit", "film", "--ckpt_path", ckpt, "--n", "1", "--frames", "2", "--out",
                                   str(at / "out.webp"), "--sampler", "DDIM", "--sampler.steps", "2"]),
    "app": lambda ckpt, at: Studio([ckpt], Places(torch.device("cpu")), at / "page"),
    "validate": evaluates("validate"),
    "test": evaluates("test"),
    "export": lambda ckpt, at: main(["export", ckpt, str(at / "exported")]),
    "import": lambda ckpt, at: main(["import", ckpt, str(at / "out.ckpt")]),
    "average --sweep": sweeps,
    "fit --init_from": fits("--init_from"),
    "fit --ckpt_path": fits("--ckpt_path"),
}  # fmt: skip
WITHOUT = {"score", "selftest", "cache", "recipes", "report", "runs"}  # commands that read no checkpoint


@pytest.fixture(scope="module")
def whole(run: Path) -> Checkpoint:
    """Of a finished run, with few evaluations in its configuration, since `validate` and `test` repeat them."""
    found = checkpoints.read(run / "checkpoints/last.ckpt")
    config = checkpoints.config(found, run)
    config["chain"] = None
    metrics = config["metrics"]["init_args"]
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


def answer(reader: Callable[[str, Path], Any], path: str, at: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a reader says of a checkpoint that it refuses, in one sentence of this package; empty if it reads it."""
    stopped: BaseException | None = None
    try:
        reader(path, at)
    except (ValueError, SystemExit) as error:
        stopped = error
    if isinstance(stopped, ValueError):
        assert raised_in(stopped) == "diffusion_lightning"
        return str(stopped)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if stopped is None:
        return ""
    assert stopped.code == 1  # type: ignore[attr-defined]
    assert said.splitlines()[-1].startswith("error: ")
    return said.splitlines()[-1].removeprefix("error: ")


# What a refusal is about; `fit --ckpt_path` compares configurations and sees another model or other data.
SAYS = {
    "a file that is opened as a layer's device": "network.device is .* takes a plain value",
    "a file that is opened as a number of the schedule": "schedule.s is .* takes float",
    "a file that is opened as the network": "network is io.FileIO, which is code outside",
    "a network in a file of the current folder": "network is evil.Network, which is code outside",
    "a text in the place of a network": "network is 'evil.Network', but it takes a Module",
    "arguments beside the arguments": "network has the key dict_kwargs",
    "a function as the conditioner": "conditioner is functools.partial, which is code outside",
    "a path through what a module imports": "this version has no such class",
    "a model of another kind": "model is io.FileIO, which is code outside",
    "data in a file of the current folder": "data is evil.Data, which is code outside",
    "a metric that opens a file": r"metrics\[0\] is io.FileIO, which is code outside",
    "an extractor with weights of its own": "weights is weights.pth, which .* lies outside of the run",
    "a guide that lies elsewhere": "guide is guide.ckpt, which .* lies outside of the run",
    "an extractor of the hub": "model is someone/unknown, which .* lies outside of the run",
    "a set of the hub": "name is someone/unknown, which .* lies outside of the run",
    "a set to be downloaded into a folder of others": "CIFAR10 is not whole",
    "a tree without end": "no tree of at most",
    "a YAML tag that calls a function": "no plain data",
    "a YAML bomb of aliases": "it has an alias",
    "more text than a configuration has": r"is [\d,]+ characters, but",
    "brackets without end": "damaged or no plain data",
    "no text": "is a list, but it is a text",
    "a pickled call in a callback's state": "could run code|more than weights",
    "a pickled call as a weight": "could run code|more than weights",
}
OTHER = {
    "fit --ckpt_path": "the configuration changes what the checkpoint",
    "import": "which no network of diffusers",  # it takes the weights of others, and a checkpoint of ours is none
}


def check_answer(said: str, kind: str, reader: str, flag: Path) -> None:
    assert not said or re.search("|".join(filter(None, (SAYS.get(kind), OTHER.get(reader)))) or "refused", said)
    assert not flag.exists()
    assert not (flag.parent / "theirs").exists()


FITS = [reader for reader in READERS if reader.startswith("fit")]
# `fit` takes a second: of the kinds that it does not look at, one each here, and the others among the slow tests.
LOOKED_AT = [next(iter(EDITS)), next(iter(TEXTS)), *FILES]


# A command that leaves a kind alone goes on to its end: of the kinds that only some commands look at, two here.
AT_LENGTH = [kind for kind in HARMLESS[1:] if kind not in EVALUATED[:2]]


@tried
@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in AT_LENGTH else []) for k in KINDS])
@pytest.mark.parametrize("reader", [reader for reader in READERS if reader not in FITS])
def test_a_hostile_checkpoint_runs_nothing(
    kind: str, reader: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused in one sentence, or what is hostile in it is left alone."""
    said = answer(READERS[reader], made(kind, whole, flag), flag.parent, capsys)
    assert bool(said) == (kind not in HARMLESS or reader == "import" or reader in LOOKS.get(kind, ()))
    check_answer(said, kind, reader, flag)


@tried
@pytest.mark.parametrize("where", ["state_dict", "lengths", "beside"])
def test_a_hostile_snapshot_runs_nothing(
    where: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(whole, "whole.ckpt")
    bad = {"state_dict": {"0.x": Hostile(flag)}, "lengths": [0.05, Hostile(flag)], "beside": Hostile(flag)}[where]
    name = LENGTHS if where == "lengths" else where
    said = answer(lambda ckpt, at: sweeps(ckpt, at, **{name: bad}), "whole.ckpt", flag.parent, capsys)
    assert "averages/step=6.ckpt holds more than tensors and plain values" in said
    assert not flag.exists()


@tried
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in LOOKED_AT else pytest.mark.slow) for k in KINDS])
@pytest.mark.parametrize("reader", FITS)
def test_training_from_a_hostile_checkpoint_runs_nothing(
    kind: str, reader: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = answer(READERS[reader], made(kind, whole, flag), flag.parent, capsys)
    assert said or reader == "fit --init_from" or kind in HARMLESS or kind == "arguments beside the arguments"
    check_answer(said, kind, reader, flag)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_a_checkpoint_that_is_whole(
    reader: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the refusals above are of what is hostile."""
    torch.save(whole, "whole.ckpt")
    said = answer(READERS[reader], "whole.ckpt", flag.parent, capsys)
    assert OTHER["import"] in said if reader == "import" else not said


@tried
@pytest.mark.parametrize("kind", HARMLESS)
def test_the_model_of_a_checkpoint_is_read_though_other_words_in_it_are_hostile(
    kind: str, whole: Checkpoint, flag: Path
) -> None:
    name = "denoiser.network.time_mlp1.weight"
    assert torch.equal(load(made(kind, whole, flag)).state_dict()[name], average(whole)[name])


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
def test_a_file_here_with_the_name_of_a_library_is_named_in_the_refusal(
    flag: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless PYTHONPATH names this folder, which is then searched where it stands."""
    # In an environment that lies in this folder, as .venv does.
    installed = Path(".venv/site-packages/hidden_by_a_library")
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(installed.parent.absolute()))
    Path("hidden_by_a_library.py").write_text("class Net: ...")
    Path("hidden_by_none.py").write_text("class Net: ...")
    words = ["fit", "--config", str(small_config(flag.parent)), "--model.network"]
    for name, hidden in (("hidden_by_a_library.Net", True), ("hidden_by_none.Other", False)):
        with pytest.raises(SystemExit):
            main([*words, name])
        said = capsys.readouterr().err
        assert f"there is no class {name} for model" in said
        assert (f"an installed package is named {name[:-4]} too (" in said) == hidden
        assert ("so rename yours, name its folder by PYTHONPATH, or correct its class_path" in said) == hidden
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setattr(sys, "path", [os.getcwd(), *sys.path])
    main(["cache"])
    assert sys.path[0] == os.getcwd()


@tried
@pytest.mark.parametrize("key", [*checkpoints.KINDS])
@pytest.mark.parametrize("reader", ["load", pytest.param("fit --ckpt_path", marks=pytest.mark.slow)])
def test_a_checkpoint_whose_parts_are_of_another_kind_is_refused(
    key: str, reader: str, whole: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each a number below zero, a text in the place of a container, a number in that of a text."""
    wrong: dict[type, Any] = {int: -1, str: 7}
    torch.save({**whole, key: wrong.get(checkpoints.KINDS[key], "not one")}, "odd.ckpt")
    if reader == "load":
        with pytest.raises(ValueError, match=rf"{key} in odd\.ckpt is .*: use another checkpoint"):
            load("odd.ckpt")
        return
    with pytest.raises(SystemExit):
        READERS[reader]("odd.ckpt", flag.parent)
    assert f"error: {key} in odd.ckpt is" in capsys.readouterr().err


# Parts of a checkpoint that are of another kind than Lightning and this package write


WEIGHT = "denoiser.network.time_mlp1.weight"
OPTIMIZED = "epoch_loop.automatic_optimization.optim_progress"
STEPS = ("loops", "fit_loop", OPTIMIZED, "optimizer", "step", "total", "ready")
AVERAGE = ("callbacks", "EMA", "average", WEIGHT)
COMPENSATION = ("callbacks", "EMA", "compensation", WEIGHT)
PARTS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a weight that is a number": (("state_dict", WEIGHT), 3, "is no tensor"),
    "a weight that is a dict": (("state_dict", WEIGHT), {"a": 1}, "is no tensor"),
    "a weight without a name": (("state_dict", 5), torch.zeros(1), "has the name 5, which is no text"),
    "a sparse weight": (("state_dict", WEIGHT), torch.eye(8).to_sparse(), "is no tensor"),
    "an average of texts": (AVERAGE, "x", "is no tensor"),
    "a compensation of texts": (COMPENSATION, "x", "is no tensor"),
    "an average without weights": (("callbacks", "EMA", "average"), [1], "the average in .* is"),
    "an average that is a text": (("callbacks", "EMA"), "x", "the average in .* is x"),
    "callbacks in a list": (("callbacks",), [1], "callbacks in .* is .*dict"),
    "a step that is true": (("global_step",), True, "global_step in .* is True"),
    "a step of 30 digits": (("global_step",), 10**30, "global_step in .* whole number up to"),
    "a step that is nothing": (("global_step",), None, "global_step in .* is None"),
    "a run's name that leads elsewhere": (("wandb_id",), "../../x", "names no run"),
    "a run's name that is the folder above": (("wandb_id",), "..", "names no run"),
    "a run's name with a terminal's orders": (("wandb_id",), "\x1b]0;x\x07", "names no run"),
    "a frozen part's hash that leads elsewhere": (("frozen",), {"conditioner": "../../x"}, "holds what is no hash"),
    "a frozen part's hash that is a number": (("frozen",), {"conditioner": 7}, "holds what is no hash"),
    "loops that are nothing": (("loops",), None, "loops in .* is None"),
    "a loop that is a text": (("loops", "fit_loop"), "x", "fit_loop in .* is x, but it is a dict"),
    "a number of steps that is a dict": (STEPS, {}, "ready in .* whole number"),
    "a number of steps below zero": (STEPS, -1, "ready in .* is -1"),
    "a number of steps that is infinite": (STEPS, float("inf"), "ready in .* is inf"),
    "a loader's state that is a number": (("loops", "fit_loop", "state_dict", "combined_loader"), 1.5, "it is a list"),
}  # fmt: skip
# What only the trainer that goes on knows.
OF_TRAINING: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a loop without its counts": (("loops", "fit_loop", "epoch_loop.batch_progress"), {},
                                  "no state of a training .*KeyError"),
    "an average's updates in words": (("callbacks", "EMA", "updates"), "often", "had often updates"),
    "a best value that is a list": (("callbacks", "Checkpoint", "best"), [], "no state of a training .*TypeError"),
    "another callback's state": (("callbacks", "Checkpoint"), "x", "no state of a training"),
    "an average of another shape": (AVERAGE, torch.zeros(3), r"average of .* is \[3\]"),
    "a compensation of another shape": (COMPENSATION, torch.zeros(3),
                                        r"compensation of .* is \[3\]"),
    "a complex weight": (("state_dict", WEIGHT), torch.zeros(32, 8, dtype=torch.complex64), "in torch.complex64, but"),
    "an average in whole numbers": (AVERAGE, torch.zeros(32, 8, dtype=torch.int8),
                                    "in torch.int8, but"),
    "an optimizer's mean of another shape": (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(3),
                                             "the optimizer is"),
    "an optimizer's groups in words": (("optimizer_states", 0, "param_groups"), "x", "no state of a training"),
    "no optimizer": (("optimizer_states",), [], "no state of an optimizer"),
    "no schedule": (("lr_schedulers",), [], "no place in the learning rate"),
    "a schedule's step in words": (("lr_schedulers", 0, "last_epoch"), "x", "lr_schedulers.0.last_epoch in .* is x"),
    "a schedule of words": (("lr_schedulers", 0), "x", "lr_schedulers.0 in .* is x"),
}  # fmt: skip


def changed(checkpoint: Checkpoint, place: tuple[Any, ...], value: Any) -> Checkpoint:
    found: Any = copy.deepcopy(checkpoint)
    at = found
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return found


@tried
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_whose_parts_are_no_plain_state_is_refused(part: str, whole: Checkpoint, flag: Path) -> None:
    key, value, says = PARTS[part]
    torch.save(changed(whole, key, value), "odd.ckpt")
    with pytest.raises(ValueError, match=rf"{says}.*: use another checkpoint$"):
        checkpoints.read("odd.ckpt")


@pytest.fixture(scope="module")
def scheduled(whole: Checkpoint) -> Checkpoint:
    """Of a run of seven steps that was stopped at the sixth."""
    found, config = copy.deepcopy(whole), checkpoints.config(whole, "")
    model(config)["lr_scheduler"]["init_args"]["total_steps"] = found["lr_schedulers"][0]["total_steps"] = 7
    return {**found, "config": records.text(config)}


def test_a_training_goes_on_from_a_state_that_is_whole(
    scheduled: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(scheduled, "whole.ckpt")
    assert not answer(fits("--ckpt_path", scheduled=True), "whole.ckpt", flag.parent, capsys)
    last = checkpoints.read(flag.parent / "run/checkpoints/last.ckpt")
    assert last["lr_schedulers"][0]["last_epoch"] == last["global_step"] == 7


@tried
@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=pytest.mark.slow if i % 3 else []) for i, p in enumerate(OF_TRAINING)]
)
def test_a_training_does_not_go_on_from_a_state_that_is_none(
    part: str, scheduled: Checkpoint, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, value, says = OF_TRAINING[part]
    torch.save(changed(scheduled, key, value), "odd.ckpt")
    said = answer(fits("--ckpt_path", scheduled=True), "odd.ckpt", flag.parent, capsys)
    assert re.search(rf"{says}.*(use another|use the configuration)", said)


@tried
def test_a_probability_that_torch_refuses_is_one_sentence(whole: Checkpoint) -> None:
    config = checkpoints.config(whole, "")
    model(config)["network"]["init_args"]["dropout"] = -1
    with pytest.raises(ValueError, match=r"model\.network in x\.ckpt cannot be made \(dropout .*: use another"):
        loading.restored(whole, config, "x.ckpt", ())


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
    model(config).update(network=spec("my_net.Net"), shape=[1, 8, 8])
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
def test_sizes_that_are_not_stored_are_refused(size: str, whole: Checkpoint) -> None:
    config = copy.deepcopy(checkpoints.config(whole, ""))
    SIZES[size](config)
    with pytest.raises(ValueError, match=r"belongs to another model|past|more parameters|no image|holds .* numbers"):
        loading.restored(whole, config, "x.ckpt", ())


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
    tensors["denoiser.network.time_mlp1.weight"].view(-1)[3] = value
    with pytest.raises(ValueError, match=r"time_mlp1\.weight that is not finite"):
        loading.check_fits(module, damaged, "x.ckpt")


@tried
@pytest.mark.parametrize("fault", ["lacks one", "has one more", "has one of another shape"])
def test_an_average_that_is_not_of_all_weights_is_refused(fault: str, small: tuple[Diffusion, Checkpoint]) -> None:
    module, checkpoint = small
    damaged = copy.deepcopy(checkpoint)
    name = "denoiser.network.time_mlp1.weight"
    if fault == "has one more":
        average(damaged)["stray"] = torch.zeros(1)
    else:
        average(damaged)[name] = torch.zeros(1)
        if fault == "lacks one":
            del average(damaged)[name]
    with pytest.raises(ValueError, match=r"another model: its average of "):
        loading.check_fits(module, damaged, "x.ckpt")
    loading.check_fits(module, checkpoint, "x.ckpt")


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
    says = "the folder .* has no checkpoints/last.ckpt" if place == "folder" else "is no file, but a checkpoint is one"
    with pytest.raises(ValueError, match=says):
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
        ({"dropout": float("nan")}, "takes float"),
        ({"release": "IMDB"}, "takes Literal"),
        ({"attention": 16}, "Sequence"),
        ({"attention": [[16]]}, "takes int"),
        ({"chanels": 8}, r"takes no chanels \(did you mean channels\?\)"),
    ],
    ids=["class for anything", "classes for anything", "function", "function as a class", "bool for int",
         "text for int", "float for int", "NaN", "word of a list", "number for a list", "list for a number",
         "misspelt key"],
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
