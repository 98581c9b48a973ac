"""One bar for the whole run: steps done of all, time left, loss, images a second."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from ..modules.base import batches


class Progress(Callback):
    """A bar over the optimizer steps of `fit`, unlike Lightning's own, which counts the batches of one epoch.

    The loss is read from the device when the bar is drawn, not at every step.

    Args:
        refresh: seconds between two drawings; None is 0.5 on a terminal and 10 in a file.
    """

    def __init__(self, refresh: float | None = None) -> None:
        self.refresh = refresh if refresh is not None else (0.5 if sys.stderr.isatty() else 10.0)
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        steps = trainer.estimated_stepping_batches
        self._bar = tqdm(
            desc="fit",
            total=int(steps) if steps != float("inf") else None,
            initial=trainer.global_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=self.refresh,
            maxinterval=self.refresh,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._images, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        self._images += batches.size(batch) * trainer.world_size
        now = time.monotonic()
        if now - self._since >= self.refresh or trainer.global_step == self._bar.total:
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            rate = self._images / max(now - self._since, 1e-9)
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} images/s", refresh=False)
            self._images, self._since = 0, now
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_description_str("validate, sample")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_description_str("fit")
            self._images, self._since = 0, time.monotonic()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
