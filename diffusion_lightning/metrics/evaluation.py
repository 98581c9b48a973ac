"""Generated images scored against real ones: the loop that training, `test` and `score` share.

A metric is any of torchmetrics' kind: `update(images, real)`, or `update(images)` if it takes generated images
alone, then `compute()` and `reset()`. What it may have beside these, as the metrics of this package do, is used:

- `update(…, index)`: the images' numbers, so that a value does not depend on who made which;
- `update(…, captions)`: what the images were made for, or None if there is none;
- `expect(generated, real, uncertainty)`: how many will come, given in advance;
- `reference`, `needs_reference`, and its `kind` and `settings`: statistics of the real images, kept in a file;
- `exchange()`: called by every process between the last generated image and the first real one;
- `extractor`: called once for each batch, however many metrics have an equal one.
"""

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .. import images as pixels
from .. import random
from ..files import sweep
from .statistics import keep, kept

Block = tuple[int, int]  # the first number, and how many
Watch = Callable[[str, list[Block]], Iterable[Block]]


class Pictures(Protocol):
    """Images (N, C, H, W) as bytes or in [-1, 1], in slices: a tensor, or an object that reads them when indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice, /) -> Tensor: ...


class Shared(nn.Module):
    """An extractor that caches its last output, so that several metrics call it once a batch.

    Args:
        extractor: the extractor.
        key: its fingerprint.
    """

    def __init__(self, extractor: nn.Module, key: str) -> None:
        super().__init__()
        self.extractor, self.key = extractor, key
        self._of: Tensor | None = None
        self._answer: tuple[Tensor, Tensor | None]
        for name in ("num_features", "num_classes", "name", "distance", "channels"):
            if hasattr(extractor, name):
                setattr(self, name, getattr(extractor, name))
        if hasattr(extractor, "classify"):
            self.classify = self._ask

    def forward(self, images: Tensor) -> Tensor:
        return self._ask(images)[0]

    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._of is not images:
            classify = getattr(self.extractor, "classify", None)
            self._of, self._answer = images, classify(images) if classify else (self.extractor(images), None)
        return self._answer


def share(metrics: Iterable[Metric]) -> None:
    """Let metrics whose extractors are equal, in kind, settings and weights, share one.

    A metric without one gets that of the first metric.
    """
    known: dict[str, Shared] = {}
    metric: Any
    for metric in metrics:
        if hasattr(metric, "over") and metric.extractor is None:
            if not known:
                raise ValueError(
                    f"{type(metric).__name__} is the first of the metrics and has no extractor: give it one"
                )
            metric.over(next(iter(known.values())))
        extractor = getattr(metric, "extractor", None)
        if isinstance(extractor, Shared):
            metric.extractor = known.setdefault(extractor.key, extractor)
        elif isinstance(extractor, nn.Module):
            key = fingerprint(extractor)
            metric.extractor = known.setdefault(key, Shared(extractor, key))


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's class and the files that define it, its plain attributes, structure and weights."""
    plain = {k: v for k, v in sorted(vars(module).items()) if isinstance(v, int | float | str | tuple | None)}
    plain.pop("training", None)
    digest = hashlib.blake2b(f"{type(module).__module__}.{type(module).__qualname__} {plain} {module!r}".encode())
    for kind in takewhile(lambda kind: kind is not nn.Module, type(module).__mro__):
        source = getattr(inspect.getmodule(kind), "__file__", None)
        if source is not None:
            digest.update(Path(source).read_bytes())
    for name, x in module.state_dict().items():
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def digest(images: Pictures) -> str:
    """A hash of a set of images: its own `digest()`, if it has one."""
    own: Any = images
    return own.digest() if hasattr(own, "digest") else hashed(images)


def hashed(images: Pictures, batch_size: int = 1024) -> str:
    """A hash of the bytes of a set of images."""
    found = hashlib.blake2b()
    for first in range(0, len(images), batch_size):
        found.update(pixels.to_uint8(images[first : first + batch_size]).contiguous().numpy().data)
    return found.hexdigest()[:32]


def _unseen(name: str, blocks: list[Block]) -> Iterable[Block]:
    return blocks


