"""Colour photographs of ten kinds of things, 32×32 pixels."""

from pathlib import Path
from typing import Any

import torchvision.datasets
from torch import Tensor

from .base import Images, downloaded, tensors


class CIFAR10(Images):
    """50,000 photographs to train and 10,000 held out, (3, 32, 32), ten classes.

    It is downloaded where it is not there yet. `val` and `test` are the test set.

    Source: Learning multiple layers of features from tiny images. Krizhevsky, 2009, technical report, University of
    Toronto.

    Args:
        root: torchvision's root folder, which has `cifar-10-batches-py/`.
        kwargs: see `Images`.
    """

    shape = (3, 32, 32)

    def __init__(self, root: str | Path = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        self._found(train=False, download=True)

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return tensors(self._found(train=split == "train"))

    def _found(self, train: bool, download: bool = False) -> Any:
        place = f"cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html into {self.root}"
        return downloaded(torchvision.datasets.CIFAR10, self.root, place, download, train=train)
