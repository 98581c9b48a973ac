"""Checkpoints: the last, the best by a metric, and every N steps, each written to the side and renamed."""

import math
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.trainer.states import TrainerFn

from .. import frozen
from ..distributed import internals, preemption
from ..files import written
from .base import checkpoints_folder

VALIDATION = "epoch_loop.val_loop.batch_progress"  # Lightning's key of a validation's progress


class AtomicIO(TorchCheckpointIO):
    """Writes beside the file and renames: a crash leaves the earlier file whole, never a half one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with written(path) as stream:
            torch.save(checkpoint, stream)


class Checkpoint(CheckpointBase):
    """Keeps `checkpoints/` in the run's folder.

    - `step=<n>.ckpt` every so many optimizer steps and before every validation, the newest `keep` of them;
    - `last.ckpt`, the same as the newest, and written once more when `fit` ends;
    - `best.ckpt`, after the validation whose `monitor` was the best so far; one that is no number never is.

    A run that is stopped in a validation goes on with that validation, from its beginning.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints, at least 1.
        keep: how many numbered ones stay; 0 for none, None for all.
        monitor: a logged key, such as `val/fd_digits`; None keeps no best.
        mode: whether the smaller or the larger value is better.
    """

    def __init__(
        self,
        every_n_train_steps: int = 1000,
        keep: int | None = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}, but steps are counted from 1: give N ≥ 1")
        self.every_n_train_steps, self.keep, self.monitor, self.mode = every_n_train_steps, keep, monitor, mode
        self.best: float | None = None
        self._validating = self._missing = False
        self._max_steps: int | None = None  # the run's own, while another stands in for it

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicIO()
        every, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
        if stage == "fit" and self.monitor and isinstance(every, int) and every % accumulate:
            raise ValueError(
                f"validation comes every {every} batches, a step takes {accumulate}, and a checkpoint of half a step "
                "cannot be resumed: make trainer.val_check_interval a multiple of trainer.accumulate_grad_batches"
            )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._before = trainer.global_step
        if module.automatic_optimization:
            internals.count_steps_as_done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Of accumulated batches the last makes the step: a checkpoint after another would lose their gradients.
        due = trainer.global_step != self._before and trainer.global_step % self.every_n_train_steps == 0
        if due and trainer.global_step != self._saved and not internals.validation_follows(trainer):
            self.save(trainer)

    # A validation may take hours: the state it begins with is kept, marked as with a validation to do.

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        self._validating = True
        self.save(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validating, self._saved = False, -1

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if parts := frozen.parts(module):
            checkpoint[frozen.KEY] = {name: part.hash for name, part in parts.items()}
            for part in parts.values() if trainer.is_global_zero else ():
                part.write(checkpoints_folder(trainer) / frozen.FOLDER)  # once a run: a later one finds it there
        if self._validating:
            checkpoint["loops"]["fit_loop"][VALIDATION] = {
                "current": dict.fromkeys(("ready", "started", "processed", "completed"), 0),
                "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
                "is_last_batch": False,
            }

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        total = checkpoint["loops"]["fit_loop"][VALIDATION]["total"] if "loops" in checkpoint else {}
        self._missing = total.get("started", 0) > total.get("processed", 0)
        if trainer.optimizers:  # of the strategies that restore a checkpoint after on_fit_start
            self.on_fit_start(trainer, module)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Where the last step's validation alone is missing, Lightning would see that all steps are done."""
        done = internals.restored_step(trainer)
        if self._missing and done == trainer.max_steps:
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        dry_run = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.monitor is None or dry_run or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"the best checkpoint is to be chosen by {self.monitor}, but validation logged "
                f"{sorted(set(map(str, trainer.callback_metrics)) - {'step'})}: set checkpoint.monitor to one of these"
            )
        value = float(trainer.callback_metrics[self.monitor])
        if self._improves(value):
            self.best = value
            trainer.save_checkpoint(checkpoints_folder(trainer) / "best.ckpt", weights_only=False)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None or math.isnan(self.best):  # as a file of an earlier version may have it
            return True
        return value < self.best if self.mode == "min" else value > self.best

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self.save(trainer)

    def last(self, trainer: Trainer) -> Path:
        """The path of the newest checkpoint."""
        return checkpoints_folder(trainer) / "last.ckpt"

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, unless this step's is written; called on all devices alike."""
        self._saved = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        last = self.last(trainer)
        trainer.save_checkpoint(last, weights_only=False)
        preemption.keeps(lambda: f"{last} is saved, and the same command with --ckpt_path last goes on")
        if trainer.is_global_zero and self.keep != 0:
            numbered = last.with_name(f"step={self._saved}.ckpt")
            _give_name(last, numbered)
            older = sorted(last.parent.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
            for path in older[: -self.keep] if self.keep else []:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far, unless it is the best of another metric; earlier versions kept no name with it."""
        own = {"monitor": self.monitor, "mode": self.mode}
        if all(state_dict.get(key, value) == value for key, value in own.items()):
            self.best = None if state_dict["best"] is None else float(state_dict["best"])


def _give_name(file: Path, name: Path) -> None:
    """A second name for a file that will be replaced, not changed; a copy on a file system without hard links."""
    part = name.with_name(f".{name.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.link(file, part)
        os.replace(part, name)
    except OSError:
        with file.open("rb") as source, written(name) as stream:
            shutil.copyfileobj(source, stream)
