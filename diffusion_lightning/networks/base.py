"""What the networks share: attention, dropout, norms and so on, each in the form that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # of a dropout's draws
LONGEST = 1024  # tokens whose weights, all pairs at once, are no burden to a CPU
FEWEST = 1024  # pixels of a batch for which fewer products outweigh the sums of weights that they take


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v over (B, heads, tokens, D).

    On a CPU as two products of matrices, which are faster there than PyTorch's fused attention; elsewhere, and for more
    than 1,024 tokens, fused.

    Paper: Attention is all you need. Vaswani et al., 2017, arXiv 1706.03762, equation 1.
    """
    if q.device.type != "cpu" or q.shape[2] > LONGEST:
        return F.scaled_dot_product_attention(q, k, v)
    flat = [x.flatten(0, 1) for x in (q * q.shape[3] ** -0.5, k, v)]
    weights = torch.bmm(flat[0], flat[1].mT).softmax(2)
    return torch.bmm(weights, flat[2]).unflatten(0, q.shape[:2])


def doubled(x: Tensor) -> Tensor:
    """Each pixel of (B, C, H, W) four times, (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DoublingConv(nn.Conv2d):
    """The 3×3 convolution of `doubled(x)`, padded by a pixel: (B, C, H, W) to (B, C', 2H, 2W).

    On a CPU as a transposed convolution of x itself, by sums of the weights: a pixel that is made there sees two rows
    and two columns of x and no more, four products a channel and not nine.
    """

    def __init__(self, from_: int, to: int) -> None:
        super().__init__(from_, to, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        exported = torch.compiler.is_exporting()  # for batches of any size
        if exported or x.device.type != "cpu" or x.shape[0] * x.shape[2] * x.shape[3] < FEWEST:
            return super().forward(doubled(x))
        placed = [F.pad(self.weight, (1 - i, i, 1 - j, j)) for i in (0, 1) for j in (0, 1)]
        sums = torch.stack(placed).sum(0).flip(2, 3).transpose(0, 1)  # (C, C', 4, 4)
        return F.conv_transpose2d(x, sums, self.bias, stride=2, padding=1)


class Dropout(nn.Dropout):
    """x/(1 - p) where a draw keeps it and 0 elsewhere, in training; p to a part in 131,072 on a CPU.

    There four draws come from one random word of 64 bits, where PyTorch takes more than a word for each.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        kept = max(1, round((1 - self.p) * LEVELS))
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        order = torch.empty_like(x, dtype=torch.int16)  # dense, in the order in which x lies
        draws = words.view(torch.int16)[: x.numel()].as_strided(order.shape, order.stride())
        return x * (draws < kept - LEVELS // 2).to(x.dtype).mul_(LEVELS / kept)
