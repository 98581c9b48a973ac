"""Embeddings of conditions: raw y (B,) to c (B, width), which a network adds to its embedding of the time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from .random import Draw

Asked = int | str | Sequence[int | str] | Tensor  # one condition for all samples, or one for each
SHOWN = 10  # names of classes in a sentence


class Conditioner(nn.Module, ABC):
    """Embed y as c; give the null condition, and how often training drops y for it."""

    dropout = 0.0
    conditional = True  # whether the network takes a condition

    def join(self, network: nn.Module) -> None:
        """Takes over what it was not given from the network that it serves, before anything else is called."""

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor | None:
        """(B, width) for (B,) conditions; None if the network is given none."""

    def check(self, y: Tensor) -> None:
        """Raise ValueError if one of these is not a condition of this model; the message names it."""

    def check_training(self, y: Tensor) -> None:
        """Raise ValueError if a training set of these conditions (N,) teaches nothing about them."""

    @abstractmethod
    def default(self, number: Tensor) -> Tensor:
        """(B,) the condition of samples of these numbers (B,), for which the user gives none."""

    def dropped(self, y: Tensor, draw: Draw) -> Tensor:
        """(B,) conditions of a draw's samples, a fraction `dropout` of them replaced by the null condition."""
        return y

    def null(self, n: int) -> Tensor:
        """(n,) the null condition, on the device of the conditioner's weights.

        Raises:
            ValueError: if there is none, or training never gives it.
        """
        raise ValueError(f"guidance needs the null condition, but {type(self).__name__} has none: leave guidance out")


class Unconditional(Conditioner):
    """c = None: the network sees the image and the time alone."""

    conditional = False

    def forward(self, y: Tensor) -> None:
        return None

    def default(self, number: Tensor) -> Tensor:
        return torch.zeros_like(number)


class ClassLabels(Conditioner):
    """A row of a table for each class, and with dropout one more for the null condition, y = `classes`.

    Papers: Diffusion models beat GANs on image synthesis. Dhariwal, Nichol, 2021, arXiv 2105.05233, section 2.2 (added
    to the time's embedding); Classifier-free diffusion guidance. Ho, Salimans, 2022, arXiv 2207.12598, algorithm 1.

    Args:
        classes: how many.
        width: of the embedding; None asks the network for its `condition_width` (a `UNet`'s 4·channels, a `DiT`'s
            width).
        dropout: fraction of training labels replaced by the null condition, in [0, 1); 0 keeps no row for it.
        std: standard deviation of the rows at the start.
    """

    def __init__(self, classes: int, width: int | None = None, dropout: float = 0.1, std: float = 0.02) -> None:
        super().__init__()
        if classes < 1 or (width is not None and width < 1) or not 0 <= dropout < 1:
            raise ValueError(
                f"classes = {classes}, width = {width}, dropout = {dropout} describe no table: give classes ≥ 1, "
                "width ≥ 1 and dropout in [0, 1)"
            )
        self.classes, self.dropout, self.std = classes, dropout, std
        if width is not None:
            self._make(width)

    def _make(self, width: int) -> None:
        self.table = nn.Embedding(self.classes + (self.dropout > 0), width)
        nn.init.normal_(self.table.weight, std=self.std)

    def join(self, network: nn.Module) -> None:
        """Makes the table as wide as the network's conditions, if no width was given.

        Raises:
            ValueError: if the network does not state one.
        """
        if "table" in self._modules:
            return
        width = getattr(network, "condition_width", None)
        if width is None:
            raise ValueError(
                f"ClassLabels has no width, and {type(network).__name__} states no condition_width: give ClassLabels "
                "the width that the network takes"
            )
        self._make(width)

    def forward(self, y: Tensor) -> Tensor:
        return self.table(y)

    def check(self, y: Tensor) -> None:
        check_classes(y, self.classes, null=self.table.num_embeddings > self.classes)

    def check_training(self, y: Tensor) -> None:
        check_several(y, self.classes, "leave the conditioner out")

    def default(self, number: Tensor) -> Tensor:
        """Each class in turn, so that many samples have all alike."""
        return number % self.classes

    def dropped(self, y: Tensor, draw: Draw) -> Tensor:
        if not self.dropout:
            return y
        return torch.where(draw.fractions("label dropout").to(y.device) < self.dropout, self.classes, y)

    def null(self, n: int) -> Tensor:
        if self.dropout == 0:
            raise ValueError(
                "guidance needs the null condition, but the conditioner's dropout is 0, so that training "
                "never gave it: leave guidance out, or train with dropout above 0"
            )
        return torch.full((n,), self.classes, device=self.table.weight.device)


class Labels(Conditioner):
    """The class itself, for a network that tells classes apart.

    Args:
        classes: how many.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, y: Tensor) -> Tensor:
        """(B,) y as it is."""
        return y

    def check(self, y: Tensor) -> None:
        check_classes(y, self.classes)

    def check_training(self, y: Tensor) -> None:
        check_several(y, self.classes, "train on several classes")

    def default(self, number: Tensor) -> Tensor:
        """Each class in turn, so that many samples have all alike."""
        return number % self.classes


def check_classes(y: Tensor, classes: int, null: bool = False) -> None:
    """Raise ValueError if y is not (B,) whole numbers of classes, or of the `null` condition, y = `classes`."""
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        found = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"the labels are {found.removeprefix('torch.')}, but a class is one whole number an image: give (B,) "
            f"int64, 0 … {classes - 1}"
        )
    strays = y[(y < 0) | (y >= classes + null)]
    if len(strays):
        raise ValueError(
            f"a label is {int(strays[0])}, but the model has {classes} classes: give labels 0 … {classes - 1}"
            + (f", or {classes} for the null condition" if null else "")
        )


def check_several(y: Tensor, classes: int, fix: str) -> None:
    """Raise ValueError if the labels of a training set are all of one class."""
    if (y == y[0]).all():
        raise ValueError(
            f"the conditioner has {classes} classes, but all training images are of class {int(y[0])}: let "
            f"the data give the classes, or {fix}"
        )


def conditions(y: Asked, n: int, names: Sequence[str] | None = None) -> Tensor:
    """(n,) conditions of n samples: a class is given by its number, or by its name if the classes have names.

    Args:
        y: one for all samples, or one for each.
        n: how many samples.
        names: those of class 0, 1, …; None if they have none.

    Raises:
        ValueError: if there is no class of a name.
    """
    if isinstance(y, str):
        y = _number(y, names)
    elif isinstance(y, Sequence):
        y = [_number(one, names) if isinstance(one, str) else one for one in y]
    found = torch.as_tensor(y)
    if not found.is_floating_point() and found.dtype != torch.bool:
        found = found.long()
    return found if found.ndim else found.expand(n)


def _number(name: str, names: Sequence[str] | None) -> int:
    if not names:
        raise ValueError(f"y is {name}, but the model has no names of its classes: give the class by its number")
    if name in names:
        return list(names).index(name)
    folded = {other.casefold(): other for other in names}
    near = [folded[other] for other in get_close_matches(name.casefold(), folded)]
    known = ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
    raise ValueError(
        f"y is {name}, but the model has no class of this name"
        + (f" (did you mean {' or '.join(near)}?)" if near else "")
        + f": give one of {known}"
    )
