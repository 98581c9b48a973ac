"""The digits that scikit-learn ships: 1,797 handwritten digits of 8×8 pixels, no download."""

from torch import Tensor

from .base import Images, small_digits
from .base.small_digits import HELD_OUT, HIGHEST


class Digits(Images):
    """1,500 images to train, 297 held out (`val` and `test`), pixels v = 0 … 16 as v/8 - 1.

    The split is by index: from each class, in proportion to its size, evenly spaced ones are held out.

    Source: Optical recognition of handwritten digits. Alpaydin, Kaynak, 1998, UCI machine learning repository, its
    test part, as `sklearn.datasets.load_digits` gives it.

    Args:
        batch_size: see `Images`.
        flip: see `Images`; mirrored digits are not digits.
        num_workers: see `Images`.
        seed: see `Images`.
    """

    shape = (1, 8, 8)
    levels = HIGHEST + 1
    held_out = HELD_OUT

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return small_digits(train=split == "train")
