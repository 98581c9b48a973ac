"""The base of metrics over a network's features: `update(images, real)` over bytes, `compute()`, and a reference.

Memory does not grow with the number of images, except for what a metric states that it keeps. An image's use depends on
its number within its set alone: so a value is the same on any number of devices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from .. import random

Reference = dict[str, Tensor]


class FeatureMetric(Metric, ABC):
    """A metric of generated images, and mostly of real ones beside them, over an extractor's features.

    What is made of the real images, `reference`, is made once: it outlives `reset`, and may be read from a file.

    Args:
        extractor: see the module; None is that of the first metric in a list of metrics.

    Raises:
        ValueError: if the extractor has no integer `num_features`, or no `classify` although the metric needs it.
    """

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False

    compares = True  # whether it needs real images at all
    classifies = False  # whether it needs the extractor's logits
    uncertainty = False  # whether to compute an error beside the value, if that costs more
    min_samples = 1
    kind = ""  # what the reference is made of: metrics of one kind and of equal settings may have one reference
    settings: tuple[Any, ...] = ()  # what it depends on, beside the extractor and the images

    name = ""
    suffix = ""
    num_features: int
    extractor: Any
    real_seen: Tensor
    fake_seen: Tensor

    def __init__(self, extractor: nn.Module | None, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": _summed_or_gathered, **kwargs})
        for side in ("real", "fake"):
            self.add_state(f"{side}_seen", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.reference: Reference | None = None
        self.expected: dict[bool, int | None] = {True: None, False: None}
        self._kept: list[FeatureBuffer] = []
        self.extractor = None
        if extractor is not None:
            self.over(extractor)

    def over(self, extractor: nn.Module) -> None:
        """Set the extractor of a metric that was built without one."""
        if not isinstance(getattr(extractor, "num_features", None), int):
            raise ValueError(
                f"the extractor {type(extractor).__name__} does not say how many features it gives: let it have an "
                "integer attribute num_features"
            )
        if self.classifies and not hasattr(extractor, "classify"):
            raise ValueError(
                f"{type(self).__name__} counts classes, but the extractor {type(extractor).__name__} gives none: let "
                "it have a method classify(images) -> (features, logits), or choose one that has, such as InceptionV3"
            )
        self.extractor = extractor.eval().requires_grad_(False)
        name = getattr(extractor, "name", type(extractor).__name__.lower())
        self.suffix = "" if name == "inception" else f"_{name}"
        self.num_features = extractor.num_features  # type: ignore[assignment]
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Add the states, whose size depends on the extractor."""

    def expect(self, generated: int, real: int | None, uncertainty: bool = False) -> None:
        """Set how many images will come; None if the reference is given.

        Raises:
            ValueError: if they are too few.
        """
        self.expected = {True: real, False: generated}
        self.uncertainty = uncertainty
        for kind, n in (("generated", generated), ("real", real)):
            if n is not None and n < self.min_samples:
                raise ValueError(self._too_few(kind, n))

    def _too_few(self, kind: str, n: int) -> str:
        return f"{type(self).__name__} needs at least {self.min_samples} images of a kind, but there are {n} {kind}"

    def update(self, images: Tensor, real: bool, index: Tensor | None = None) -> None:
        """Adds images, bytes (B, C, H, W), to the real or the generated side.

        Args:
            images: bytes.
            real: which side.
            index: (B,) their numbers within that side; None counts on.
        """
        if images.dtype != torch.uint8:
            raise ValueError(
                f"the images are {images.dtype}, but a metric takes bytes: pass them through images.to_uint8"
            )
        seen = self.real_seen if real else self.fake_seen
        if index is None:
            index = torch.arange(int(seen), int(seen) + len(images), device=images.device)
        seen += len(images)
        if real and not self.compares:
            return
        with torch.autocast(images.device.type, enabled=False):
            if self.classifies:
                features, logits = self.extractor.classify(images)
            else:
                features, logits = self.extractor(images), None
        self.add(images, features, logits, real, index)

    @abstractmethod
    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        """Add features (B, num_features), and logits (B, num_classes) if it `classifies`."""

    def compute(self) -> Any:
        """The value; the reference is computed first, if real images were shown.

        Raises:
            ValueError: if there are too few images of a kind.
        """
        for kind, n in (("generated", int(self.fake_seen)), ("real", int(self.real_seen))):
            if n < self.min_samples and (n > 0 or kind == "generated"):
                raise ValueError(self._too_few(kind, n))
        if self.kind and self.real_seen:
            self.reference = self.refer()
        if self.kind and self.reference is None:
            raise ValueError(f"{type(self).__name__} compares with real images, but none were shown: show some")
        return self.value()

    def refer(self) -> Reference:
        """The reference, computed from the real images; empty for a metric that keeps none."""
        return {}

    @abstractmethod
    def value(self) -> Any:
        """The value, from the images shown and `reference`."""

    @property
    def needs_reference(self) -> bool:
        """Whether real images have to be shown yet."""
        return self.compares and self.reference is None

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Merge the states of all ranks, including ranks without images."""
        for kept in self._kept:
            kept.fill()
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Forgets the generated images. The reference stays, or the real images of which none is made yet."""
        names = [] if self.reference is not None else [name for name in self._defaults if name.startswith("real_")]
        kept = {name: list(x) if isinstance(x := getattr(self, name), list) else x for name in names}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Module:
        """Move the reference together with the states."""
        if self.reference is not None:
            self.reference = {name: fn(x) for name, x in self.reference.items()}
        return super()._apply(fn, exclude_state)


