"""What the networks share: attention, dropout, norms and so on, each in the form that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # of a dropout's draws
LONGEST = 1024  # tokens whose weights, all pairs at once, are no burden to a CPU
FEWEST = 1024  # pixels of a batch for which fewer products outweigh the sums of weights that they take


def for_gpu(x: Tensor) -> bool:
    """Whether code is being made for a GPU, which reads features channels last and joins what lies between products."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


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
    """Each pixel of (B, C, H, W) four times, (B, C, 2H, 2W).

    Compiled for a GPU by views, whose gradient is a sum; that of an interpolation is added up by atomic operations.
    """
    if not for_gpu(x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(b, c, 2 * h, 2 * w)


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


class GroupNorm(nn.GroupNorm):
    """y = (x - μ)/√(σ² + ε)·weight + bias, μ and σ² over a group's channels and pixels.

    Compiled for a GPU, each channel's moments over its pixels come first and a group's are made of them: channels lie
    last there, and so neighbours in memory are summed side by side.

    Paper: Group normalization. Wu, He, 2018, arXiv 1803.08494, equations 1, 2 and 6.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not for_gpu(x):
            return super().forward(x)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` of (B, C, H, W) in float32, as the weight's type.

    A channel's variance is E[d²] - E[d]², both of one reading, d being the distance from one of its pixels, so that
    little cancels.
    """
    b, c = x.shape[:2]
    x = x.float()
    pixel = x[:, :, :1, :1].detach()
    shift, square = ((x - pixel).mean((2, 3)), (x - pixel).square().mean((2, 3)))
    within = (square - shift.square()).clamp(min=0).view(b, groups, -1).mean(2)
    between, mean = torch.var_mean((pixel[:, :, 0, 0] + shift).view(b, groups, -1), dim=2, correction=0)
    # For each image apart, the bias too: its gradient is summed over the pixels where the scale's is.
    mean, rstd = (
        part[:, :, None].expand(-1, -1, c // groups).reshape(b, c, 1, 1)
        for part in (mean, (within + between + eps).rsqrt())
    )
    y = (x - mean) * (rstd * weight[:, None, None]) + bias.expand(b, c)[:, :, None, None]
    return y.to(weight.dtype)
