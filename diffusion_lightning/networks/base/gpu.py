"""Whether torch.compile is making code for a GPU, for which other forms than PyTorch's own are fast."""

import torch
from torch import Tensor


def compiling(x: Tensor) -> bool:
    """Whether code is being compiled for a GPU: features are channels last, and what lies between matmuls is fused."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()