def chosen(total: int | None, size: int, index: Tensor) -> Tensor:
    """(B,) which of the images with these numbers are among `size` chosen out of `total`; all if there are no more.

    The choice is a function of the two numbers alone, spread over all of the set.
    """
    if total is None or total <= size:
        return torch.ones_like(index, dtype=torch.bool)
    return torch.isin(index, _choice(total, size).to(index.device))


@lru_cache(maxsize=8)
def _choice(total: int, size: int) -> Tensor:
    return random.permutation(total, 0, "metrics: kept", 0)[:size]


class FeatureBuffer:
    """A metric's buffer of one side's features, kept as its states: of all images, or of `size` chosen ones."""

    def __init__(self, metric: FeatureMetric, real: bool, size: int) -> None:
        self.metric, self.real, self.size = metric, real, size
        self.name = "real" if real else "fake"
        for part in ("features", "index"):
            metric.add_state(f"{self.name}_{part}", [], dist_reduce_fx="cat")
        metric._kept.append(self)

    def fill(self) -> None:
        """Add empty tensors of the right shape if there are none, so that ranks can gather them."""
        if not self._list("index"):
            device = self.metric.device
            self._list("features").append(torch.zeros(0, self.metric.num_features, device=device))
            self._list("index").append(torch.zeros(0, dtype=torch.long, device=device))

    def add(self, features: Tensor, index: Tensor) -> None:
        wanted = chosen(self.metric.expected[self.real], self.size, index)
        self._list("features").append(features[wanted])
        self._list("index").append(index[wanted])

    def __call__(self) -> Tensor:
        """(min(n, size), d) in the order of the images' numbers."""
        features, index = (_joined(self._list(part)) for part in ("features", "index"))
        return features[index.argsort()]

    def _list(self, part: str) -> Any:
        return getattr(self.metric, f"{self.name}_{part}")


def _joined(parts: Any) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)


def gathered(x: Tensor) -> Tensor:
    """The rows of all ranks, in order; a rank without rows passes an empty tensor of as many dimensions."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return torch.cat([part for part in ([x] if alone else gather_all_tensors(x)) if len(part)])


def _summed_or_gathered(x: Tensor, group: Any = None) -> list[Tensor]:
    """Reduce a state over ranks as torchmetrics does; matrices by block, the only large states, are summed."""
    if x.ndim < 3 or not x.is_floating_point():
        return gather_all_tensors(x, group)
    total = x.clone()
    torch.distributed.all_reduce(total, group=group)
    return [total]
