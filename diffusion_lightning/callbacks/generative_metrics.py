"""Metrics of generated images under validation and test, sampled with whatever weights evaluation sees (the EMA's)."""

import re
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from .. import images
from ..samplers import Ancestral, Sampler


class GenerativeMetrics(Callback):
    """Generates n samples, updates the metrics with them and with the data's training images, and logs the values.

    Every rank makes and scores its own blocks of sample numbers; the metrics add up their states over the ranks. The
    real images are the unaugmented training set, read once: `reset` of a metric is expected to keep them.

    Args:
        metrics: each with `update(images, real)` over bytes and `compute()`; logged as `val/<name>`, where the name
            is the metric's attribute `name` or made of its class's, or, where it computes a dict, the dict's keys.
        n: how many samples.
        sampler: the reverse loop; None is `Ancestral()`.
        batch_size: samples made at once, per device.
        seed: of the samples.
    """

    def __init__(
        self,
        metrics: list[Metric],
        n: int = 1000,
        sampler: Sampler | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        for metric in metrics:
            fewest = getattr(metric, "min_samples", 1)
            if n < fewest:
                raise ValueError(
                    f"{_name(metric)} needs at least {fewest} samples, but n is {n}: raise n to {fewest} or more"
                )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, which is no batch: give at least 1")
        self.metrics, self.n, self.sampler = metrics, n, sampler or Ancestral()
        self.batch_size, self.seed = batch_size, seed
        self._has_reference = False

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        self.sampler.times(module.schedule)
        if not hasattr(getattr(trainer, "datamodule", None), "reference"):
            raise ValueError(
                "GenerativeMetrics compares samples with real images, but the data has no reference(): "
                "use a data module of diffusion_lightning.data or give yours that method"
            )

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._evaluate(trainer, module, "test")

    def _evaluate(self, trainer: Trainer, module: Any, stage: str) -> None:
        rank, world = trainer.global_rank, trainer.world_size
        # Sums are float64, which Apple's devices lack: there the metrics stay on the CPU.
        device = torch.device("cpu") if module.device.type == "mps" else module.device
        for metric in self.metrics:
            metric.to(device)
        if not self._has_reference:
            for batch in trainer.datamodule.reference()[rank::world].split(self.batch_size):  # type: ignore[attr-defined]
                self._update(batch.to(device), real=True)
            self._has_reference = True
        for first in range(rank * self.batch_size, self.n, world * self.batch_size):
            size = min(self.batch_size, self.n - first)
            samples = module.generate(size, self.sampler, seed=self.seed, first=first, batch_size=self.batch_size)
            self._update(samples.to(device), real=False)
        for metric in self.metrics:
            values: Any = metric.compute()
            for key, value in (values if isinstance(values, dict) else {_name(metric): values}).items():
                module.log(f"{stage}/{key}", value, sync_dist=True)
            metric.reset()

    def _update(self, x: torch.Tensor, real: bool) -> None:
        for metric in self.metrics:
            metric.update(images.to_uint8(x), real=real)


def _name(metric: Metric) -> str:
    return getattr(metric, "name", re.sub(r"(?<!^)(?=[A-Z])", "_", type(metric).__name__).lower())
