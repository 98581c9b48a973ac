"""The table of samplers and steps: every value by hand, from the very samples."""

import csv
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.callbacks.sampler_table import SamplerTable, _names
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Karras, UniformLogSNR

from ..support.callbacks import Album, metric, with_callbacks
from ..support.commands import fails

SAMPLERS: list[dict[str, Any]] = [
    {"class_path": "DDIM"},
    {"class_path": "DDIM", "init_args": {"eta": 1.0}},
    {"class_path": "DPMSolver"},
]


def table(folder: Path, samplers: list[dict[str, Any]] = SAMPLERS, **arguments: Any) -> Path:
    """The small config with nothing but the table."""
    given = {"metrics": [metric("FrechetDistance")], "samplers": samplers, "steps": [2, 5], "n": 70, "batch_size": 32}
    return with_callbacks(folder, ("sampler_table.SamplerTable", {**given, **arguments}))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_by_hand(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, update = 0, FrechetDistance.update

    def counted(self: FrechetDistance, images: Tensor, real_: bool = False, **given: Any) -> None:
        nonlocal real
        real += len(images) if given.get("real", real_) else 0
        update(self, images, **given)

    counted.__signature__ = inspect.signature(update)  # type: ignore[attr-defined]
    monkeypatch.setattr(FrechetDistance, "update", counted)
    ckpt = str(run / "checkpoints/last.ckpt")
    main(["test", "--config", str(table(tmp_path, cache=False)), "--ckpt_path", ckpt])
    assert real == 1500
    monkeypatch.undo()

    found = read(tmp_path / "run/samplers.csv")
    names = ["DDIM(eta=0.0)", "DDIM(eta=1.0)", "DPMSolver"]
    assert [(row["sampler"], row["steps"]) for row in found] == [(name, n) for name in names for n in ("2", "5")]
    assert list(found[0]) == ["sampler", "steps", "fd_digits", "seconds_per_image"]
    model = diffusion_lightning.load(ckpt)
    distance = FrechetDistance(DigitsNet())
    distance.update(images.to_uint8(Digits().reference()[:]), real=True)
    samplers = [make(n) for make in (DDIM, lambda n: DDIM(n, eta=1.0), DPMSolver) for n in (2, 5)]
    for row, sampler in zip(found, samplers, strict=True):
        distance.reset()
        distance.update(images.to_uint8(model.generate(70, sampler, batch_size=32)), real=False)
        assert float(row["fd_digits"]) == pytest.approx(float(distance.compute()), rel=1e-6)
        assert float(row["seconds_per_image"]) > 0

    ((key, step, columns, rows),) = Album.tables
    assert (key, step, columns) == ("samplers", 6, list(found[0]))
    assert [[str(cell) for cell in row] for row in rows] == [list(row.values()) for row in found]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) == 7
    assert len({len(line) for line in printed}) == 1
    for line, row in zip(printed[1:], found, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [row["sampler"], row["steps"]]
        assert float(cells[2]) == pytest.approx(float(row["fd_digits"]), rel=1e-3)


def test_a_name_says_what_distinguishes_a_sampler() -> None:
    assert _names([DDIM(), DPMSolver(3)]) == ["DDIM", "DPMSolver"]
    assert _names([Ancestral(), Ancestral(9, variance=0.0), Heun(3)]) == [
        "Ancestral(variance=None)", "Ancestral(variance=0.0)", "Heun",
    ]  # fmt: skip
    assert _names([Heun(), Heun(spacing=Karras(3.0)), Heun(spacing=UniformLogSNR())]) == [
        "Heun(spacing=Karras(rho=7.0))", "Heun(spacing=Karras(rho=3.0))", "Heun(spacing=UniformLogSNR)",
    ]  # fmt: skip
    assert _names([DDIM(eta=0.5), DDIM(clip=None)]) == ["DDIM(clip=1.0, eta=0.5)", "DDIM(clip=None, eta=0.0)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": [5, 13]}, "takes 13 steps, but the schedule has T = 12"),
        ({"steps": [0]}, "steps [0] is empty"),
        ({"steps": []}, "steps [] is empty"),
        ({"samplers": []}, "0 samplers"),
        ({"n": 64}, "64 features, but only 64 generated images"),
        ({"n": 0}, "metrics of 0 samples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samplers": [*SAMPLERS, {"class_path": "DPMSolver", "init_args": {"steps": 9}}]}, "two of the samplers are"),
    ],
)
def test_refused_before_anything_is_sampled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], says: str
) -> None:
    words = ["--config", str(table(tmp_path, **arguments)), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert says in fails(capsys, "test", *words)
    assert not (tmp_path / "run/samplers.csv").exists()


def test_only_test_makes_it(run: Path, tmp_path: Path) -> None:
    words = ["--config", str(table(tmp_path, steps=[13])), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    main(["validate", *words])
    assert not (tmp_path / "run/samplers.csv").exists()


def test_samplers_given_stay_as_they_were() -> None:
    sampler = DDIM(9)
    rows = SamplerTable([FrechetDistance(DigitsNet())], [sampler], [2, 5]).rows
    assert sampler.steps == 9
    assert [(name, steps, own.steps) for name, steps, own in rows] == [("DDIM", 2, 2), ("DDIM", 5, 5)]


@pytest.mark.slow
def test_two_processes_make_the_same_table_and_pictures_as_one(run: Path, tmp_path: Path) -> None:
    """Values to rounding, pictures to one of the 256 levels; three samples and three blocks over two processes."""
    sampler = {"class_path": "DDIM", "init_args": {"steps": 4}}
    given = {"metrics": [metric("FrechetDistance")], "samplers": SAMPLERS, "steps": [3], "n": 70, "batch_size": 32}
    config = with_callbacks(
        tmp_path,
        ("sampler_table.SamplerTable", given),
        ("sample_grid.SampleGrid", {"n": 3, "sampler": sampler}),
        ("reverse_chain.ReverseChain", {"n": 3, "sampler": sampler}),
    )
    found = {}
    for n in (1, 2):
        root = tmp_path / str(n)
        words = ["test", "--config", str(config), "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.logger",
                 "false", "--trainer.default_root_dir", str(root), "--trainer.devices", str(n),
                 *(["--trainer.strategy", "ddp"] if n > 1 else [])]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIFFUSION_LIGHTNING_CACHE": str(root / "cache")}
        subprocess.run([sys.executable, "-m", "diffusion_lightning", *words], check=True, env=environment)
        pictures = [np.asarray(Image.open(root / name / "step=6.png")).astype(int) for name in ("samples", "chains")]
        found[n] = read(root / "samplers.csv"), pictures
    (one, pictures), (two, others) = found[1], found[2]
    assert [row["sampler"] for row in one] == [row["sampler"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert float(a["fd_digits"]) == pytest.approx(float(b["fd_digits"]), rel=1e-9)
    for picture, other in zip(pictures, others, strict=True):
        assert picture.shape == other.shape
        assert abs(picture - other).max() <= 1
    assert torch.tensor(pictures[1]).shape == (3 * 72 + 8, 5 * 72 + 8)
