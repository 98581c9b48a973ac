"""The scale of guidance as a condition of a network, which then guides itself in one call where there were two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...conditioning import Conditioner
from ...conditioning.base import Embedded, example, whole
from ...guidance import Guided
from ...networks.embeddings import sinusoidal
from ...random import Draw

WAVES = 64  # features of a scale
FINE = 1000.0  # the range of scales as that of a time, of which these features are made


class ScaleCondition(nn.Module):
    """Adds to a condition's vector (B, width) a small network of the scale, which is 0 at the start.

    Paper: On distillation of guided diffusion models. Meng et al., 2022, arXiv 2210.03142, section 3.1.

    Args:
        scales: (low, high), 0 ≤ low < high.
        conditioner: makes the conditions.

    Raises:
        ValueError: if this is no range, or the conditions have no vector, or training never dropped them.
    """

    def __init__(self, scales: Sequence[float], conditioner: Conditioner) -> None:
        super().__init__()
        self.low, self.high = map(float, scales)
        if not 0 <= self.low < self.high < float("inf"):
            raise ValueError(
                f"guidance is {list(scales)}, but a range of scales rises from at least 0: give [low, high]"
            )
        conditioner.null(1)
        with torch.no_grad():
            vector = whole(conditioner(example(conditioner))).vector
        if vector is None:
            raise ValueError(
                f"guidance is the range {list(scales)}, whose scale is added to a condition's vector, but "
                f"{type(conditioner).__name__} gives none: give one scale"
            )
        width = vector.shape[1]
        self.enter, self.leave = nn.Linear(WAVES, width), nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, c: Embedded, scale: Tensor) -> Embedded:
        """The condition of samples whose scales are (B,)."""
        waves = sinusoidal((scale - self.low) / (self.high - self.low) * FINE, WAVES, cosine_first=True, shift=0)
        added = self.leave(nn.functional.silu(self.enter(waves.to(self.enter.weight))))
        of = whole(c)
        assert of.vector is not None
        vector = of.vector + added.to(of.vector)
        return of._replace(vector=vector) if of.tokens is not None else vector

    def drawn(self, draw: Draw) -> Tensor:
        """(B,) scales of a draw's examples, uniform."""
        u = draw.fractions("guidance scale").to(self.leave.weight.device)
        return self.low + (self.high - self.low) * u

    def asked(self, guidance: Guided) -> Any:
        """The scale (1,) that samples are asked to have; None is the lowest.

        Raises:
            ValueError: if it is no number of the range.
        """
        scale = self.low if guidance is None else guidance
        if not isinstance(scale, int | float) or not self.low <= scale <= self.high:
            raise ValueError(
                f"guidance is {scale if isinstance(scale, int | float) else type(scale).__name__}, but the student "
                f"knows the scales in [{self.low:g}, {self.high:g}]: give one of them"
            )
        return self.leave.weight.new_tensor([float(scale)])
