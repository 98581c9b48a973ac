"""What U-Nets are made of: residual blocks with the time, attention to pixels and to tokens, changes of the size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import gpu
from .attention import attend
from .cross_attention import CrossAttention
from .dropout import Dropout
from .matmuls import Conv2d
from .normalisation import GroupNorm
from .upsample import UpsampleConv, upsample2x


def level_sizes(
    size: int,
    channels: int,
    multipliers: Sequence[int],
    groups: int,
    attention: Sequence[int],
    cross_attention: Sequence[int] = (),
) -> list[int]:
    """The height and width in pixels of each of a U-Net's levels.

    Raises:
        ValueError: if the levels do not divide the size, the groups do not divide the features, or attention is set at
            a size that no level has.
    """
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
    for name, wanted in (("attention", attention), ("cross_attention", cross_attention)):
        stray = [a for a in wanted if a not in sizes]
        if stray:
            raise ValueError(
                f"{name} is set at {stray[0]} pixels, but the U-Net's levels are at {sizes} pixels: choose among these"
            )
    return sizes


class Style(NamedTuple):
    """What all blocks of a U-Net have in common."""

    time: int  # width of the time's embedding
    dropout: float
    groups: int
    eps: float
    scale_shift: bool
    heads: int
    head_channels: int | None
    token_width: int | None = None

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(self.groups, channels, eps=self.eps)

    def heads_of(self, channels: int) -> int:
        heads, rest = divmod(channels, self.head_channels) if self.head_channels else (self.heads, 0)
        if rest or heads < 1 or channels % heads:
            wanted = f"heads of {self.head_channels}" if self.head_channels else f"{heads} heads"
            raise ValueError(
                f"attention over {channels} features cannot be split among {wanted}: choose heads or head_channels "
                "that divide them"
            )
        return heads


class Block(nn.Module):
    """norm, SiLU, conv, time, norm, SiLU, dropout, conv, + input; then attention if `attend`, and to tokens if `cross`.

    `cross` is the height and width in pixels at which it attends to tokens, None if it does not. With `resize` 0.5 or 2
    the features after the first SiLU, and the input, are averaged or repeated to that size.
    """

    def __init__(
        self, from_: int, to: int, style: Style, attend: bool = False, resize: float = 1.0, cross: int | None = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = style.scale_shift, resize
        self.time_channels = 2 * to if style.scale_shift else to  # its channels of the U-Net's `time_proj`
        self.takes_skip = resize == 1.0  # on the way up, it also takes the output of its counterpart
        self.norm1 = style.norm(from_)
        self.conv1 = Conv2d(from_, to, 3, padding=1)
        self.norm2 = style.norm(to)
        self.dropout = Dropout(style.dropout)
        self.conv2 = Conv2d(to, to, 3, padding=1)
        self.skip = Conv2d(from_, to, 1) if from_ != to else nn.Identity()
        self.attention = Attention(to, style) if attend else nn.Identity()
        self.cross = None if cross is None else TokenAttention(to, style, cross)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resize != 1.0:
            h, x = self._resized(h), self._resized(x)
        h = self.conv1(h)  # (B, to, H, W)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        h = self.attention(self.skip(x) + h)
        return h if self.cross is None else self.cross(h, tokens, mask)

    def _resized(self, h: Tensor) -> Tensor:
        if self.resize < 1:
            return F.avg_pool2d(h, 2)
        return upsample2x(h)


class Attention(nn.Module):
    """Self-attention over the pixels, scale (features of a head)^-½, added to its input."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads = style.heads_of(channels)
        self.norm = style.norm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if gpu.compiling(x) and type(self.qkv) is type(self.out) is Conv2d:  # and no adapter is around them
            return x + self._of_tokens(self.norm(x).flatten(2).mT).mT.unflatten(2, (h, w))
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)  # (B, heads, H·W, C/heads)
        mixed = attend(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        if x.is_contiguous():  # with one head it is channels last
            mixed = mixed.contiguous()
        return x + self.out(mixed)

    def _of_tokens(self, x: Tensor) -> Tensor:
        """The same over (B, H·W, C) with matmuls alone, which keep channels last, in their gradients too."""
        qkv = F.linear(x, self.qkv.weight.flatten(1), self.qkv.bias).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H·W, C/heads)
        return F.linear(attend(q, k, v).transpose(1, 2).flatten(2), self.out.weight.flatten(1), self.out.bias)


class TokenAttention(nn.Module):
    """Cross-attention of the pixels to tokens, added to its input: matmuls alone, which keep channels last.

    The queries are made of the normalised features and of `places`, so that a pixel asks for what belongs where it is:
    of "a seven to the left of a three" each side needs another word.
    """

    places: Tensor

    def __init__(self, channels: int, style: Style, size: int) -> None:
        super().__init__()
        assert style.token_width is not None
        self.norm = style.norm(channels)
        self.attention = CrossAttention(channels, style.token_width, style.heads_of(channels))
        self.register_buffer("places", places(channels, size, size), persistent=False)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        here = self.places  # of the size that the network is made for
        if here.shape[1:] != x.shape[2:]:
            here = places(x.shape[1], x.shape[2], x.shape[3]).to(x.device)
        h = (self.norm(x) + here.to(x.dtype)).flatten(2).mT
        h = self.attention(h, tokens, mask)  # (B, H·W, C)
        return x + h.mT.unflatten(2, x.shape[2:])


def places(channels: int, height: int, width: int) -> Tensor:
    """(channels, height, width): where a pixel is, its row in the first half of the channels, its column in the rest.

    sin and cos of π·2^f·p, p = (i + ½)/size in (0, 1) the place of row or column i, and f from 0 to 3 in equal parts:
    places as shares of the image, so that they mean the same at any size. Attention is all you need, Vaswani et al.,
    2017, arXiv 1706.03762, section 3.5, adds such waves to features; the frequencies are ours.
    """
    n = -(-channels // 4)
    frequency = math.pi * 2 ** (torch.arange(n) * (3 / max(n - 1, 1)))[:, None]
    found = []
    for size, axis in ((height, 2), (width, 1)):
        angle = frequency * (torch.arange(size) + 0.5) / size  # (n, size)
        found.append(torch.cat([angle.sin(), angle.cos()]).unsqueeze(axis).expand(-1, height, width))
    return torch.cat(found)[:channels]


class Downsample(nn.Module):
    """Half the size by a strided convolution.

    DDPM's released code pads at the right and bottom alone, as TensorFlow's SAME does, IDDPM's on all sides.
    """

    takes_skip, time_channels = False, 0

    def __init__(self, channels: int, release: str) -> None:
        super().__init__()
        self.padding = (0, 1, 0, 1) if release == "DDPM" else (1, 1, 1, 1)
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a convolution."""

    takes_skip, time_channels = False, 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv(channels, channels)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return self.conv(x)


@torch.no_grad()
def fan_average(weight: Tensor, scale: float = 1.0) -> None:
    """Uniform with variance scale/((fan_in + fan_out)/2); fans count the kernel's pixels."""
    pixels = math.prod(weight.shape[2:])
    fan = (weight.shape[0] + weight.shape[1]) * pixels / 2
    bound = math.sqrt(3 * scale / fan)
    weight.uniform_(-bound, bound)
