"""A set's images split after split, so that a split is a slice of one block of bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .held_out import held_out

STANDS_IN = {"train": ("train",), "val": ("val", "test", "train"), "test": ("test", "val", "train")}
NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}  # in lower case
SHARE = 0.05  # held out by default, if the set has no splits of its own


@dataclass(frozen=True)
class Splits:
    """Images (N, C, H, W), labels (N,), and of each split its first place and the place after its last."""

    images: Tensor
    y: Tensor
    places: dict[str, tuple[int, int]]

    def __getitem__(self, split: str) -> tuple[Tensor, Tensor]:
        """Of `train`, `val` or `test`; if the set has only one of the last two, it is both."""
        start, end = next(self.places[name] for name in STANDS_IN[split] if name in self.places)
        return self.images[start:end], self.y[start:end]

    def of(self, kept: Tensor) -> "Splits":
        """The same, where `images` are those of the numbers `kept` alone, in order.

        Raises:
            ValueError: if no image of a split is kept.
        """
        places = {
            name: (int((kept < start).sum()), int((kept < end).sum())) for name, (start, end) in self.places.items()
        }
        if empty := [name for name, (start, end) in places.items() if start == end]:
            raise ValueError(f"none of the pictures of {empty[0]} can be read, but of others some can: fix them")
        return Splits(self.images, self.y[kept], places)


def arrange(sets: dict[str, Tensor], amount: float | None) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """The order (N,) in which a set's images are stored, and each split's first and last place in it.

    Args:
        sets: the labels (N,) of the set's own splits `train` and, if it has them, `val` and `test`.
        amount: how much of `train` is held out, see `held_out`; None for the set's own splits, or a twentieth.

    Raises:
        ValueError: if an amount is given beside own splits.
    """
    y = torch.cat(list(sets.values()))
    if len(sets) > 1:
        if amount is not None:
            others = " and ".join(name for name in sets if name != "train")
            raise ValueError(f"held_out is {amount}, but the set has its own {others}: leave held_out out")
        ends = np.cumsum([len(part) for part in sets.values()]).tolist()
        return torch.arange(len(y)), dict(zip(sets, zip([0, *ends], ends, strict=False), strict=True))
    held = held_out(y, SHARE if amount is None else amount)
    if not held.any():
        rank_zero_warn(
            "held_out is 0: val and test are the training images, and their loss is that of the training set"
        )
        return torch.arange(len(y)), {"train": (0, len(y))}
    n, train = len(y), int((~held).sum())
    order = torch.cat([(~held).nonzero()[:, 0], held.nonzero()[:, 0]])
    return order, {"train": (0, train), "val": (train, n)}


def own_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Which of the names are splits: of `train`, `val` and `test` each one that there is, in any case of letters.

    Raises:
        ValueError: if two names differ by the case of their letters alone.
    """
    names, found = sorted(names), {}
    for split, usual in NAMES.items():
        for name in usual:
            alike = [other for other in names if other.lower() == name]
            if len(alike) > 1:
                raise ValueError(f"{where} has {' and '.join(alike)}, which are both its {split}: rename or remove one")
            if alike:
                found[split] = alike[0]
                break
    return found


def whole_numbers(values: ArrayLike, name: str, n: int) -> Tensor:
    """Labels (n,) as int64.

    Raises:
        ValueError: if they are not whole numbers from 0 on, or not one an image.
    """
    labels = _array(values)
    holds = "records" if labels.dtype.names else str(labels.dtype)
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.dtype == np.dtype(object):
        odd = [_kind(value) for value in labels.flat if type(value) is not int]
        holds, whole = odd[0] if odd else holds, not odd
    if not whole:
        raise ValueError(f"{name} holds {holds}, but a label is the whole number of a class: number the classes")
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {list(labels.shape)}, but there are {n} images: give each one label")
    for value in (int(labels.min()), int(labels.max())):
        if not 0 <= value < 2**63:
            raise ValueError(f"{name} holds {value}, but classes are numbered from 0 on, below 2^63: number them so")
    return torch.from_numpy(labels.astype(np.int64))


def _array(values: ArrayLike) -> NDArray[Any]:
    """Values as an array; of Python's own ones if they are lists of several lengths, or numpy would round them."""
    try:
        found = np.asarray(values)
    except ValueError:  # lists of several lengths
        return np.fromiter(values, object)  # type: ignore[arg-type]
    # Numbers below 2^64 beside smaller ones become floats.
    return np.asarray(values, object) if found.dtype.kind == "f" and not isinstance(values, np.ndarray) else found


def _kind(value: Any) -> str:
    known = {"list": "lists", "tuple": "lists", "ndarray": "lists", "dict": "records", "NoneType": "gaps"}
    return known.get(type(value).__name__, type(value).__name__)


def check_labels(y: Tensor, name: str) -> None:
    """Raise ValueError if all images are of one class."""
    if (y == y[0]).all():
        raise ValueError(f"{name} has one class alone, {int(y[0])}, but a condition needs two: leave the labels out")
