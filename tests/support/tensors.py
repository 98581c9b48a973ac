"""Every matmul and convolution that a block of code makes."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "attention", "linear")


class Made(TorchDispatchMode):
    """Gathers the types of all numbers that are multiplied and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.__name__ for word in PRODUCTS):
            self.types[args[0].dtype] = self.types.get(args[0].dtype, 0) + 1
        return func(*args, **(kwargs or {}))
