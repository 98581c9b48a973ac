"""The U-Net of DDPM.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, appendix B,
    and the choices of its released code that the paper leaves open.

Down through the levels, each a number of residual blocks at half the size of the one before; two blocks and an
attention in the middle; up again, each block fed the output of its counterpart on the way down. The time is added
to the features of every block.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import sinusoidal


class UNet(nn.Module):
    """A U-Net over (x_t, t), DDPM's ε_θ.

    The arguments' defaults are DDPM's for CIFAR-10 (35,746,307 parameters).

    Args:
        in_channels: channels of the images, C.
        size: height and width of the images in pixels; divisible by 2^(levels - 1).
        channels: features at the first level; even, and a multiple of `groups`.
        multipliers: features of each level, as multiples of `channels`; as many levels as entries.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: sizes in pixels at which every block is followed by self-attention.
        dropout: probability in every residual block, in [0, 1).
        groups: groups of every group normalisation.
        out_channels: channels of the output; None is `in_channels`, and twice as many predict the variance too.

    Raises:
        ValueError: where the levels do not divide the size, or the groups do not divide the features.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int = 32,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        groups: int = 32,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        halvings = len(multipliers) - 1
        if halvings < 0 or size < 1 or size % 2**halvings:
            raise ValueError(
                f"the U-Net's {len(multipliers)} levels halve the image {halvings} times, which {size} pixels do not "
                f"allow: use a size divisible by {2 ** max(halvings, 0)}, or other multipliers"
            )
        for width in [channels, *(channels * m for m in multipliers)]:
            if width < 4 or width % groups or width % 2:
                raise ValueError(
                    f"a level of {width} features cannot be normalised in {groups} groups: make channels and its "
                    "multiples even, at least 4, and divisible by groups"
                )
        sizes = [size // 2**level for level in range(halvings + 1)]
        stray = [a for a in attention if a not in sizes]
        if stray:
            raise ValueError(
                f"attention is asked for at {stray[0]} pixels, but the U-Net's levels are at {sizes} pixels: "
                "choose among these"
            )
        self.in_channels, self.channels, self.halvings = in_channels, channels, halvings
        time = 4 * channels
        self.time1, self.time2 = nn.Linear(channels, time), nn.Linear(time, time)
        self.enter = nn.Conv2d(in_channels, channels, 3, padding=1)

        def block(from_: int, to: int, pixels: int) -> "Block":
            return Block(from_, to, time, dropout, groups, attend=pixels in attention)

        self.down = nn.ModuleList()
        skips, width = [channels], channels
        for level, (m, pixels) in enumerate(zip(multipliers, sizes, strict=True)):
            for _ in range(blocks):
                self.down.append(block(width, m * channels, pixels))
                skips.append(width := m * channels)
            if level < halvings:
                self.down.append(Downsample(width))
                skips.append(width)

        self.middle = nn.ModuleList(
            [Block(width, width, time, dropout, groups, attend=True), Block(width, width, time, dropout, groups)]
        )

        self.up = nn.ModuleList()
        for level, (m, pixels) in reversed(list(enumerate(zip(multipliers, sizes, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), m * channels, pixels))
                width = m * channels
            if level:
                self.up.append(Upsample(width))

        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.leave = nn.Conv2d(width, out_channels or in_channels, 3, padding=1)
        self._initialise()
        self.to(memory_format=torch.channels_last)  # 1.1 to 1.7 times as fast in float32 on a CPU

    def _initialise(self) -> None:
        """Fan-average uniform weights and zero biases; what ends a residual branch, and the net, starts near zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _fan_average(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, Block):
                _fan_average(module.conv2.weight, 1e-10)
            elif isinstance(module, Attention):
                for weight in module.qkv.weight.data.chunk(3):
                    _fan_average(weight)
                _fan_average(module.out.weight, 1e-10)
        _fan_average(self.leave.weight, 1e-10)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """What the network is trained to output at x_t, (B, out_channels, H, W).

        Args:
            x_t: (B, C, H, W).
            t: (B,) the time as the 0-based index 0 … T - 1.
            c: (B, 4·channels), added to the time's embedding; None for no condition.

        Raises:
            ValueError: where the images' channels or size do not fit the network.
        """
        if x_t.shape[1] != self.in_channels:
            raise ValueError(
                f"the U-Net was built for images of {self.in_channels} channels, but these have {x_t.shape[1]}: "
                f"set the network's in_channels to {x_t.shape[1]}"
            )
        if x_t.shape[2] % 2**self.halvings or x_t.shape[3] % 2**self.halvings:
            raise ValueError(
                f"the U-Net's {self.halvings + 1} levels halve the image {self.halvings} times, which "
                f"{x_t.shape[2]}×{x_t.shape[3]} pixels do not allow: use sizes divisible by {2**self.halvings}, "
                "or other multipliers"
            )
        emb = self.time2(F.silu(self.time1(sinusoidal(t, self.channels).to(self.time1.weight.dtype))))
        emb = F.silu(emb if c is None else emb + c)
        h = self.enter(x_t)
        skips = [h]
        for module in self.down:
            h = module(h, emb)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(module, Block) else module(h, emb)
        return self.leave(F.silu(self.norm(h)))


class Block(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + input; then attention where asked for."""

    def __init__(self, from_: int, to: int, time: int, dropout: float, groups: int, attend: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, from_, eps=1e-6)
        self.conv1 = nn.Conv2d(from_, to, 3, padding=1)
        self.time = nn.Linear(time, to)
        self.norm2 = nn.GroupNorm(groups, to, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(to, to, 3, padding=1)
        self.skip = nn.Conv2d(from_, to, 1) if from_ != to else nn.Identity()
        self.attention = Attention(to, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, to, H, W)
        h = h + self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention of one head over the pixels, scale C^-½, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, 1, c, h * w).transpose(3, 4).unbind(1)  # (B, 1, H·W, C)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(b, c, h, w))


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded at the right and bottom as the released code's SAME does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@torch.no_grad()
def _fan_average(weight: Tensor, scale: float = 1.0) -> None:
    """Uniform with variance scale/((fan_in + fan_out)/2); fans count the kernel's pixels."""
    pixels = math.prod(weight.shape[2:])
    fan = (weight.shape[0] + weight.shape[1]) * pixels / 2
    bound = math.sqrt(3 * scale / fan)
    weight.uniform_(-bound, bound)
