"""Attention in the form that is fastest where it runs."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .matmuls import in_fast_type

LONGEST = 1024  # tokens whose weights, all pairs at once, are no burden to a CPU


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√D)·v over (B, heads, tokens, D), where q may have other tokens than k and v.

    On a CPU as two matmuls, no slower there than PyTorch's fused attention; elsewhere, and for more than 1,024 tokens,
    fused.

    `mask` (B, tokens of k) is True where a token is attended to, in every row at least once; None for all of them.

    Paper: Attention is all you need. Vaswani et al., 2017, arXiv 1706.03762, equation 1.
    """
    return in_fast_type(partial(_attend, mask=mask), q, k, v)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, tokens of k)
    if q.device.type != "cpu" or q.shape[2] * k.shape[2] > LONGEST**2:
        return F.scaled_dot_product_attention(q, k, v, mask)
    flat = [x.flatten(0, 1) for x in (q * q.shape[3] ** -0.5, k, v)]
    scores = torch.bmm(flat[0], flat[1].mT)
    if mask is not None:
        scores = scores.unflatten(0, q.shape[:2]).masked_fill(~mask, -torch.inf).flatten(0, 1)
    return torch.bmm(scores.softmax(2), flat[2]).unflatten(0, q.shape[:2])
