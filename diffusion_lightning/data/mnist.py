"""Handwritten digits, 28×28 pixels."""

import torchvision.datasets

from .base import ByTorchvision


class MNIST(ByTorchvision):
    """60,000 digits to train and 10,000 held out, (1, 28, 28), the digit as class.

    It is downloaded if it is missing. `val` and `test` are the test set.

    Source: Gradient-based learning applied to document recognition. LeCun, Bottou, Bengio, Haffner, 1998,
    Proceedings of the IEEE 86 (11).

    Args:
        root: torchvision's root folder, which has `MNIST/raw/`.
        kwargs: see `Images`.
    """

    shape = (1, 28, 28)
    source = torchvision.datasets.MNIST
    place = "the four files such as train-images-idx3-ubyte.gz, unpacked, into {root}/MNIST/raw"
