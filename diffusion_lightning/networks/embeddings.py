"""Embeddings of the time index."""

import math

import torch
from torch import Tensor


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """(B,) times to (B, width): sin(t·ω_i) | cos(t·ω_i), ω_i = 10000^(-i/(width/2 - 1)), in float32.

    Always float32, since in bfloat16 a thousand times collapse to some five hundred.

    Paper: Attention is all you need. Vaswani et al., 2017, arXiv 1706.03762, section 3.5, in the form that DDPM uses.
    """
    half = width // 2
    with torch.autocast(t.device.type, enabled=False):
        omega = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
        angle = t.float()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)
