"""Stop a run whose loss is not finite, before it overwrites good checkpoints, and name the images at fault."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .base import checkpoints_folder


class FiniteLoss(Callback):
    """Looks at every example's loss since the last look, once a logging interval and before any checkpoint.

    No step waits for the device in between. On a fault the state is saved as `checkpoints/nonfinite.ckpt`; the
    checkpoints before it stay as they are. A figure of a validation that is no number is warned of, once each: the
    training itself may be sound.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[int, dict[str, Tensor]]] = []
        self._failed = False
        self._warned: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recent.append((self._step, {"losses": outputs["loss"].detach().reshape(1), **outputs}))
        if trainer.global_step != self._step and self._due(trainer):
            self.check(trainer)

    @staticmethod
    def _due(trainer: Trainer) -> bool:
        return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        bad = [key for key, value in trainer.callback_metrics.items() if not math.isfinite(value)]
        if fresh := sorted(key for key in bad if key.startswith("val/") and key not in self._warned):
            self._warned.update(fresh)
            rank_zero_warn(
                f"{', '.join(fresh)} {'is' if len(fresh) == 1 else 'are'} not finite after step {trainer.global_step}: "
                "look at the validation images, and at the averaged weights' samples"
            )

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._failed:
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise ValueError, on all ranks, if a loss is not finite.

        The message names the first step at fault, its samples and their times.
        """
        recent, self._recent = self._recent, []
        if not recent:
            return
        bad = torch.cat([outputs["losses"] for _, outputs in recent]).isfinite().logical_not().any()
        if not trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            return
        self._failed = True
        path = checkpoints_folder(trainer) / "nonfinite.ckpt"
        state = f"the state at fault is {path}"
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except OSError as error:
            state = f"the state at fault could not be saved ({path}: {error.strerror})"
        raise ValueError(
            f"{_first_fault(trainer, recent)}: look at these images, or lower the learning rate; earlier checkpoints "
            f"are untouched, and {state}"
        )


def _first_fault(trainer: Trainer, recent: list[tuple[int, dict[str, Tensor]]]) -> str:
    for step, outputs in recent:
        at = outputs["losses"].isfinite().logical_not().nonzero()[:, 0].tolist()
        if not at:
            continue
        if "t" not in outputs or "sample" not in outputs:
            return f"the loss of step {step} is not finite"
        index = getattr(getattr(trainer, "datamodule", None), "index", None)
        faults = []
        for i in at[:8]:
            sample, t = int(outputs["sample"][i]), int(outputs["t"][i])
            image = f", training image {index(step, sample)}" if index else ""
            faults.append(f"sample {sample} (t = {t}{image})")
        more = f" and {len(at) - 8} more" if len(at) > 8 else ""
        return f"the loss of step {step} is not finite for {', '.join(faults)}{more}"
    return "the loss is not finite on another device"
