"""Nearest-neighbour upsampling by 2, alone and before a convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import gpu
from .matmuls import Conv2d, in_fast_type

FEWEST = 1024  # pixels of a batch from which on the saved multiplications outweigh summing the weights


def upsample2x(x: Tensor) -> Tensor:
    """Repeat each pixel of (B, C, H, W) four times, (B, C, 2H, 2W).

    Compiled for a GPU as views, whose gradient is a sum; that of an interpolation needs atomic additions.
    """
    if not gpu.compiling(x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(b, c, 2 * h, 2 * w)


class UpsampleConv(Conv2d):
    """The 3×3 convolution of `upsample2x(x)`, padded by a pixel: (B, C, H, W) to (B, C', 2H, 2W).

    On a CPU as a transposed convolution of x itself, with sums of the weights: each output pixel depends on two rows
    and two columns of x, four multiplications a channel and not nine.
    """

    def __init__(self, from_: int, to: int) -> None:
        super().__init__(from_, to, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        exported = torch.compiler.is_exporting()  # for batches of any size
        if exported or x.device.type != "cpu" or x.shape[0] * x.shape[2] * x.shape[3] < FEWEST:
            return super().forward(upsample2x(x))
        return in_fast_type(_upsampled_convolved, x, self.weight, self.bias)


def _upsampled_convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    placed = [F.pad(weight, (1 - i, i, 1 - j, j)) for i in (0, 1) for j in (0, 1)]
    sums = torch.stack(placed).sum(0).flip(2, 3).transpose(0, 1)  # (C, C', 4, 4)
    return F.conv_transpose2d(x, sums, bias, stride=2, padding=1)
