"""Metrics of generated images under validation and test, sampled with whatever weights evaluation sees (the EMA's)."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchmetrics import Metric
from tqdm import tqdm

from ..evaluation import Block, Evaluation, cache_folder, share
from ..samplers import Ancestral, Sampler


class GenerativeMetrics(Callback):
    """Generates n samples, scores them against the data's training images, and logs the values.

    Every rank makes and scores its own blocks of sample numbers, and the metrics add up what they have: the value is
    the same on any number of devices. The real images are a whole split, unaugmented; what the metrics make of them
    is kept in the user's cache (`$DIFFUSION_LIGHTNING_CACHE`) for later runs on the same images.

    Training can be watched by few samples of a fast sampler; `test` is what is published.

    Args:
        metrics: those of `diffusion_lightning.metrics`, or any of torchmetrics' kind over bytes; logged as
            `val/<name>`, where the name is the metric's attribute `name` or made of its class's, or, where it computes
            a dict, the dict's keys.
        n: how many samples in validation.
        sampler: the reverse loop in validation; None is `Ancestral()`.
        batch_size: samples made at once, per device.
        seed: of the samples.
        test_n: how many samples in `test`.
        test_sampler: the reverse loop in `test`; None is `Ancestral()`, algorithm 2 at all times.
        split: which of the data's splits the samples are compared with.
        cache: keep references between runs.
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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, which is no batch: give at least 1")
        share(metrics)
        self.metrics, self.batch_size, self.seed, self.split, self.cache = metrics, batch_size, seed, split, cache
        self.protocol = {"val": (n, sampler or Ancestral()), "test": (test_n, test_sampler or Ancestral())}
        self._real: Any = None
        self._evaluation: Evaluation | None = None
        self._trained: tuple[int, float] | None = None  # the step and the moment at which training began

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Checks what can be checked before an hour is spent."""
        kind = "test" if stage == "test" else "val"
        n, sampler = self.protocol[kind]
        sampler.times(module.schedule)
        data: Any = getattr(trainer, "datamodule", None)
        if any(getattr(metric, "needs_reference", True) for metric in self.metrics):
            if not hasattr(data, "reference"):
                raise ValueError(
                    "GenerativeMetrics compares samples with real images, but the data has no reference(): "
                    "use a data module of diffusion_lightning.data or give yours that method"
                )
            self._real = data.reference(self.split)
            self._check_shape(list(self._real[0:1].shape[1:]), data, f"its reference({self.split!r})")
        metric: Any
        for metric in self.metrics:
            statistics = getattr(metric, "reference", None)
            if isinstance(statistics, dict) and "shape" in statistics:
                self._check_shape(statistics["shape"].tolist(), data, "the file of statistics")
            if hasattr(metric, "expect"):
                wanted = self._real is not None and getattr(metric, "needs_reference", True)
                metric.expect(n, len(self._real) if wanted else None)

    @staticmethod
    def _check_shape(shape: list[int], data: Any, other: str) -> None:
        own = getattr(data, "shape", None)
        if own is not None and shape != list(own):
            raise ValueError(
                f"the data's images have shape {list(own)}, but those of {other} have {shape}: compare images of one "
                "shape"
            )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._trained = trainer.global_step, time.monotonic()

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._evaluate(trainer, module, "test")

    def _evaluate(self, trainer: Trainer, module: Any, stage: str) -> None:
        began = time.monotonic()
        evaluation = self._evaluation = self._evaluation or self._prepared(trainer, module)
        n, sampler = self.protocol[stage]
        size = min(self.batch_size, n)
        evaluation.batch_size = size
        evaluation.expect(n, uncertainty=stage == "test")
        sampling = 0.0
        blocks = list(evaluation.blocks(n))
        for first, count in _bar(trainer, f"{stage}: samples", blocks):
            since = _now(module.device)
            samples = module.generate(count, sampler, seed=self.seed, first=first, batch_size=size)
            sampling += _now(module.device) - since
            evaluation.generated(samples, first)
        reading = 0.0  # the real images

        def watch(name: str, blocks: list[Block]) -> Iterable[Block]:
            nonlocal reading
            since = _now(module.device)
            yield from _bar(trainer, f"{stage}: {name}", blocks)
            reading += _now(module.device) - since

        values = evaluation.values(watch)
        scoring = _now(module.device) - began - sampling
        for key, value in values.items():
            module.log(f"{stage}/{key}", value, sync_dist=True)
        module.log("cost/sampling_seconds", sampling, sync_dist=True)
        module.log("cost/scoring_seconds", scoring, sync_dist=True)
        if trainer.is_global_zero:
            self._save_pictures(trainer)
            if self._trained is not None and trainer.state.fn == TrainerFn.FITTING:
                step, since = self._trained
                again = any(getattr(metric, "needs_reference", True) for metric in self.metrics)
                once = 0.0 if again else reading
                self._tell_cost(trainer, n, sampling, scoring - once, once, trainer.global_step - step, began - since)
        self._trained = None

    def _prepared(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        # Sums are float64, which Apple's devices lack: there the metrics stay on the CPU.
        device = torch.device("cpu") if module.device.type == "mps" else module.device
        return Evaluation(
            self.metrics,
            self._real,
            rank=trainer.global_rank,
            world=trainer.world_size,
            batch_size=self.batch_size,
            device=device,
            cache=cache_folder() / "references" if self.cache else None,
            agree=lambda holds: bool(trainer.strategy.reduce_boolean_decision(holds, all=True)),
        )

    def _save_pictures(self, trainer: Trainer) -> None:
        for metric in self.metrics:
            picture = getattr(metric, "picture", None)
            if isinstance(picture, torch.Tensor):
                path = Path(trainer.default_root_dir) / "closest_pairs.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(picture.squeeze(-1).numpy())
                image.save(path)
                for logger in trainer.loggers:
                    if hasattr(logger, "log_image"):
                        logger.log_image("closest_pairs", [image], step=max(trainer.global_step - 1, 0))

    @staticmethod
    def _tell_cost(
        trainer: Trainer, n: int, sampling: float, scoring: float, once: float, steps: int, seconds: float
    ) -> None:
        """Says once what this schedule of evaluations costs, by the steps done so far."""
        if steps < 1:
            return
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


def _now(device: torch.device) -> float:
    """The time, when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _bar(trainer: Trainer, name: str, blocks: list[Block]) -> Iterable[Block]:
    """The blocks, and a bar of the images done with the time left: for a person who waits, gone when it is over."""
    hidden = not trainer.is_global_zero or (trainer.state.fn == TrainerFn.FITTING and not sys.stderr.isatty())
    interval = 0.5 if sys.stderr.isatty() else 10.0
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    total = sum(size for _, size in blocks) * trainer.world_size
    with tqdm(desc=name, total=total, disable=hidden, leave=False, mininterval=interval, bar_format=form) as bar:
        for first, size in blocks:
            yield first, size
            bar.update(size * trainer.world_size)
