"""Embeddings of classes: y (B,) to c (B, width), which a network adds to its embedding of the time."""

import torch
from torch import Tensor, nn

from .base import Conditioner


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

    def null(self, n: int) -> Tensor:
        return _trained(torch.full((n,), self.classes, device=self.table.weight.device), self.dropout)


class Labels(Conditioner):
    """The class itself, for a network that tells classes apart.

    Args:
        classes: how many.
        dropout: fraction of training labels replaced by the null condition, y = `classes`, in [0, 1), for a network
            that has a row for it; 0 is for one that has none.
    """

    none: Tensor

    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if classes < 1 or not 0 <= dropout < 1:
            raise ValueError(f"classes = {classes}, dropout = {dropout}: give classes ≥ 1 and dropout in [0, 1)")
        self.classes, self.dropout = classes, dropout
        self.register_buffer("none", torch.tensor([classes]), persistent=False)  # on the model's device

    def join(self, network: nn.Module) -> None:
        """Compares the classes with those that the network states, if it does.

        Raises:
            ValueError: if they differ in number, so that another class's row would be the null condition's.
        """
        theirs = getattr(network, "classes", self.classes)
        if theirs != self.classes:
            raise ValueError(
                f"the conditioner has {self.classes} classes, but {type(network).__name__} has {theirs}: give both "
                "the same number"
            )

    def forward(self, y: Tensor) -> Tensor:
        """(B,) y as it is."""
        return y

    def check(self, y: Tensor) -> None:
        check_classes(y, self.classes, null=self.dropout > 0)

    def check_training(self, y: Tensor) -> None:
        check_several(y, self.classes, "train on several classes")

    def default(self, number: Tensor) -> Tensor:
        """Each class in turn, so that many samples have all alike."""
        return number % self.classes

    def null(self, n: int) -> Tensor:
        return _trained(self.none.expand(n), self.dropout)


def _trained(null: Tensor, dropout: float) -> Tensor:
    """The null condition; raise ValueError if training never gave it."""
    if dropout == 0:
        raise ValueError(
            "guidance needs the null condition, but the conditioner's dropout is 0, so that training "
            "never gave it: leave guidance out, or train with dropout above 0"
        )
    return null


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
