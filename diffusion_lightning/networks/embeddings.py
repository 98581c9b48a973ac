"""Embeddings of the time index."""

import math

import torch
from torch import Tensor


def sinusoidal(t: Tensor, width: int, cosine_first: bool = False, shift: int = 1) -> Tensor:
    """(B,) times to (B, width): sin(t·ω_i) | cos(t·ω_i), ω_i = 10000^(-i/(width/2 - shift)), in float32.

    DDPM's with these defaults; IDDPM, ADM and DiT have `cosine_first=True, shift=0`.

    Always float32: in bfloat16 a thousand times would collapse to some five hundred.

    Paper: Attention is all you need. Vaswani et al., 2017, arXiv 1706.03762, section 3.5, in the form that DDPM uses.
    """
    half = width // 2
    omega = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / (half - shift)))
    angle = t.float()[:, None] * omega  # nothing here is what autocast reduces
    return torch.cat([angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()], dim=1)
