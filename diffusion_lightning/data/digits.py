"""The digits that scikit-learn ships: 1,797 handwritten digits of 8×8 pixels, no download."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from .base import Images


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
        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        y = torch.from_numpy(digits.target).long()
        chosen = self._held_out(y)
        if split == "train":
            chosen = ~chosen
        return images[chosen], y[chosen]

    def _held_out(self, y: Tensor) -> Tensor:
        """(N,) which are held out: by class the largest remainders of its share, evenly spaced within it."""
        share = torch.bincount(y).double() * self.held_out / len(y)
        counts = share.floor().long()
        most = torch.argsort(share - counts, descending=True, stable=True)
        counts[most[: self.held_out - int(counts.sum())]] += 1
        held = torch.zeros(len(y), dtype=torch.bool)
        for digit, count in enumerate(counts):
            of_class = (y == digit).nonzero()[:, 0]
            held[of_class[(2 * torch.arange(int(count)) + 1) * len(of_class) // (2 * int(count))]] = True
        return held
