"""The diffusion transformer.

    Paper: Scalable diffusion models with transformers. Peebles, Xie, 2022, arXiv 2212.09748, section 3.2,
    and the choices of its released code that the paper leaves open.

The image is cut into patches, each a token with its place added to it. Every block is attention and an MLP between
norms whose shift and scale, and whose gate in the sum, are linear in the embedding of time and condition (adaLN-Zero).
Between the two, blocks may attend to the tokens of a condition.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Conv2d, CrossAttention, Linear, attend, unpacked
from .embeddings import sinusoidal

FREQUENCIES = 256  # features of the sinusoidal embedding of the time, at any width


class DiT(nn.Module):
    """A transformer over the patches of x_t, DiT with adaLN-Zero blocks.

    The arguments' defaults are those of DiT-XL/2 for ImageNet's latents at 256 pixels, without the variance. The
    paper's four sizes are `DiT.S`, `DiT.B`, `DiT.L` and `DiT.XL` (table 1): `DiT(patch=4, **DiT.B)` is DiT-B/4, and
    a config spells the three numbers out.

    Args:
        in_channels: channels of the images, C.
        size: height and width of the images in pixels; divisible by `patch`.
        patch: height and width of a patch in pixels; halving it makes four times as many tokens.
        width: features of a token, the paper's hidden size; divisible by `heads` and by 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: features inside an MLP as a multiple of `width`.
        out_channels: channels of the output; None is `in_channels`, and twice as many predict the variance too.
        token_width: features of a condition's token; None attends to no tokens.
        cross_every: with `token_width`, the first block and every so many blocks from it attend to the tokens, after
            the self-attention; 1 is all blocks.

    Raises:
        ValueError: if the patches do not divide the size, the heads or 4 do not divide the width, `token_width` or
            `cross_every` is less than 1, or `cross_every` is given without `token_width`.
    """

    S: ClassVar[dict[str, int]] = {"width": 384, "depth": 12, "heads": 6}
    B: ClassVar[dict[str, int]] = {"width": 768, "depth": 12, "heads": 12}
    L: ClassVar[dict[str, int]] = {"width": 1024, "depth": 24, "heads": 16}
    XL: ClassVar[dict[str, int]] = {"width": 1152, "depth": 28, "heads": 16}

    positions: Tensor

    def __init__(
        self,
        in_channels: int = 4,
        size: int = 32,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        out_channels: int | None = None,
        token_width: int | None = None,
        cross_every: int = 1,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(
                f"the DiT cuts images into patches of {patch} pixels, which {size} pixels do not allow: use a size "
                "divisible by patch, or another patch"
            )
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(
                f"a width of {width} features cannot be split among {heads} heads: make width divisible by heads"
            )
        if width % 4:
            raise ValueError(
                f"width is {width}, but a place is embedded by the sine and the cosine of both its coordinates: make "
                "width divisible by 4"
            )
        if cross_every < 1 or (token_width is not None and token_width < 1):
            raise ValueError(
                f"token_width is {token_width} and cross_every {cross_every}, but tokens have at least 1 feature and "
                "every block, 1, is the most that attend to them: give at least 1"
            )
        if token_width is None and cross_every > 1:
            raise ValueError(
                f"cross_every is {cross_every}, but token_width is None, so that no block attends to tokens: give "
                "token_width, or leave cross_every out"
            )
        self.in_channels, self.size, self.patch = in_channels, size, patch
        self.condition_width, self.token_width = width, token_width
        self.time_mlp1, self.time_mlp2 = Linear(FREQUENCIES, width), Linear(width, width)
        self.conv_in = Conv2d(in_channels, width, patch, stride=patch)
        self.register_buffer("positions", _positions(size // patch, width), persistent=False)
        hidden = int(width * mlp_ratio)
        self.blocks = nn.ModuleList(
            [Block(width, heads, hidden, None if i % cross_every else token_width) for i in range(depth)]
        )
        self.modulation = Linear(width, 2 * width)
        self.proj_out = Linear(width, patch**2 * (out_channels or in_channels))
        self._initialise()

    def _initialise(self) -> None:
        """Glorot's uniform weights and zero biases; every block starts as the identity, and the net as zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))  # the patches' as a linear layer's
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for linear in (self.time_mlp1, self.time_mlp2):
            nn.init.normal_(linear.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, DiT | Block):
                nn.init.zeros_(module.modulation.weight)
            elif isinstance(module, CrossAttention):
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | tuple[Tensor | None, ...] | None = None) -> Tensor:
        """What the network is trained to output at x_t, (B, out_channels, H, W).

        Args:
            x_t: (B, C, H, W).
            t: (B,) the time as the 0-based index 0 … T - 1, whole or not.
            c: the vector (B, width), added to the time's embedding; or a tuple of vector, tokens (B, L, token_width)
                and mask (B, L), True where a token is real, each of which may be None; None for no condition.

        Raises:
            ValueError: if the images' channels or size, or the tokens, do not fit the network.
        """
        if x_t.shape[1] != self.in_channels:
            raise ValueError(
                f"the DiT was built for images of {self.in_channels} channels, but these have {x_t.shape[1]}: "
                f"set the network's in_channels to {x_t.shape[1]}"
            )
        if x_t.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"the DiT was built for images of {self.size}×{self.size} pixels, but these have {x_t.shape[2]}×"
                f"{x_t.shape[3]}: set the network's size to theirs, or bring them to its"
            )
        vector, tokens, mask = unpacked(c, self.token_width, "DiT")
        waves = sinusoidal(t, FREQUENCIES, cosine_first=True, shift=0).to(self.time_mlp1.weight.dtype)
        emb = self.time_mlp2(F.silu(self.time_mlp1(waves)))  # (B, width)
        emb = F.silu(emb if vector is None else emb + vector)
        x = self.conv_in(x_t).flatten(2).mT + self.positions  # (B, tokens, width)
        for block in self.blocks:
            x = block(x, emb, tokens, mask)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
        return self._joined(self.proj_out(_norm(x) * (1 + scale) + shift))

    def _joined(self, x: Tensor) -> Tensor:
        """Tokens (B, h·w, p·p·C) to images (B, C, h·p, w·p)."""
        x = x.unflatten(1, (self.size // self.patch, -1)).unflatten(3, (self.patch, self.patch, -1))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Block(nn.Module):
    """x + gate·attention(norm), then x + gate·MLP(norm); both norms' shift and scale, and both gates, come from emb.

    With `token_width`, x + cross-attention(norm) to tokens comes between them.
    """

    def __init__(self, width: int, heads: int, hidden: int, token_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = Linear(width, 6 * width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.mlp1, self.mlp2 = Linear(width, hidden), Linear(hidden, width)
        # No gate in the modulation, whose shape stays, so that weights trained without tokens fit a DiT with them; an
        # output that starts at zero leaves their function as it is (PixArt-α, 2023, arXiv 2310.00426, section 2.3).
        self.cross = None if token_width is None else CrossAttention(width, token_width, heads)

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb)[:, None].chunk(6, dim=2)
        x = x + gate_1 * self.attention(_norm(x) * (1 + scale_1) + shift_1)
        if self.cross is not None:
            x = x + self.cross(_norm(x), tokens, mask)
        hidden = self.mlp1(_norm(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.mlp2(F.gelu(hidden, approximate="tanh"))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, tokens, width/heads)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


def _norm(x: Tensor) -> Tensor:
    """Layer normalisation without weights of its own: the modulation is in their place."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _positions(side: int, width: int) -> Tensor:
    """(side², width) embeddings of the places, row by row: sin(x·ω) | cos(x·ω) | sin(y·ω) | cos(y·ω).

    ω_i = 10000^(-i/(width/4)); x counts patches to the right, y downwards. Made in float64.
    """
    place = torch.arange(side, dtype=torch.float64)
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(place, place, indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()
