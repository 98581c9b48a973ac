"""Samples scored against real images, round after round: the base of the callbacks that do so."""

import sys
import time
from abc import ABC
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from ... import random
from ...distributed.ranks import check_same
from ...files import cache_folder
from ...guidance import Guided
from ...metrics.evaluation import Block, Evaluation, Shared, digest, share
from ...modules.base.generative import generative
from ...samplers import Sampler


class Round(NamedTuple):
    """The values of a round, and the time it took."""

    values: dict[str, Any]
    made: int  # samples of this rank
    sampling: float  # seconds
    scoring: float  # seconds, with those of reading
    reading: float  # seconds over the real images


class Scoring(Callback, ABC):
    """Every rank makes and scores its own blocks of sample numbers, and the metrics add up what they have.

    Args:
        metrics: those of `diffusion_lightning.metrics`, or any of torchmetrics' kind over bytes.
        batch_size: samples made at once, per device.
        seed: of the samples.
        split: which of the data's splits the samples are compared with.
        cache: keep references between runs.
    """

    def __init__(self, metrics: list[Metric], batch_size: int, seed: int, split: str, cache: bool) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, which is no batch: give at least 1")
        share(metrics)
        self.metrics, self.batch_size, self.split, self.cache = metrics, batch_size, split, cache
        self.seed = random.check_seed(seed, f"{type(self).__name__}'s seed")
        self._real: Any = None
        self._evaluation: Evaluation | None = None

    @property
    def compares(self) -> bool:
        """Whether a metric needs the real images."""
        return any(getattr(metric, "needs_reference", True) for metric in self.metrics)

    def check(self, trainer: Trainer, n: int) -> None:
        """Find the real images and references; raise ValueError at the start if n samples cannot be scored."""
        random.check_numbers(0, n)
        data: Any = getattr(trainer, "datamodule", None)
        if self.compares:
            if not hasattr(data, "reference"):
                raise ValueError(
                    f"{type(self).__name__} compares samples with real images, but the data has no reference(): "
                    "use a data module of diffusion_lightning.data or give yours that method"
                )
            self._real = data.reference(self.split)
            _check_shape(list(self._real[0:1].shape[1:]), data, f"its reference({self.split!r})")
        metric: Any
        for metric in self.metrics:
            statistics = getattr(metric, "reference", None)
            if isinstance(statistics, dict) and "shape" in statistics:
                _check_shape(statistics["shape"].tolist(), data, "the file of statistics")
        # What the cache holds is read now: what is wrong with it costs a warning, and no evaluation hours later.
        self._evaluation = self._evaluation or self._prepared(trainer)
        if self._evaluation.takes_captions and generative(trainer.lightning_module, self).captions(0, 1) is None:
            raise ValueError(
                f"{type(self).__name__} has a metric of images with captions, but the model has no captions: leave "
                "that metric out, or give the model a conditioner of captions, such as TextEncoder"
            )
        self._evaluation.expect(n)

    def round(
        self,
        trainer: Trainer,
        module: LightningModule,
        name: str,
        n: int,
        sampler: Sampler | None,
        uncertainty: bool = False,
        guidance: Guided = None,
    ) -> Round:
        """Samples number 0 … n - 1 generated and scored; the name is that of the bars."""
        began, maker = time.monotonic(), generative(module, self)
        evaluation = self._evaluation
        assert evaluation is not None
        evaluation.batch_size = size = min(self.batch_size, n)
        evaluation.expect(n, uncertainty)
        sampling = reading = 0.0
        blocks = list(evaluation.blocks(n))
        for first, count in _bar(trainer, f"{name}: samples", blocks):
            since = now(module.device)
            samples = maker.generate(count, sampler, guidance=guidance, seed=self.seed, first=first, batch_size=size)
            sampling += now(module.device) - since
            captions = maker.captions(first, count, guidance) if evaluation.takes_captions else None
            evaluation.generated(samples, first, captions)

        def watch(kind: str, blocks: list[Block]) -> Iterable[Block]:
            nonlocal reading
            since = now(module.device)
            yield from _bar(trainer, f"{name}: {kind}", blocks)
            reading += now(module.device) - since

        values = evaluation.values(watch)
        made = sum(count for _, count in blocks)
        return Round(values, made, sampling, now(module.device) - began - sampling, reading)

    def floor(self, trainer: Trainer, name: str, split: str, n: int) -> dict[str, Any]:
        """What the first n real images of a split, which no model was trained on, are worth, or all of fewer.

        By the metrics for which they are enough; empty if the data have no such split. A collective call.
        """
        data: Any = getattr(trainer, "datamodule", None)
        evaluation = self._evaluation
        if evaluation is None or not self.compares or evaluation.takes_captions:
            return {}
        if split == self.split or split not in getattr(data, "splits", {}) or not len(data.reference(split)):
            return {}
        held_out = First(data.reference(split), n)
        evaluation.batch_size = min(self.batch_size, len(held_out))
        every = evaluation.metrics
        evaluation.metrics = [metric for metric in every if evaluation.enough(metric, len(held_out))]
        try:
            values = evaluation.score(held_out, watch=lambda kind, blocks: _bar(trainer, f"{name}: {kind}", blocks))
        finally:
            evaluation.metrics = every
        return {**values, "images": float(len(held_out))} if values else {}

    def _prepared(self, trainer: Trainer) -> Evaluation:
        # Sums are float64, which Apple's devices lack: there the metrics stay on the CPU.
        device: torch.device = trainer.strategy.root_device
        device = torch.device("cpu") if device.type == "mps" else device
        if trainer.world_size > 1:  # of other images each would make its part of one reference, and keep it
            check_same(
                "real images to compare samples with", self._compared(), "give all ranks the same data and files"
            )
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

    def _compared(self) -> dict[str, str]:
        """Hashes of all that a reference is made of: the real images and the extractors."""
        found = {} if self._real is None else {"hash of the images": digest(self._real)}
        metric: Any
        for metric in self.metrics:
            if isinstance(extractor := getattr(metric, "extractor", None), Shared):
                found[f"extractor of {type(metric).__name__}"] = extractor.key
        return found


class First:
    """The first n of a set of images, or all of fewer.

    Args:
        images: bytes (N, C, H, W), which are read in slices.
        n: how many.
    """

    def __init__(self, images: Any, n: int) -> None:
        self.images, self.n = images, min(n, len(images))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, which: slice) -> Tensor:
        return self.images[slice(*which.indices(self.n))]


def _check_shape(shape: list[int], data: Any, other: str) -> None:
    own = getattr(data, "shape", None)
    if own is not None and shape != list(own):
        raise ValueError(
            f"the data's images have shape {list(own)}, but those of {other} have {shape}: compare images of one shape"
        )


def now(device: torch.device) -> float:
    """The time in seconds, once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _bar(trainer: Trainer, name: str, blocks: list[Block]) -> Iterable[Block]:
    """The blocks, and a bar of the images done with the time left, which disappears at the end."""
    hidden = not trainer.is_global_zero or (trainer.state.fn == TrainerFn.FITTING and not sys.stderr.isatty())
    interval = 0.5 if sys.stderr.isatty() else 10.0
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    total = sum(size for _, size in blocks) * trainer.world_size
    with tqdm(desc=name, total=total, disable=hidden, leave=False, mininterval=interval, bar_format=form) as bar:
        for first, size in blocks:
            yield first, size
            bar.update(size * trainer.world_size)
