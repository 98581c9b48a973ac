"""Which images are held out: evenly spaced ones, from each class in proportion to its size."""

import torch
from torch import Tensor


def held_out(y: Tensor, amount: float) -> Tensor:
    """(N,) whether each image is held out, a function of its place and its class.

    Args:
        y: (N,) the classes; equal ones if there are none.
        amount: a fraction of the images below 1, at least one of them, or how many; 0 holds none out.

    Raises:
        ValueError: if the amount is none, or leaves nothing to train on.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise ValueError(
            f"held_out is {amount}, which is no part of a set: give a fraction in [0, 1) or a whole number"
        )
    count = int(amount) if amount >= 1 or amount == 0 else max(1, round(amount * len(y)))
    if count >= len(y):
        raise ValueError(f"held_out is {amount}, but there are {len(y)} images, and some must train: hold fewer out")
    return _evenly(torch.unique(y, return_inverse=True)[1], count)


def _evenly(y: Tensor, count: int) -> Tensor:
    """Largest-remainder counts by class, evenly spaced within each class."""
    share = torch.bincount(y).double() * count / len(y)
    counts = share.floor().long()
    most = torch.argsort(share - counts, descending=True, stable=True)
    counts[most[: count - int(counts.sum())]] += 1
    held = torch.zeros(len(y), dtype=torch.bool)
    for k, n in enumerate(counts.tolist()):
        of_class = (y == k).nonzero()[:, 0]
        if n:
            held[of_class[(2 * torch.arange(n) + 1) * len(of_class) // (2 * n)]] = True
    return held
