"""Matmuls and convolutions in a type that is fast on this CPU."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fast_types(able: Mapping[str, Any]) -> frozenset[torch.dtype]:
    """The types in which a CPU's matmuls are no slower than in float32, given its `torch.cpu.get_capabilities()`.

    Reduced ones if there are matrix units for them. Dot products of bfloat16 in AVX-512 are twice as fast as
    float32's on AMD's processors and half as fast on Intel's; on others PyTorch converts number by number.
    """
    fast = {torch.float32, torch.float64}
    dots = able.get("avx512_bf16") and "Intel" not in able.get("cpu_name", "")
    if able.get("amx_bf16") or dots or able.get("bf16"):  # the last is ARM's
        fast.add(torch.bfloat16)
    if able.get("amx_fp16"):
        fast.add(torch.float16)
    return frozenset(fast)


FAST = fast_types(torch.cpu.get_capabilities())


def in_fast_type(op: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """op(x, *others), a convolution, matmul or attention, computed in a type that is fast where x lies.

    On a CPU that is slow in the type of x, or of the autocast around, it is computed in float32 and rounded to that
    type. The product of two bfloat16 is exact in float32, and sums are float32 everywhere: it is the same function up
    to the order of sums, and weights, which are not rounded first.
    """
    if x.device.type != "cpu":
        return op(x, *others)
    autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64  # which autocast leaves alone
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if dtype in FAST:
        return op(x, *others)
    with torch.autocast("cpu", enabled=False):
        return op(x.float(), *(part if part is None else part.float() for part in others)).to(dtype)


class Conv2d(nn.Conv2d):
    """PyTorch's, fast in reduced precision on any CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return in_fast_type(self._conv_forward, x, self.weight, self.bias)


class Linear(nn.Linear):
    """PyTorch's, fast in reduced precision on any CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return in_fast_type(F.linear, x, self.weight, self.bias)
