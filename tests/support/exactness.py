"""Two runs compared bit for bit: a config with everything that draws, and the states to compare."""

import contextlib
import csv
import io
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main

STEPS = 140  # ten kills, some checkpoints apart, leave the end to the last attempt


# Dropout, accumulation, workers, learned variance, times drawn by the losses before, validation in mid-epoch, and
# checkpoints at other steps than validation. Twelve times of 96 samples a step: the history is full after some steps.
EVERYTHING: dict[str, Any] = {
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 14,
    "trainer.accumulate_grad_batches": 2,
    "trainer.logger": False,
    "model.init_args.network.init_args.dropout": 0.2,
    "model.init_args.network.init_args.out_channels": 2,
    "model.init_args.timesteps": {"class_path": "LossAware"},
    "model.init_args.lr_scheduler.init_args.total_steps": STEPS,
    "data.init_args.batch_size": 48,
    "data.init_args.num_workers": 2,
    "data.init_args.flip": True,
    "checkpoint.every_n_train_steps": 4,
    "ema.decay": 0.9,
}


def child(arguments: list[str]) -> None:
    """One `fit` in a process of its own, silent, whose disk is slow enough to be caught in the middle of writing."""
    fsync = os.fsync

    def slow(file: Any) -> None:
        time.sleep(0.05)
        fsync(file)

    os.fsync = slow  # type: ignore[assignment]
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for the data's workers, as on a user's machine
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)


def same(a: Any, b: Any, path: str = "") -> None:
    """Bitwise equality of nested states."""
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def state(root: Path) -> dict[str, Any]:
    checkpoint = read(root / "checkpoints/last.ckpt")
    return {
        "step": checkpoint["global_step"],
        "weights": checkpoint["state_dict"],
        "average": checkpoint["callbacks"]["EMA"],
        "optimizer": checkpoint["optimizer_states"],
        "rate": checkpoint["lr_schedulers"],
    }


def table(root: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what was measured by a clock."""
    with (root / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("cost/", "throughput/"))} for row in rows]


def pictures(root: Path) -> list[Path]:
    return sorted((root / "samples").glob("*.png"))
