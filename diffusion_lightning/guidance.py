"""Guidance: a denoiser that wraps another one, and whose samples show their condition more clearly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import Conditioner
from .denoising import Prediction


class ClassifierFree(nn.Module):
    """ε̃(x_t, c) = ε(x_t, ∅) + scale·(ε(x_t, c) - ε(x_t, ∅)), and x_0 likewise; both evaluated in one batch.

    The scale is 1 + w of the paper: 1 is no guidance, 0 no condition; the larger, the clearer the condition and the
    less samples differ. A predicted variance is that of the conditional half.

    Paper: Classifier-free diffusion guidance. Ho, Salimans, 2022, arXiv 2207.12598, equation 6.

    Args:
        denoiser: `denoiser(x_t, t, c) -> Prediction`, trained with its condition dropped now and then.
        conditioner: that of the training, which gives the null condition.
        scale: at least 0.

    Raises:
        ValueError: if the training never dropped the condition, or the scale is below 0.
    """

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner, scale: float) -> None:
        super().__init__()
        if not 0 <= scale < float("inf"):
            raise ValueError(f"the scale of guidance is {scale}: give 0 or more; 1 is no guidance")
        self.denoiser, self.scale = denoiser, scale
        self.null: Any = conditioner(conditioner.null(1))  # (1, width), computed once for all steps

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor) -> Prediction:
        """x_0, ε and m at x_t (B, C, H, W) given c (B, width), with t an int in 1 … T or a tensor (B,)."""
        if self.scale == 1:
            return self.denoiser(x_t, t, c)
        both = torch.cat([c, self.null.expand_as(c)])
        times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        found = self.denoiser(torch.cat([x_t, x_t]), times, both)
        var_mix = None if found.var_mix is None else found.var_mix[: len(x_t)]
        return Prediction(self._guided(found.x_0), self._guided(found.eps), var_mix)

    def _guided(self, of_both: Tensor) -> Tensor:
        with_c, without = of_both.chunk(2)
        return torch.lerp(without, with_c, self.scale)


Guidance = float | Callable[[nn.Module], nn.Module] | None  # the scale of `ClassifierFree`, or what wraps a denoiser


def guided(denoiser: nn.Module, conditioner: Conditioner, guidance: Guidance) -> nn.Module:
    """The denoiser wrapped by its guidance; None wraps nothing."""
    if callable(guidance):
        return guidance(denoiser)
    return denoiser if guidance is None else ClassifierFree(denoiser, conditioner, float(guidance))
