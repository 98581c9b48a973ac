"""The digits that scikit-learn ships: 1,797 handwritten digits of 8×8 pixels, no download."""

import torch
from torch import Tensor

from .base import Images, held_out


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
    levels = 17
    held_out = 297

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits  # here: it takes a second, and `fit` imports this file

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        y = torch.from_numpy(digits.target).long()
        chosen = held_out(y, self.held_out)
        if split == "train":
            chosen = ~chosen
        return images[chosen], y[chosen]
