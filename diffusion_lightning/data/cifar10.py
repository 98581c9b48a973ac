"""Colour photographs of ten kinds of things, 32×32 pixels."""

import torchvision.datasets

from .base import ByTorchvision


class CIFAR10(ByTorchvision):
    """50,000 photographs to train and 10,000 held out, (3, 32, 32), ten classes.

    It is downloaded if it is missing. `val` and `test` are the test set.

    Source: Learning multiple layers of features from tiny images. Krizhevsky, 2009, technical report, University of
    Toronto.

    Args:
        root: torchvision's root folder, which has `cifar-10-batches-py/`.
        kwargs: see `Images`.
    """

    shape = (3, 32, 32)
    source = torchvision.datasets.CIFAR10
    place = "cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html into {root}"
