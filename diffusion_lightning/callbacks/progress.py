"""One bar for the whole of a command: steps done of all, and the time left."""

import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from ..modules.base import batches


def of_steps(name: str, total: int | None, done: int = 0, refresh: float | None = None) -> tqdm:
    """A bar of steps with the time left; `refresh` is as `Progress` has it."""
    seconds = _seconds() if refresh is None else refresh
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="step",
        dynamic_ncols=True,
        mininterval=seconds,
        maxinterval=seconds,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    )


def _seconds() -> float:
    return 0.5 if sys.stderr.isatty() else 10.0


class Progress(Callback):
    """A bar over the optimizer's steps of `fit`, with the loss and images a second, or the sampler's of `predict`.

    Lightning's own counts the batches of one epoch. The loss is read from the device when the bar is drawn, not at
    every step.

    Args:
        refresh: seconds between two drawings; None is 0.5 on a terminal and 10 in a file.
        sampled: the sampler's steps for one batch of `predict`.
    """

    def __init__(self, refresh: float | None = None, sampled: int = 0) -> None:
        self.refresh = _seconds() if refresh is None else refresh
        self.sampled = sampled
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        steps = trainer.estimated_stepping_batches
        self._open("fit", int(steps) if steps != float("inf") else None, trainer.global_step)
        self._images, self._since = 0, time.monotonic()

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._open("predict", int(sum(trainer.num_predict_batches)) * self.sampled)

    def step(self) -> None:
        """The sampler has taken a step."""
        if self._bar is not None:
            self._bar.update()

    def _open(self, name: str, total: int | None, done: int = 0) -> None:
        self._bar = of_steps(name, total, done, self.refresh)

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

    def on_predict_batch_end(self, trainer: Trainer, module: LightningModule, *of: Any) -> None:
        batch_idx = of[2]
        if self._bar is not None:  # of a model without a sampler no step has moved it
            self._bar.update((batch_idx + 1) * self.sampled - self._bar.n)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_train_end(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Watched:
    """A sampler, each step of which moves a bar.

    Args:
        sampler: the reverse loop.
        bar: of the command.
    """

    def __init__(self, sampler: Callable[..., Tensor], bar: Progress) -> None:
        self.sampler, self.bar = sampler, bar

    def __call__(self, *given: Any, **more: Any) -> Tensor:
        seen = 0

        def watch(t: int, x_t: Tensor) -> None:  # once before each step, and at the end
            nonlocal seen
            if seen:
                self.bar.step()
            seen += 1

        return self.sampler(*given, **more, watch=watch)
