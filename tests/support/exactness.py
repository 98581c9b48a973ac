"""Two runs compared bit for bit: a config with everything that draws, and the states to compare."""

import contextlib
import csv
import io
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.optim import adam

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main

from ..conftest import UNWATCHED, small_config

STEPS = 140  # ten kills, some checkpoints apart, leave the end to the last attempt


def powers(every: int, keep: int) -> dict[str, Any]:
    """`PowerEMA` for a configuration; of its snapshots some are thinned out where every·keep is below the run's end."""
    return {
        "class_path": "diffusion_lightning.callbacks.PowerEMA",
        "init_args": {"every_n_train_steps": every, "keep": keep},
    }


# Dropout, accumulation, workers, learned variance, times drawn by the losses before, validation in mid-epoch, two
# averages with snapshots, and checkpoints at other steps than these and validation. Twelve times of 96 samples a step:
# the history is full after some steps.
EVERYTHING: dict[str, Any] = {
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 14,
    "trainer.accumulate_grad_batches": 2,
    "trainer.logger": False,
    "trainer.callbacks": [powers(every=3, keep=8)],
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


# An autoencoder whose discriminator takes part in the last half, with all that it trains and averages.
ADVERSARIAL: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "Autoencoder",
        "init_args": {
            "network": {
                "class_path": "PlainAutoencoder",
                "init_args": {"in_channels": 1, "size": 8, "channels": 8, "levels": 1, "blocks": 1},
            },
            "discriminator": {
                "class_path": "PatchDiscriminator",
                "init_args": {"in_channels": 1, "channels": 8, "layers": 1},
            },
            "features": {"class_path": "DigitsNet"},
            "adversarial_from": 40,
            "learn_log_var": True,
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.1}},
            "lr_scheduler": {"class_path": "OneCycle"},
        },
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 48, "flip": True, "num_workers": 2}},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 80,
        "val_check_interval": 16,
        "accumulate_grad_batches": 2,
        "logger": False,
        "log_every_n_steps": 1,
    },
    "checkpoint": {"every_n_train_steps": 4},
    "ema": {"decay": 0.9},
    **UNWATCHED,
}


# What is predicted on which schedule, with the weights of its loss, its times and its sampler.
FRAMES: dict[str, dict[str, Any]] = {
    "EDM": {
        "model.init_args.parameterization": {"class_path": "EDM", "init_args": {"sigma_data": 0.6}},
        "model.init_args.schedule": {"class_path": "LogSigma", "init_args": {"T": 12}},
        "model.init_args.timesteps": {"class_path": "LogNormal", "init_args": {"mean": -0.5, "stratified": True}},
        "sampler": {"class_path": "Heun", "init_args": {"steps": 3, "spacing": "Karras"}},
    },
    "flow": {
        "model.init_args.parameterization": {"class_path": "Flow"},
        "model.init_args.schedule": {
            "class_path": "Shifted",
            "init_args": {"schedule": {"class_path": "RectifiedFlow", "init_args": {"T": 12}}, "shift": 2.0},
        },
        "model.init_args.weighting": {"class_path": "LossIn", "init_args": {"space": "Velocity", "floor": 0.05}},
        "sampler": {"class_path": "Heun", "init_args": {"steps": 3, "variable": "tau"}},
    },
}


def framed(folder: Path, frame: str, **changes: Any) -> Path:
    """The small config with such a frame and further changes, in a file."""
    frames = dict(FRAMES[frame])
    sampler = frames.pop("sampler")
    path = small_config(folder, **{**changes, **frames})
    config = yaml.safe_load(path.read_text())
    for key in ("grid", "metrics"):
        config[key]["sampler"] = sampler
    path.write_text(yaml.safe_dump(config))
    return path


def child(arguments: list[str], updates: int | None = None) -> None:
    """One `fit` in a process of its own, silent, whose disk is slow enough to be caught in the middle of writing.

    It kills itself where it has made so many of Adam's updates, of which an optimizer's step has one for each of its
    groups of weights.
    """
    fsync = os.fsync

    def slow(file: Any) -> None:
        time.sleep(0.05)
        fsync(file)

    own, made = adam.adam, 0

    def counted(*args: Any, **options: Any) -> None:
        nonlocal made
        if made == updates:
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
        own(*args, **options)

    os.fsync = slow  # type: ignore[assignment]
    adam.adam = counted
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
        "powers": checkpoint["callbacks"].get("PowerEMA"),
        "snapshots": snapshots(root),
    }


def snapshots(root: Path) -> dict[str, Any]:
    return {path.name: read(path) for path in sorted((root / "averages").glob("step=*.ckpt"))}


def table(root: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what was measured by a clock."""
    with (root / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("cost/", "throughput/"))} for row in rows]


def pictures(root: Path) -> list[Path]:
    return sorted((root / "samples").glob("*.png"))
