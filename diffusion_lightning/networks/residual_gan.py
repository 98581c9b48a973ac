"""A generator and a discriminator of residual blocks without normalisation, one the mirror of the other."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Conv2d

GAIN = math.sqrt(2 / (1 + 0.2**2))  # of LeakyReLU(0.2): keeps the variance


class Residual(nn.Module):
    """x + conv1×1(σ(conv3×3 in groups(σ(conv1×1(x))))), whose last weights start at 0.

    Args:
        channels: of x.
        expansion: features within, as a multiple of `channels`.
        group: features in a group of the 3×3 convolution.
        blocks: residual blocks of the whole network: their first weights are smaller the more there are.
    """

    def __init__(self, channels: int, expansion: int, group: int, blocks: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.conv_in = Conv2d(channels, inner, 1)
        self.conv = Conv2d(inner, inner, 3, padding=1, groups=inner // group)
        self.conv_out = Conv2d(inner, channels, 1, bias=False)
        for conv, fan in ((self.conv_in, channels), (self.conv, 9 * group)):
            nn.init.normal_(conv.weight, std=GAIN / math.sqrt(fan) * blocks**-0.25)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.leaky_relu(self.conv(F.leaky_relu(self.conv_in(x), 0.2)), 0.2))


def widths(size: int, channels: int, most: int, smallest: int = 4) -> list[int]:
    """Features at each size from the smallest up to `size`: `channels` at the largest, doubled at each half of it.

    Raises:
        ValueError: if halving the size does not lead to the smallest.
    """
    levels = int(math.log2(size // smallest)) if size >= smallest else -1
    if levels < 0 or smallest * 2**levels != size:
        raise ValueError(f"size is {size}, but halving it has to lead to {smallest}: give {smallest} times 2, 4, 8, …")
    return [min(channels * 2**level, most) for level in range(levels, -1, -1)]


class ResidualGenerator(nn.Module):
    """Noise (B, latent) to images (B, C, H, W): 4×4 features, residual blocks, twice the size, and so on.

    The class's embedding, if there is one, goes into the first features beside the noise.

    Paper: The GAN is dead; long live the GAN! A modern baseline GAN. Huang et al., 2024, arXiv 2501.05441, section 4.

    Args:
        in_channels: of the images.
        size: of the images: 4 times 1, 2, 4, ….
        latent: numbers of noise.
        channels: features at the largest size; they double at each half of it.
        most: their upper bound.
        blocks: at each size.
        expansion: see `Residual`.
        group: see `Residual`; divides all numbers of features.
        condition_width: of the class's embedding; 0 is none.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int = 32,
        latent: int = 64,
        channels: int = 64,
        most: int = 512,
        blocks: int = 2,
        expansion: int = 2,
        group: int = 16,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.size, self.latent = in_channels, size, latent
        self.condition_width = condition_width
        of = widths(size, channels, most)
        self.enter = nn.Linear(latent + condition_width, of[0] * 16)
        nn.init.normal_(self.enter.weight, std=1 / math.sqrt(latent + condition_width))
        self.levels = nn.ModuleList(
            nn.Sequential(*(Residual(n, expansion, group, blocks * len(of)) for _ in range(blocks))) for n in of
        )
        self.between = nn.ModuleList(Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise(of))
        self.conv_out = Conv2d(of[-1], in_channels, 1)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images, not clamped."""
        x = self.enter(z if c is None else torch.cat([z, c], 1)).unflatten(1, (-1, 4, 4))
        for k, level in enumerate(self.levels):
            if k:
                x = F.interpolate(self.between[k - 1](x), scale_factor=2.0, mode="bilinear")
            x = level(x)
        return self.conv_out(x)


class ResidualDiscriminator(nn.Module):
    """Images (B, C, H, W) to a number each (B,): the mirror of `ResidualGenerator`, with its arguments.

    Of a class's embedding it returns the inner product with the features.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int = 32,
        channels: int = 64,
        most: int = 512,
        blocks: int = 2,
        expansion: int = 2,
        group: int = 16,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.size, self.condition_width = in_channels, size, condition_width
        of = widths(size, channels, most)[::-1]
        self.conv_in = Conv2d(in_channels, of[0], 1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Residual(n, expansion, group, blocks * len(of)) for _ in range(blocks))) for n in of
        )
        self.between = nn.ModuleList(Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise(of))
        self.leave = nn.Linear(of[-1] * 16, condition_width or 1, bias=False)
        nn.init.normal_(self.leave.weight, std=1 / math.sqrt(of[-1] * 16))

    def forward(self, image: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.conv_in(image)
        for k, level in enumerate(self.levels):
            if k:
                x = self.between[k - 1](F.avg_pool2d(x, 2))
            x = level(x)
        x = self.leave(x.flatten(1))
        return x[:, 0] if c is None else (x * c).sum(1) / math.sqrt(c.shape[1])
