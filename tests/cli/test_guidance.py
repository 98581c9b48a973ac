"""Guidance from the command line and from a configuration."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torchvision.io import read_image

from diffusion_lightning.cli import main
from diffusion_lightning.guidance import AutoGuidance, ClassifierFree, ClassifierGuided
from diffusion_lightning.images import grid, to_uint8
from diffusion_lightning.loading import load, module
from diffusion_lightning.samplers import DDIM

from ..conftest import BARE, ROOT
from ..support.commands import fails
from ..support.conditions import with_classes

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.max_steps", "4",
         "--trainer.val_check_interval", "4", "--checkpoint.monitor", "val/loss"]  # fmt: skip
PATHS = {"AutoGuidance": "guide", "ClassifierGuided": "classifier"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `model`, `guide` of another seed, and `classifier`."""
    folder = tmp_path_factory.mktemp("guided")
    config = str(with_classes(folder))
    for seed, name in enumerate(("model", "guide")):
        root = ["--trainer.default_root_dir", str(folder / name), "--seed_everything", str(seed)]
        main(["fit", "--config", config, *root, *QUIET, *BARE])
    words = ["--trainer.default_root_dir", str(folder / "classifier"), *QUIET]
    main(["fit", "--config", str(ROOT / "configs/digits_classifier.yaml"), *words])
    return folder


def drawn(ckpt: Path, out: Path, *words: str) -> Tensor:
    sampler = ["--sampler", "DDIM", "--sampler.steps", "3"]
    main(["predict", "--ckpt_path", str(ckpt), "--n", "3", "--out", str(out), *sampler, *words])
    return torch.stack([read_image(str(path)) for path in sorted(out.glob("0*.png"))])


def words(runs: Path, kind: str, **arguments: Any) -> list[str]:
    if kind in PATHS:
        arguments[PATHS[kind]] = runs / PATHS[kind]
    return ["--guidance", kind, *(w for key, value in arguments.items() for w in (f"--guidance.{key}", str(value)))]


CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "classifier-free": ("ClassifierFree", {"scale": 3}, lambda runs: ClassifierFree(3.0)),
    "in an interval": (
        "ClassifierFree", {"scale": 90, "interval": [0.2, 2], "rescale": 0.5},
        lambda runs: ClassifierFree(90.0, (0.2, 2.0), 0.5),
    ),
    "by a guide": ("AutoGuidance", {"scale": 2}, lambda runs: AutoGuidance(load(runs / "guide"), 2.0)),
    "by a classifier": (
        "ClassifierGuided", {"scale": 4}, lambda runs: ClassifierGuided(module(runs / "classifier"), 4.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_predict_takes_every_guidance(case: str, runs: Path, tmp_path: Path) -> None:
    kind, arguments, make = CASES[case]
    found = drawn(runs / "model", tmp_path / "out", *words(runs, kind, **arguments))
    model = load(runs / "model")
    assert torch.equal(found, to_uint8(model.generate(3, DDIM(3), guidance=make(runs))))
    assert not torch.equal(found, to_uint8(model.generate(3, DDIM(3))))


def test_a_number_is_the_scale_of_classifier_free_guidance(runs: Path, tmp_path: Path) -> None:
    number = drawn(runs / "model", tmp_path / "number", "--guidance", "3")
    named = drawn(runs / "model", tmp_path / "named", *words(runs, "ClassifierFree", scale=3))
    assert torch.equal(number, named)


def test_a_model_without_condition_draws_a_class_by_a_classifier(runs: Path, run: Path, tmp_path: Path) -> None:
    given = [*words(runs, "ClassifierGuided", scale=4), "--y", "7"]
    found = drawn(run, tmp_path / "out", *given)
    guide = ClassifierGuided(module(runs / "classifier"), 4.0)
    assert torch.equal(found, to_uint8(load(run).generate(3, DDIM(3), y=7, guidance=guide)))
    assert not torch.equal(found, to_uint8(load(run).generate(3, DDIM(3), y=6, guidance=guide)))


def test_samples_of_another_guide_are_no_part_of_the_same_set(runs: Path, tmp_path: Path, capsys: Any) -> None:
    """The guide is known by its content, not by its name."""
    shutil.copytree(runs / "guide", tmp_path / "guide")
    drawn(runs / "model", tmp_path / "out", *words(tmp_path, "AutoGuidance", scale=2))
    shutil.rmtree(tmp_path / "guide")
    shutil.copytree(runs / "model", tmp_path / "guide")
    again = ["predict", "--ckpt_path", str(runs / "model"), "--n", "3", "--out", str(tmp_path / "out")]
    sampler = ["--sampler", "DDIM", "--sampler.steps", "3"]
    said = fails(capsys, *again, *sampler, *words(tmp_path, "AutoGuidance", scale=2))
    assert "was drawn with guidance AutoGuidance(guide=" in said


WRONG = {
    "a guide that is not there": (["AutoGuidance", "--guidance.guide", "nowhere", "--guidance.scale", "2"], "nowhere"),
    "a classifier as guide": (["AutoGuidance", "--guidance.guide", "classifier", "--guidance.scale", "2"],
                              "guide is a NoisyClassifier, but it has to be a model that makes images"),
    "a guide as classifier": (["ClassifierGuided", "--guidance.classifier", "guide"], "has to be a NoisyClassifier"),
    "a scale below zero": (["ClassifierFree", "--guidance.scale", "-1"], "scale of guidance is -1.0"),
    "no scale": (["ClassifierFree"], "scale"),
    "no such guidance": (["Classifier"], "guidance"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_guide_is_refused_before_anything_is_drawn(
    case: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    given, says = WRONG[case]
    out = tmp_path / "out"
    assert says in fails(capsys, "predict", "--ckpt_path", "model", "--out", str(out), "--guidance", *given)
    assert not out.exists()


def test_the_grid_and_the_metrics_of_a_run_are_guided(runs: Path, tmp_path: Path) -> None:
    """By a number and by a guide, named in the configuration; `validate` takes them from the checkpoint."""
    config = yaml.safe_load((runs / "classes.yaml").read_text())
    config["grid"]["guidance"] = 3
    guide = {"class_path": "AutoGuidance", "init_args": {"guide": str(runs / "guide"), "scale": 2}}
    config["metrics"] |= {"guidance": guide, "metrics": config["metrics"]["metrics"][:1]}
    config["chain"] = config["trainer"]["callbacks"] = None
    root = tmp_path / "run"
    config["trainer"]["default_root_dir"] = str(root)
    (tmp_path / "guided.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "guided.yaml"), *QUIET])
    found = read_image(str(root / "samples/step=4.png"))
    assert torch.equal(found, grid(to_uint8(load(root).generate(4, DDIM(3), guidance=3.0))).permute(2, 0, 1))
    main(["validate", "--ckpt_path", str(root), "--trust", str(runs / "guide")])
