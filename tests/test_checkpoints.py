"""What is kept, how it is written, and what a file must be to be read."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from diffusion_lightning import checkpoints, loading
from diffusion_lightning.callbacks import Checkpoint
from diffusion_lightning.callbacks.checkpoint import AtomicIO
from diffusion_lightning.data import Digits
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.schedules import Cosine

from .conftest import tiny_unet
from .support.hostile import Hostile


def fit(folder: Path, checkpoint: Checkpoint, steps: int = 7, val: float = 0) -> None:
    module = Diffusion(tiny_unet(), Cosine(T=20), (1, 8, 8))
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, logger=False, callbacks=[checkpoint],
        limit_val_batches=val, val_check_interval=2, check_val_every_n_epoch=None, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, Digits(batch_size=32))


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [4, 6]), (0, []), (None, [2, 4, 6])])
def test_every_n_steps_the_newest_are_kept(tmp_path: Path, keep: int | None, kept: list[int]) -> None:
    fit(tmp_path, Checkpoint(every_n_train_steps=2, keep=keep), steps=6)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == sorted([*(f"step={n}.ckpt" for n in kept), "last.ckpt"])


def test_the_last_is_written_when_fit_ends(tmp_path: Path) -> None:
    fit(tmp_path, Checkpoint(every_n_train_steps=4), steps=7)
    assert checkpoints.read(tmp_path / "checkpoints/last.ckpt")["global_step"] == 7


def test_the_best_by_a_metric_is_kept(tmp_path: Path) -> None:
    best = Checkpoint(every_n_train_steps=100, monitor="val/loss")
    fit(tmp_path, best, steps=6, val=1.0)
    assert best.best is not None
    assert checkpoints.read(tmp_path / "checkpoints/best.ckpt")["global_step"] in (2, 4, 6)


def test_a_monitor_that_is_not_logged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chosen by val/typo, but validation logged .*val/loss"):
        fit(tmp_path, Checkpoint(monitor="val/typo"), val=1.0)


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"state_dict": {}, "n": 1}, path)

    class Unwritable:
        def __reduce__(self):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        AtomicIO().save_checkpoint({"weights": torch.zeros(1000), "bad": Unwritable()}, path)
    assert checkpoints.read(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_files_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.ckpt does not exist: give the path"):
        checkpoints.read(tmp_path / "no.ckpt")
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(100)}}, whole)
    with pytest.raises(ValueError, match=r"no\.ckpt does not exist: there are .*whole\.ckpt"):
        checkpoints.read(tmp_path / "no.ckpt")
    for size in (0, 1, 100, whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut = tmp_path / "cut.ckpt"
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ValueError, match=rf"cut\.ckpt \({size} bytes\) is cut short"):
            checkpoints.read(cut)
    other = tmp_path / "other.ckpt"
    torch.save([1, 2], other)
    with pytest.raises(ValueError, match="not a training checkpoint"):
        checkpoints.read(other)
    with pytest.raises(ValueError, match="carries no configuration"):
        loading.load(whole)


@pytest.mark.parametrize("bare", [True, False])
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(tmp_path: Path, bare: bool) -> None:
    path, flag = tmp_path / "hostile.ckpt", tmp_path / "it ran"
    content = {"state_dict": {}, "surprise": Hostile(flag)}
    if bare:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="no checkpoint" if bare else "could run code"):
        checkpoints.read(path)
    assert not flag.exists()


def test_another_models_checkpoint_is_named_by_its_first_difference() -> None:
    a, b = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    with pytest.raises(ValueError, match=r"another model: its weight is \[4, 2\], this model's is \[3, 2\]"):
        loading.check_fits(a, {"state_dict": b.state_dict()}, "x.ckpt")
    with pytest.raises(ValueError, match=r"its bias is missing, this model's is \[3\]"):
        loading.check_fits(a, {"state_dict": {"weight": a.weight}}, "x.ckpt")
    with pytest.raises(ValueError, match=r"its extra is \[1\], this model's is missing"):
        loading.check_fits(a, {"state_dict": {**a.state_dict(), "extra": torch.zeros(1)}}, "x.ckpt")


def test_the_file_that_a_path_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder is its last checkpoint; `last` and `best` alone are those of the newest run below `runs`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"last is the newest run's, but .*runs holds no run: give a path"):
        checkpoints.found("last")
    for age, name in ((30, "old"), (10, "sweep/new"), (20, "middle")):
        folder = tmp_path / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in ("last.ckpt", "best.ckpt", "step=5.ckpt"):
            (folder / file).write_bytes(b"")
            os.utime(folder / file, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "runs/middle/checkpoints/best.ckpt").unlink()
    for given, means in {
        "last": "runs/sweep/new/checkpoints/last.ckpt",
        "best": "runs/sweep/new/checkpoints/best.ckpt",
        "runs/old": "runs/old/checkpoints/last.ckpt",
        "runs/old/last": "runs/old/checkpoints/last.ckpt",
        "runs/old/best": "runs/old/checkpoints/best.ckpt",
        "runs/old/checkpoints/step=5.ckpt": "runs/old/checkpoints/step=5.ckpt",
        "nowhere.ckpt": "nowhere.ckpt",
        "nowhere/best": "nowhere/best",
    }.items():
        assert checkpoints.found(given) == Path(means)
        assert checkpoints.found(means) == Path(means)
    for given, lacks in (("runs/middle/best", "best"), ("runs", "last")):
        with pytest.raises(ValueError, match=f"has no checkpoints/{lacks}.ckpt: give a .ckpt file or a run's folder"):
            checkpoints.found(given)
    (tmp_path / "best").write_bytes(b"")  # a file of this name is a file
    assert checkpoints.found("best") == Path("best")
