"""The mean loss in bins of t: at which times the model is weak."""

from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..modules.base.generative import generative


class LossByTimestep(Callback):
    """Logs the mean loss of the examples whose t lies in each of some equal bins of 1 … T.

    As `train_by_t/0001-0100` and so on at every logging interval, over all examples since the last, and as
    `val_by_t/…` after every validation, over all devices. A bin in which no t fell is left out.

    Args:
        bins: how many, at least 1; never more than T.
    """

    def __init__(self, bins: int = 10) -> None:
        if bins < 1:
            raise ValueError(f"the loss by timestep in {bins} bins is none: give bins ≥ 1")
        self.bins = bins
        self._sums: Tensor | None = None
        self._restored: Tensor | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        T = generative(module, self).T
        if T is None:
            raise ValueError(
                f"LossByTimestep divides losses by their time, but those of {type(module).__name__} have none: leave "
                "LossByTimestep out"
            )
        bins = min(self.bins, T)
        starts = [1 + k * T // bins for k in range(bins + 1)]
        digits = len(str(T))
        self._names = [f"{a:0{digits}d}-{b - 1:0{digits}d}" for a, b in pairwise(starts)]
        self._ends = torch.tensor(starts[1:])

    def _empty(self, module: LightningModule) -> Tensor:
        """(2, bins): the losses' sum and number."""
        self._ends = self._ends.to(module.device)
        exact = torch.float32 if module.device.type == "mps" else torch.float64
        return torch.zeros(2, len(self._ends), dtype=exact, device=module.device)

    def _add(self, sums: Tensor, outputs: Any) -> None:
        losses = outputs["losses"].to(sums.dtype)
        sums.index_add_(
            1, torch.bucketize(outputs["t"], self._ends, right=True), torch.stack([losses, torch.ones_like(losses)])
        )

    def _log(self, trainer: Trainer, module: LightningModule, key: str, sums: Tensor) -> None:
        for name, total, number in zip(self._names, *_over_devices(trainer, sums).tolist(), strict=True):
            if number:
                module.log(f"{key}/{name}", total / number, rank_zero_only=True)

    # Training: a log every interval; a checkpoint within one holds what was seen so far

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._sums = self._empty(module)
        if self._restored is not None and trainer.is_global_zero:
            if self._restored.shape == self._sums.shape:  # else of other bins
                self._sums += self._restored.to(self._sums)
            self._restored = None
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._sums is not None
        self._add(self._sums, outputs)
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if trainer.global_step != self._step and due:
            self._log(trainer, module, "train_by_t", self._sums)
            self._sums = self._empty(module)
        self._step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._sums is not None:
            checkpoint["callbacks"][self.state_key] = {"sums": _over_devices(trainer, self._sums).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = torch.as_tensor(state_dict["sums"], dtype=torch.float64)

    # Validation

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = self._empty(module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(self._validated, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, module, "val_by_t", self._validated)


def _over_devices(trainer: Trainer, sums: Tensor) -> Tensor:
    return trainer.strategy.reduce(sums.clone(), reduce_op="sum")
