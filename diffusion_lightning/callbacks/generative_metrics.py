"""Metrics of generated images under validation and test, sampled with the evaluation's weights (the EMA's)."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric
from tqdm import tqdm

from .. import loading
from ..guidance import Guidance, prepare
from ..modules.base.generative import generative
from ..samplers import Sampler
from .base import Round, Scoring, save_picture


class GenerativeMetrics(Scoring):
    """Generates n samples, scores them against the data's training images, and logs the values.

    Every rank makes and scores its own blocks of sample numbers, and the metrics add up what they have: the value is
    the same on any number of devices. The real images are a whole split, unaugmented; what the metrics make of them
    is kept in the user's cache (`$DIFFUSION_LIGHTNING_CACHE`) for later runs on the same images.

    In `test`, as many of the data's own held-out images, or all of fewer, are scored first, as if they were samples,
    and logged as `floor/<name>`, their number as `floor/images`: what a perfect model would have, at that number.

    Training can be watched by few samples of a fast sampler; `test` is what is published.

    Args:
        metrics: those of `diffusion_lightning.metrics`, or any of torchmetrics' kind over bytes; logged as
            `val/<name>`, where the name is the metric's attribute `name` or made of its class's, or, where it computes
            a dict, the dict's keys.
        n: how many samples in validation.
        sampler: the reverse loop in validation; None is the model's own: `Ancestral()`, or a student's.
        batch_size: samples made at once, per device.
        seed: of the samples.
        test_n: how many samples in `test`.
        test_sampler: the reverse loop in `test`; None is the model's own: `Ancestral()`, algorithm 2 at all times, or a
            student's.
        split: which of the data's splits the samples are compared with.
        cache: keep references between runs.
        guidance: of the samples in both: the scale of `ClassifierFree`, or a `Guidance`; None is none.
        floors: in `test`, score held-out images too.
    """

    def __init__(
        self,
        metrics: list[Metric],
        n: int = 1000,
        sampler: Sampler | None = None,
        batch_size: int = 256,
        seed: int = 0,
        test_n: int = 50_000,
        test_sampler: Sampler | None = None,
        split: str = "train",
        cache: bool = True,
        guidance: Guidance | float | None = None,
        floors: bool = True,
    ) -> None:
        super().__init__(metrics, batch_size, seed, split, cache)
        self.guidance, self.floors = guidance, floors
        self.protocol: dict[str, tuple[int, Any]] = {"val": (n, sampler), "test": (test_n, test_sampler)}
        self._trained: tuple[int, float] | None = None  # the step and the moment at which training began

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        n, sampler = self.protocol["test" if stage == "test" else "val"]
        prepare(self.guidance, loading.module)
        generative(module, self).check(sampler, self.guidance)
        self.check(trainer, n)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._trained = trainer.global_step, time.monotonic()

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._evaluate(trainer, module, "test")

    def _evaluate(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        began = time.monotonic()
        n, sampler = self.protocol[stage]
        sampler = sampler or generative(module, self).own_sampler()  # a student's is another after each stage
        floor = self.floor(trainer, "real, held out", "test", n) if stage == "test" and self.floors else {}
        for key, value in floor.items():
            module.log(f"floor/{key}", value, sync_dist=True)
        done = self.round(trainer, module, stage, n, sampler, stage == "test", self.guidance)
        for key, value in done.values.items():
            module.log(f"{stage}/{key}", value, sync_dist=True)
        module.log("cost/sampling_seconds", done.sampling, sync_dist=True)
        module.log("cost/scoring_seconds", done.scoring, sync_dist=True)
        if trainer.is_global_zero:
            self._save_pictures(trainer, generative(module, self).steps_done)
            if self._trained is not None and trainer.state.fn == TrainerFn.FITTING:
                step, since = self._trained
                self._tell_cost(trainer, n, done, trainer.global_step - step, began - since)
        self._trained = None

    def _save_pictures(self, trainer: Trainer, step: int) -> None:
        for metric in self.metrics:
            picture = getattr(metric, "picture", None)
            if isinstance(picture, torch.Tensor):
                save_picture(trainer, "closest_pairs.png", picture, "closest_pairs", step)

    def _tell_cost(self, trainer: Trainer, n: int, done: Round, steps: int, seconds: float) -> None:
        """Warn once of what this schedule of evaluations costs, measured on the steps so far."""
        if steps < 1:
            return
        once = 0.0 if self.compares else done.reading  # the real images, where they will not be looked at again
        sampling, scoring = done.sampling, done.scoring - once
        every = (
            (trainer.val_check_batch or 0) * (trainer.check_val_every_n_epoch or 1) / trainer.accumulate_grad_batches
        )
        training = seconds / steps * (every if 0 < every < float("inf") else steps)
        share = (sampling + scoring) / (sampling + scoring + training)
        tqdm.write(
            f"evaluation of {n} samples: {sampling:.1f} s sampling and {scoring:.1f} s scoring, beside {training:.0f} "
            f"s of training before each: {share:.0%} of the run's time"
            + (f"; and {once:.1f} s, once, for the real images" if once >= 0.1 else ""),
            file=sys.stderr,
        )
