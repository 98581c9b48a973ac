"""Pictures of clothes, 28×28 pixels, in the format of MNIST."""

from pathlib import Path
from typing import Any

import torchvision.datasets
from torch import Tensor

from .base import Images, downloaded, tensors


class FashionMNIST(Images):
    """60,000 clothes to train and 10,000 held out, (1, 28, 28), ten classes.

    It is downloaded where it is not there yet. `val` and `test` are the test set.

    Source: Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms. Xiao, Rasul, Vollgraf,
    2017, arXiv 1708.07747.

    Args:
        root: torchvision's root folder, which has `FashionMNIST/raw/`.
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
        place = f"the four files such as train-images-idx3-ubyte.gz, unpacked, into {self.root / 'FashionMNIST/raw'}"
        return downloaded(torchvision.datasets.FashionMNIST, self.root, place, download, train=train)
