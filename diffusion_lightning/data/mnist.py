"""Handwritten digits, 28×28 pixels."""

from pathlib import Path
from typing import Any

import torchvision.datasets
from torch import Tensor

from .base import Images, downloaded, tensors


class MNIST(Images):
    """60,000 digits to train and 10,000 held out, (1, 28, 28), the digit as class.

    It is downloaded where it is not there yet. `val` and `test` are the test set.

    Source: Gradient-based learning applied to document recognition. LeCun, Bottou, Bengio, Haffner, 1998,
    Proceedings of the IEEE 86 (11).

    Args:
        root: torchvision's root folder, which has `MNIST/raw/`.
        kwargs: see `Images`.
    """

    shape = (1, 28, 28)

    def __init__(self, root: str | Path = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def prepare_data(self) -> None:
        self._found(train=False, download=True)

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return tensors(self._found(train=split == "train"))

    def _found(self, train: bool, download: bool = False) -> Any:
        place = f"the four files such as train-images-idx3-ubyte.gz, unpacked, into {self.root / 'MNIST/raw'}"
        return downloaded(torchvision.datasets.MNIST, self.root, place, download, train=train)
