"""The U-Net of DDPM, and what IDDPM and ADM made of it.

    Papers: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, appendix B.
    Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, appendix A.
    Diffusion models beat GANs on image synthesis. Dhariwal, Nichol, 2021, arXiv 2105.05233, section 3.
    And of each the choices of its released code that the paper leaves open.

Down through the levels, each a number of residual blocks at half the size of the one before; two blocks and an
attention in the middle; up again, each block fed the output of its counterpart on the way down. The time is added
to the features of every block, or scales and shifts them. Blocks may attend to the tokens of a condition, as in
High-resolution image synthesis with latent diffusion models. Rombach et al., 2022, arXiv 2112.10752, section 3.3.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Conv2d, CrossAttention, Linear, unpacked
from .base.blocks import Attention, Block, Downsample, Style, Upsample, fan_average, level_sizes
from .embeddings import sinusoidal


class UNet(nn.Module):
    """A U-Net over (x_t, t), DDPM's ε_θ.

    The arguments' defaults are DDPM's for CIFAR-10 (35,746,307 parameters). IDDPM's for CIFAR-10 (52,546,438) has
    `blocks=3, attention=(16, 8), dropout=0.3, out_channels=6, heads=4, scale_shift=True, release="IDDPM"`; ADM's have
    `head_channels=64, resample_blocks=True` beside these.

    Args:
        in_channels: channels of the images, C.
        size: height and width of the images in pixels; divisible by 2^(levels - 1).
        channels: features at the first level; even, and a multiple of `groups`.
        multipliers: features of each level, as multiples of `channels`; as many levels as entries.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: sizes in pixels at which every block is followed by self-attention.
        dropout: probability in every residual block, in [0, 1), between its second activation and convolution.
        groups: groups of every group normalisation.
        out_channels: channels of the output; None is `in_channels`, and twice as many predict the variance too.
        heads: heads of every attention.
        head_channels: features of a head, whose number then grows with the level; None leaves it to `heads`.
        scale_shift: the time scales and shifts the features after a block's second normalisation (IDDPM's adaptive
            group normalisation); otherwise it is added before.
        resample_blocks: residual blocks halve and double the size (ADM, section 3.1), not single convolutions.
        release: whose released code decides what no paper states. IDDPM's embeds the time as cos | sin with other
            frequencies, pads a strided convolution on all sides, has ε = 1e-5 in its norms where DDPM's has 1e-6, and
            starts from the defaults of PyTorch, and from zero where DDPM's starts near zero.
        token_width: features of a token; None attends to no tokens.
        cross_attention: sizes in pixels at which every block is followed by cross-attention to the tokens, after the
            self-attention if it has one; with `token_width`, the middle attends to them too. A pixel's query holds its
            row and column beside its features.
        patch: height and width of the squares of pixels that are folded into channels before the first level and
            unfolded after the last, which makes steps cheaper. Attention's sizes are those of the levels.

    Raises:
        ValueError: if patch and levels do not divide the size, the groups or heads do not divide the features,
            attention is set at a size that no level has, or only one of `token_width` and `cross_attention` is given.
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
        heads: int = 1,
        head_channels: int | None = None,
        scale_shift: bool = False,
        resample_blocks: bool = False,
        release: Literal["DDPM", "IDDPM"] = "DDPM",
        token_width: int | None = None,
        cross_attention: Sequence[int] = (),
        patch: int = 1,
    ) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise ValueError(
                f"the U-Net folds squares of {patch} pixels, which {size} pixels do not allow: use a size divisible by "
                "patch, or another patch"
            )
        sizes = level_sizes(size // patch, channels, multipliers, groups, attention, cross_attention)
        _check_tokens(token_width, cross_attention, sizes)
        halvings = len(sizes) - 1
        if release not in ("DDPM", "IDDPM"):
            raise ValueError(
                f"release is {release}, but only DDPM and IDDPM have released code to follow: give one of them"
            )
        self.in_channels, self.size, self.channels, self.halvings = in_channels, size, channels, halvings
        self.multipliers, self.blocks, self.attention = tuple(multipliers), blocks, tuple(attention)
        self.resample_blocks, self.release, self.patch = resample_blocks, release, patch
        eps = 1e-6 if release == "DDPM" else 1e-5
        self.condition_width, self.token_width = 4 * channels, token_width
        self.style = style = Style(
            self.condition_width, dropout, groups, eps, scale_shift, heads, head_channels, token_width
        )
        self.time_mlp1, self.time_mlp2 = Linear(channels, style.time), Linear(style.time, style.time)
        self.conv_in = Conv2d(in_channels * patch**2, channels, 3, padding=1)

        self.down = nn.ModuleList()
        skips, width = [channels], channels
        for level, (m, pixels) in enumerate(zip(multipliers, sizes, strict=True)):
            attends: Any = {"attend": pixels in attention, "cross": pixels if pixels in cross_attention else None}
            for _ in range(blocks):
                self.down.append(Block(width, m * channels, style, **attends))
                skips.append(width := m * channels)
            if level < halvings:
                halve = Block(width, width, style, resize=0.5) if resample_blocks else Downsample(width, release)
                self.down.append(halve)
                skips.append(width)

        first = Block(width, width, style, attend=True, cross=None if token_width is None else sizes[-1])
        self.middle = nn.ModuleList([first, Block(width, width, style)])

        self.up = nn.ModuleList()
        for level, (m, pixels) in reversed(list(enumerate(zip(multipliers, sizes, strict=True)))):
            attends = {"attend": pixels in attention, "cross": pixels if pixels in cross_attention else None}
            for _ in range(blocks + 1):
                self.up.append(Block(width + skips.pop(), m * channels, style, **attends))
                width = m * channels
            if level:
                self.up.append(Block(width, width, style, resize=2.0) if resample_blocks else Upsample(width))

        blocks_in_order: Iterator[Any] = chain(self.down, self.middle, self.up)
        self.time_channels = [block.time_channels for block in blocks_in_order]
        self.time_proj = Linear(
            style.time, sum(self.time_channels)
        )  # the time's projections of all blocks, computed at once

        self.norm = style.norm(width)
        self.conv_out = Conv2d(width, (out_channels or in_channels) * patch**2, 3, padding=1)
        if release == "DDPM":
            self._start_as_ddpm()
        else:
            self._start_as_iddpm()
        self.set_memory_format(torch.device("cpu"), reduced=False)

    def set_memory_format(self, device: torch.device, reduced: bool, compiled: bool = False) -> None:
        """Set the memory format of the weights, and with it of the features, that is fastest on a device.

        Channels last, in which convolutions are fastest; but not if a CPU computes in less than float32 (`reduced`),
        whose normalisation is slow in it (`python -m benchmarks gains` shows both), nor if training on a GPU is
        `compiled`: the compiler sets the features' format there, and gradients arrive channels first and would be
        copied into the format of the weights.
        """
        if not (device.type == "cpu" and reduced) and not (device.type == "cuda" and compiled):
            self.to(memory_format=torch.channels_last)
            return
        for parameter in self.parameters():  # not with `to`, which leaves 1×1 kernels the strides of channels last
            parameter.data = parameter.data.contiguous().flatten().view(parameter.shape)

    def _start_as_ddpm(self) -> None:
        """Fan-average uniform weights and zero biases; what ends a residual branch, and the net, near zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_average(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, Block):
                fan_average(module.conv2.weight, 1e-10)
            elif isinstance(module, Attention):
                for weight in module.qkv.weight.data.chunk(3):
                    fan_average(weight)
                fan_average(module.out.weight, 1e-10)
            elif isinstance(module, CrossAttention):
                for weight in module.key_value.weight.data.chunk(2):
                    fan_average(weight)
                fan_average(module.out.weight, 1e-10)
        for weight in self.time_proj.weight.data.split(self.time_channels):
            fan_average(weight)
        fan_average(self.conv_out.weight, 1e-10)

    def _start_as_iddpm(self) -> None:
        """PyTorch's defaults, as they are by now; what ends a residual branch, and the net, at zero."""
        ends: list[Any] = [m.conv2 for m in self.modules() if isinstance(m, Block)]
        ends += [m.out for m in self.modules() if isinstance(m, Attention | CrossAttention)]
        for end in [*ends, self.conv_out]:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | tuple[Tensor | None, ...] | None = None) -> Tensor:
        """What the network is trained to output at x_t, (B, out_channels, H, W).

        Args:
            x_t: (B, C, H, W).
            t: (B,) the time as the 0-based index 0 … T - 1, or a rescaled one.
            c: the vector (B, 4·channels), added to the time's embedding; or a tuple of vector, tokens (B, L,
                token_width) and mask (B, L), True where a token is real, each of which may be None; None for no
                condition.

        Raises:
            ValueError: if the images' channels or size, or the tokens, do not fit the network.
        """
        if x_t.shape[1] != self.in_channels:
            raise ValueError(
                f"the U-Net was built for images of {self.in_channels} channels, but these have {x_t.shape[1]}: "
                f"set the network's in_channels to {x_t.shape[1]}"
            )
        divisor = self.patch * 2**self.halvings
        if x_t.shape[2] % divisor or x_t.shape[3] % divisor:
            raise ValueError(
                f"the U-Net's {self.halvings + 1} levels halve the image {self.halvings} times, which "
                f"{x_t.shape[2]}×{x_t.shape[3]} pixels do not allow: use sizes divisible by {divisor}, or other "
                "multipliers"
            )
        vector, tokens, mask = unpacked(c, self.token_width, "U-Net")
        if self.release == "DDPM":
            waves = sinusoidal(t, self.channels)
        else:
            waves = sinusoidal(t, self.channels, cosine_first=True, shift=0)
        emb = self.time_mlp2(F.silu(self.time_mlp1(waves.to(self.time_mlp1.weight.dtype))))
        times = self.time_proj(F.silu(emb if vector is None else emb + vector))[:, :, None, None]
        time = iter(times.split(self.time_channels, dim=1))
        h = self.conv_in(x_t if self.patch == 1 else F.pixel_unshuffle(x_t, self.patch))
        skips = [h]
        for module in self.down:
            h = module(h, next(time), tokens, mask)
            skips.append(h)
        for module in self.middle:
            h = module(h, next(time), tokens, mask)
        for module in self.up:
            h = torch.cat([h, skips.pop()], dim=1) if module.takes_skip else h
            h = module(h, next(time), tokens, mask)
        output = self.conv_out(F.silu(self.norm(h)))
        return output if self.patch == 1 else F.pixel_shuffle(output, self.patch)


def _check_tokens(token_width: int | None, cross_attention: Sequence[int], sizes: Sequence[int]) -> None:
    if token_width is None and cross_attention:
        raise ValueError(
            f"cross_attention is set at {list(cross_attention)} pixels, but token_width is None: give the number of "
            "features of a token, or no sizes"
        )
    if token_width is not None and not cross_attention:
        raise ValueError(
            f"token_width is {token_width}, but cross_attention names no size at which the U-Net attends to tokens: "
            f"choose among its levels' {sizes} pixels, or leave token_width out"
        )
    if token_width is not None and token_width < 1:
        raise ValueError(f"token_width is {token_width}, but a token has at least 1 feature: give their number")
