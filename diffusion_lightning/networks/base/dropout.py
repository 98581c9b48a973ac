"""Dropout whose masks are cheap to draw."""

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of a draw


class Dropout(nn.Dropout):
    """x/(1 - p) where a draw keeps it and 0 elsewhere, in training; p to a part in 131,072 on a CPU.

    Four draws come from one random word of 64 bits there; PyTorch takes more than a word for each.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        kept = max(1, round((1 - self.p) * LEVELS))
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        order = torch.empty_like(x, dtype=torch.int16)  # dense, in the memory format of x
        draws = words.view(torch.int16)[: x.numel()].as_strided(order.shape, order.stride())
        return x * (draws < kept - LEVELS // 2).to(x.dtype).mul_(LEVELS / kept)
