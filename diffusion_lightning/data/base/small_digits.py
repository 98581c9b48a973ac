"""The 1,797 digits that scikit-learn ships, and which of them are held out."""

import torch
from torch import Tensor

from .held_out import held_out

HELD_OUT = 297
HIGHEST = 16  # of a pixel's values, from 0 on


def small_digits(train: bool) -> tuple[Tensor, Tensor]:
    """The training or the held-out ones: bytes 0 … 16 (N, 1, 8, 8) and which digits (N,) they are."""
    from sklearn.datasets import load_digits  # here: it takes a second, and `fit` imports this file

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    y = torch.from_numpy(digits.target).long()
    chosen = held_out(y, HELD_OUT)
    if train:
        chosen = ~chosen
    return images[chosen], y[chosen]
