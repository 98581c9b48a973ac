"""Where the compiler makes code for a GPU, other forms than PyTorch's own are fast."""

import torch
from torch import Tensor


def compiling(x: Tensor) -> bool:
    """Whether code is being made for a GPU, which reads features channels last and joins what lies between products."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()
