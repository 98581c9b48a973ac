"""Checkpoints: the last, the best by a metric, and every N steps, each written to the side and renamed."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.trainer.states import TrainerFn

from .base import checkpoints_folder


class AtomicIO(TorchCheckpointIO):
    """Writes beside the file and renames: a crash leaves the earlier file whole, never a half one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            # torch's own writer hides a full disk behind a RuntimeError, whose context is the OSError.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(
                cause.errno, f"the checkpoint could not be written ({cause.strerror or cause})", str(path)
            ) from error
        finally:
            part.unlink(missing_ok=True)


class Checkpoint(CheckpointBase):
    """Keeps `checkpoints/` in the run's folder.

    - `step=<n>.ckpt` every so many optimizer steps, the newest `keep` of them;
    - `last.ckpt`, the same as the newest, and written once more when `fit` ends;
    - `best.ckpt`, after the validation whose `monitor` was the best so far.

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

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._saved and step % self.every_n_train_steps == 0:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        rehearsal = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.monitor is None or rehearsal or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"the best checkpoint is to be chosen by {self.monitor}, but validation logged "
                f"{sorted(map(str, trainer.callback_metrics))}: set checkpoint.monitor to one of these"
            )
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint(checkpoints_folder(trainer) / "best.ckpt", weights_only=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        last = checkpoints_folder(trainer) / "last.ckpt"
        trainer.save_checkpoint(last, weights_only=False)
        if trainer.is_global_zero and self.keep != 0:
            numbered = last.with_name(f"step={self._saved}.ckpt")
            part = last.with_name("numbered.part")
            part.unlink(missing_ok=True)
            os.link(last, part)
            os.replace(part, numbered)
            older = sorted(last.parent.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
            for path in older[: -self.keep] if self.keep else []:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
