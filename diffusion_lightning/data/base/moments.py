"""Moments of latents in the place of images: rows (mirrors, moments, C', H', W') of each image, in batches.

The first mirror is the image, the second one, if there is one, the flipped image; the moments are the mean and, if the
first stage has one, the log-variance.
"""

import torch
from torch import Tensor

from ...networks.base.moments import Moments
from .images import Bytes


def packed(mirrors: list[Moments], dtype: torch.dtype) -> Tensor:
    """Rows (B, mirrors, moments, C', H', W') of the moments of each mirror of B images."""
    return torch.stack([torch.stack([x for x in one if x is not None], 1) for one in mirrors], 1).to(dtype)


def unpacked(rows: Tensor) -> Moments:
    """Moments of rows (B, moments, C', H', W') of one mirror."""
    return Moments(rows[:, 0], rows[:, 1] if rows.shape[1] > 1 else None)


class MomentsOfBatches(Bytes):
    """Batches of moments in the place of images, those of the flipped image where `Bytes` would flip it."""

    def taken(self, indices: Tensor, flip: Tensor | None) -> Moments:
        return unpacked(self.images[indices, 0 if flip is None else flip.long()])


class MomentsOfSplit:
    """The moments of all images of a split, unflipped and in the set's own order; float32, in slices.

    Args:
        rows: (N, mirrors, moments, C', H', W').
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | list[int] | Tensor) -> Moments:
        return unpacked(self.rows[which][:, 0]).float()
