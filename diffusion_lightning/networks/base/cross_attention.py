"""Cross-attention to the tokens of a condition, and the parts of a condition that a network takes."""

from typing import Any

import torch
from torch import Tensor, nn

from .attention import attend
from .matmuls import Linear


class CrossAttention(nn.Module):
    """softmax(q·kᵀ/√D)·v, with q from the features of an image, k and v from layer-normalised tokens.

    What it returns is added to the features. Its output projection `out` starts at zero, or near it, so that a network
    starts as it would without tokens: the network's own start sees to it.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2022, arXiv 2112.10752,
    section 3.3.

    Args:
        width: features of the image, and of the output.
        token_width: features of a token.
        heads: attention heads, which divide `width`.
    """

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(token_width)
        self.query, self.key_value = Linear(width, width), Linear(token_width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, width) from x (B, N, width), already normalised, and tokens (B, L, token_width).

        Args:
            x: features of N pixels or patches.
            tokens: in any floating type.
            mask: (B, L) bool, True where a token is real, in every row at least one; None if all are. What stands at
                the others is not read, not even NaN, and gets a gradient of zero.
        """
        if mask is not None:  # a weight of zero would not be enough: 0·NaN is NaN
            tokens = torch.where(mask[:, :, None], tokens, 0)
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        q, (k, v) = self.query(x), self.key_value(tokens).chunk(2, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, …, D)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def unpacked(c: Any, token_width: int | None, network: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The vector, tokens and mask of a condition, each of which may be None.

    Args:
        c: None, a vector (B, width), or a tuple of vector, tokens and mask.
        token_width: features of the tokens that the network attends to; None if it attends to none.
        network: its name in messages.

    Raises:
        ValueError: if the network attends to tokens and gets none, or the reverse, or the tokens or their mask do not
            fit.
    """
    vector, tokens, mask = c if isinstance(c, tuple) else (c, None, None)
    if tokens is None:
        if token_width is not None:
            raise ValueError(
                f"the {network} attends to tokens of {token_width} features, but gets none: give it a condition that "
                "has tokens, or set the network's token_width to None"
            )
        return vector, None, None
    if token_width is None:
        raise ValueError(
            f"the {network} attends to no tokens, but gets some of {tokens.shape[-1]} features: set the network's "
            f"token_width to {tokens.shape[-1]}, or give it a condition without tokens"
        )
    if tokens.ndim != 3 or tokens.shape[2] != token_width:
        raise ValueError(
            f"the {network} attends to tokens of shape (B, L, {token_width}), but these have {tuple(tokens.shape)}: "
            f"set the network's token_width to {tokens.shape[-1]}, or give it other tokens"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"the tokens have shape {tuple(tokens.shape)}, but their mask is {mask.dtype} of shape "
            f"{tuple(mask.shape)}: give a torch.bool mask of shape {tuple(tokens.shape[:2])}, True at real tokens"
        )
    return vector, tokens, mask
