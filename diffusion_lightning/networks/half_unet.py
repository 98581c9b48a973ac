"""The way down of a U-Net and a pooling attention: a classifier of noisy images."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Conv2d, Linear, attend
from .base.blocks import Block, Style, level_sizes
from .embeddings import sinusoidal


class HalfUNet(nn.Module):
    """Logits (B, classes) of noisy images x_t at times t.

    Residual blocks at the full size and at each half of it, two blocks and an attention in the middle, then attention
    pooling. ADM's classifier of 64×64 pixels has `size=64, channels=128, multipliers=(1, 2, 3, 4), blocks=4,
    attention=(32, 16, 8), head_channels=64, classes=1000`.

    Paper: Diffusion models beat GANs on image synthesis. Dhariwal, Nichol, 2021, arXiv 2105.05233, section 4.

    Args:
        classes: how many.
        in_channels: channels of the images, C.
        size: height and width of the images in pixels; divisible by 2^(levels - 1).
        channels: features at the first level; even, and a multiple of `groups`.
        multipliers: features of each level, as multiples of `channels`; as many levels as entries.
        blocks: residual blocks a level.
        attention: sizes in pixels at which every block is followed by self-attention.
        dropout: probability in every residual block, in [0, 1).
        groups: groups of every group normalisation.
        heads: heads of every attention, pooling too.
        head_channels: features of a head; None leaves it to `heads`.

    Raises:
        ValueError: if the levels do not divide the size, the groups or heads do not divide the features, or attention
            is set at a size that no level has.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int = 3,
        size: int = 32,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        groups: int = 32,
        heads: int = 1,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes is {classes}, but a classifier chooses among several: give at least 2")
        sizes = level_sizes(size, channels, multipliers, groups, attention)
        self.classes, self.in_channels, self.size, self.channels = classes, in_channels, size, channels
        self.style = style = Style(4 * channels, dropout, groups, 1e-5, True, heads, head_channels)
        self.time_mlp1, self.time_mlp2 = Linear(channels, style.time), Linear(style.time, style.time)
        self.conv_in = Conv2d(in_channels, channels, 3, padding=1)
        made, width = list[Block](), channels
        for m, pixels in zip(multipliers, sizes, strict=True):
            for _ in range(blocks):
                made.append(Block(width, m * channels, style, attend=pixels in attention))
                width = m * channels
            if pixels > sizes[-1]:
                made.append(Block(width, width, style, resize=0.5))
        made += [Block(width, width, style, attend=True), Block(width, width, style)]
        self.blocks = nn.ModuleList(made)
        self.time_channels = [block.time_channels for block in made]
        self.time_proj = Linear(style.time, sum(self.time_channels))
        self.norm = style.norm(width)
        self.pool = AttentionPool(width, sizes[-1] ** 2, style.heads_of(width), classes)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits (B, classes).

        Args:
            x_t: (B, C, H, W), of the network's size.
            t: (B,) the time, 0 … 999.
            c: None; it takes no condition.
        """
        waves = sinusoidal(t, self.channels, cosine_first=True, shift=0)
        emb = self.time_mlp2(F.silu(self.time_mlp1(waves.to(self.time_mlp1.weight.dtype))))
        times = iter(self.time_proj(F.silu(emb))[:, :, None, None].split(self.time_channels, dim=1))
        h = self.conv_in(x_t)
        for block in self.blocks:
            h = block(h, next(times))
        return self.pool(F.silu(self.norm(h)))


class AttentionPool(nn.Module):
    """(B, C, H, W) to (B, out): the mean over the pixels attends to itself and to every pixel, each at its place.

    Paper: Learning transferable visual models from natural language supervision. Radford et al., 2021, arXiv
    2103.00020, section 2.4.
    """

    def __init__(self, channels: int, pixels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(pixels + 1, channels) / math.sqrt(channels))
        self.query, self.key_value = Linear(channels, channels), Linear(channels, 2 * channels)
        self.out = Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).mT  # (B, H·W, C)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.place
        q, (k, v) = self.query(tokens[:, :1]), self.key_value(tokens).chunk(2, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, tokens, …)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(1))
