"""Group normalisation in the form that is fastest where it runs."""

import torch
from torch import Tensor, nn

from . import gpu


class GroupNorm(nn.GroupNorm):
    """y = (x - μ)/√(σ² + ε)·weight + bias, μ and σ² over a group's channels and pixels.

    Compiled for a GPU, each channel's moments over its pixels come first and a group's are computed from them: channels
    lie last there, and so neighbours in memory are summed side by side.

    Paper: Group normalization. Wu, He, 2018, arXiv 1803.08494, equations 1, 2 and 6.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not gpu.compiling(x):
            return super().forward(x)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` of (B, C, H, W) in float32, as the weight's type.

    A channel's variance is E[d²] - E[d]², both from one pass, d being the distance from one of its pixels, so that
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
