"""Pictures of clothes, 28×28 pixels, in the format of MNIST."""

import torchvision.datasets

from .base import ByTorchvision


class FashionMNIST(ByTorchvision):
    """60,000 clothes to train and 10,000 held out, (1, 28, 28), ten classes.

    It is downloaded if it is missing. `val` and `test` are the test set.

    Source: Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms. Xiao, Rasul, Vollgraf,
    2017, arXiv 1708.07747.

    Args:
        root: torchvision's root folder, which has `FashionMNIST/raw/`.
        kwargs: see `Images`.
    """

    shape = (1, 28, 28)
    source = torchvision.datasets.FashionMNIST
    place = "the four files such as train-images-idx3-ubyte.gz, unpacked, into {root}/FashionMNIST/raw"