class Evaluation:
    """The metrics of one rank, and its shard of the images.

    Every rank makes and scores its own blocks of sample numbers, in turn, and waits for no other until the sums are
    reduced.

    Args:
        metrics: see the module.
        real: the real images, the same for every process; None where every metric has its reference.
        rank: this process's number.
        world: how many processes there are.
        batch_size: images a block.
        device: where the metrics work.
        cache: folder of references; None keeps none.
        agree: whether something holds on every process; a collective call.
    """

    def __init__(
        self,
        metrics: list[Metric],
        real: Pictures | None,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        self.metrics, self.real, self.rank, self.world, self.batch_size = metrics, real, rank, world, batch_size
        self.device, self.cache = torch.device(device), cache
        # Those that are to be compared with the real images themselves, and not with a file that was given.
        self._compared = {id(metric) for metric in metrics if _wants_real(metric)}
        self._keep: set[int] = set()  # those of torchmetrics that keep the real images when they are reset
        self._agree = agree
        self._files: dict[int, tuple[Path, str]] = {}  # where references will be kept that have to be made first
        share(metrics)
        if cache is not None:
            sweep(cache, "*.npz.*.part")
        metric: Any
        for metric in metrics:
            if cache is not None and real is not None and getattr(metric, "kind", None) and metric.needs_reference:
                self._files[id(metric)] = self._file(metric)
        self._look(warn=rank == 0)
        for metric in metrics:
            metric.to(self.device)

    def _look(self, warn: bool = False) -> None:
        """Read the references that the cache has, if every rank can read them; a collective call."""
        metric: Any
        for metric in self.metrics:
            if id(metric) not in self._files:
                continue
            file, of = self._files[id(metric)]
            found = None
            try:
                found = kept(file, of)
            except ValueError as error:
                if warn:
                    warnings.warn(f"the reference {file} {error}: it is made again", stacklevel=2)
            if self._agree(found is not None):
                metric.reference = {name: x.to(self.device) for name, x in found.items()}  # type: ignore[union-attr]
                del self._files[id(metric)]

    def _file(self, metric: Any) -> tuple[Path, str]:
        """The file that keeps the metric's reference between runs, and the text of all that it depends on."""
        assert self.cache is not None
        shape = list(self.real[0:1].shape[1:])  # type: ignore[index]
        text = f"{metric.kind} {metric.settings} {metric.extractor.key} {self._digest} {shape}"
        name = re.sub(r"\W", "_", str(getattr(metric.extractor, "name", "features")))
        key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        return self.cache / f"{metric.kind}-{name}-{'x'.join(map(str, shape))}-{key}.npz", text

    @cached_property
    def _digest(self) -> str:
        assert self.real is not None
        return digest(self.real)

    def blocks(self, n: int) -> Iterator[Block]:
        """The blocks of this process, of the numbers 0 … n - 1, as pairs (first, size)."""
        return random.blocks(0, n, self.batch_size, self.rank, self.world)

    def expect(self, n: int, uncertainty: bool = False) -> None:
        """Forget the images of the last round, and set how many generated ones will come; a collective call."""
        self._look()  # another callback may have made a reference since
        for metric in self.metrics:
            self._expect(metric, n, uncertainty)

    def _expect(self, metric: Any, n: int, uncertainty: bool = False) -> None:
        metric.reset()
        if hasattr(metric, "expect"):
            compared = self.real is not None and id(metric) in self._compared
            metric.expect(n, len(self.real) if compared else None, uncertainty)  # type: ignore[arg-type]

    def enough(self, metric: Metric, n: int) -> bool:
        """Whether so many images are enough for one of the metrics: as many as features, or as a subset of KID has."""
        try:
            self._expect(metric, n)
        except ValueError:
            return False
        return True

    @property
    def takes_captions(self) -> bool:
        """Whether a metric compares images with their captions."""
        return any("captions" in inspect.signature(metric.update).parameters for metric in self.metrics)

    def generated(self, images: Tensor, first: int, captions: Sequence[str] | None = None) -> None:
        """Adds generated images (B, C, H, W), bytes or in [-1, 1], numbered from `first` on, and their captions."""
        self._update(self.metrics, images, first, real=False, captions=captions)

    def score(self, images: Pictures, uncertainty: bool = False, watch: Watch = _unseen) -> dict[str, Any]:
        """The values of a set of images: one round."""
        self.expect(len(images), uncertainty)
        for first, size in watch("generated", list(self.blocks(len(images)))):
            self.generated(images[first : first + size], first)
        return self.values(watch)

    def values(self, watch: Watch = _unseen) -> dict[str, Any]:
        """Show the real images to the metrics that need them, reduce over ranks and compute.

        Args:
            watch: given a name and this process's blocks of real images, gives them one by one: a bar.
        """
        metric: Any
        for metric in self.metrics:
            if hasattr(metric, "exchange"):
                metric.exchange()
        waiting = [metric for metric in self.metrics if _wants_real(metric) and id(metric) not in self._keep]
        self._keep |= {id(metric) for metric in waiting if getattr(metric, "reset_real_features", True) is False}
        if waiting and self.real is not None:
            for first, size in watch("real images", list(self.blocks(len(self.real)))):
                self._update(waiting, self.real[first : first + size], first, real=True)
        found: dict[str, Any] = {}
        for metric in self.metrics:
            found |= _named(metric, metric.compute())
            file, of = self._files.pop(id(metric), (None, ""))
            if file is not None and self.rank == 0:
                try:
                    keep(file, metric.reference, of)
                except OSError as error:  # a value that took hours is not lost for a cache
                    warnings.warn(f"the reference is not kept for later runs: {file}: {error.strerror}", stacklevel=2)
        return found

    def _update(
        self, metrics: list[Metric], images: Tensor, first: int, real: bool, captions: Sequence[str] | None = None
    ) -> None:
        # In one memory format, on which the last bit of a convolution depends.
        images = pixels.to_uint8(images).to(self.device).clone(memory_format=torch.contiguous_format)
        index = torch.arange(first, first + len(images), device=self.device)
        for metric in metrics:
            takes = inspect.signature(metric.update).parameters
            own = {"real": real, "index": index, "captions": captions}
            metric.update(images, **{name: value for name, value in own.items() if name in takes})


def _wants_real(metric: Metric) -> bool:
    """Whether the real images are to be shown in this round."""
    if hasattr(metric, "needs_reference"):
        return bool(metric.needs_reference)
    return "real" in inspect.signature(metric.update).parameters


def _named(metric: Metric, values: Any) -> dict[str, Any]:
    """A metric's value under its name, the members of a dict under their own, a pair as mean and standard deviation."""
    if isinstance(values, dict):
        return values
    name = getattr(metric, "name", None) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(metric).__name__).lower()
    if isinstance(values, tuple | list):
        return {f"{name}_{part}": value for part, value in zip(("mean", "std"), values, strict=True)}
    return {name: values}
