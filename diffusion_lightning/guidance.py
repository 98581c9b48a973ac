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

    Papers: Classifier-free diffusion guidance. Ho, Salimans, 2022, arXiv 2207.12598, equation 6; Applying guidance in a
    limited interval improves sample and distribution quality in diffusion models. Kynkäänniemi et al., 2024, arXiv
    2404.07724, for the interval; Common diffusion noise schedules and sample steps are flawed. Lin et al., 2023, arXiv
    2305.08891, equations 14 to 16, for the rescaling.

    Args:
        denoiser: `denoiser(x_t, t, c) -> Prediction`, trained with its condition dropped now and then.
        conditioner: that of the training, which gives the null condition.
        scale: at least 0.
        interval: (low, high) in σ = √(1 - ᾱ_t)/√ᾱ_t: it guides where low < σ ≤ high, and elsewhere the condition alone
            speaks, in half the time; None is everywhere.
        rescale: φ in [0, 1]: the guided output is brought nearer to the deviation of the conditional one, φ being all
            the way; it is the network's raw output that is scaled, and x_0 and ε follow.
        channels: guide the first so many channels alone, as DiT's released code does three of four; None is all.

    Raises:
        ValueError: if the training never dropped the condition, or an argument is out of its range.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: Conditioner,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= scale < float("inf"):
            raise ValueError(f"the scale of guidance is {scale}: give 0 or more; 1 is no guidance")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"the interval of guidance is {list(interval)} in σ: give [low, high], 0 ≤ low < high")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale is {rescale}, but it is a part of the way: give a number in [0, 1]")
        if channels is not None and channels < 1:
            raise ValueError(f"guidance of {channels} channels guides nothing: give at least 1, or null for all")
        self.denoiser: Any = denoiser  # whose schedule and parameterization what follows asks for
        self.scale, self.channels = scale, channels
        self.interval, self.rescale = interval, rescale
        self.null: Any = conditioner(conditioner.null(1))  # (1, width), computed once for all steps

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor) -> Prediction:
        """x_0, ε and m at x_t (B, C, H, W) given c (B, width), with t an int in 1 … T or a tensor (B,)."""
        if self.scale == 1 or not self._within(t):
            return self.denoiser(x_t, t, c)
        both = torch.cat([c, self.null.expand_as(c)])
        times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        found = self.denoiser(torch.cat([x_t, x_t]), times, both)
        var_mix = None if found.var_mix is None else found.var_mix[: len(x_t)]
        if self.rescale == 0:
            return Prediction(self._guided(found.x_0), self._guided(found.eps), var_mix)
        output, plain = self._guided(found.output), found.output[: len(x_t)]
        ratio = plain.flatten(1).std(1) / output.flatten(1).std(1)
        output = output * (1 + self.rescale * (ratio - 1)).view(-1, 1, 1, 1)
        made = self.denoiser.parameterization.prediction(self.denoiser.schedule, output, x_t, t)
        return made._replace(var_mix=var_mix)

    def _within(self, t: int | Tensor) -> bool:
        """Whether it guides at this time; a sampler's steps have one time for all samples."""
        if self.interval is None:
            return True
        sigma = self.denoiser.schedule.log_sigma(t).exp()
        inside = (self.interval[0] < sigma) & (sigma <= self.interval[1])
        if bool(inside.all()) != bool(inside.any()):
            raise ValueError("the interval of guidance takes one time for all samples of a call: give t as an int")
        return bool(inside.all())

    def _guided(self, of_both: Tensor) -> Tensor:
        with_c, without = of_both.chunk(2)
        guided = torch.lerp(without, with_c, self.scale)
        return (
            guided if self.channels is None else torch.cat([guided[:, : self.channels], with_c[:, self.channels :]], 1)
        )


Guidance = float | Callable[[nn.Module], nn.Module] | None  # the scale of `ClassifierFree`, or what wraps a denoiser


def guided(denoiser: nn.Module, conditioner: Conditioner, guidance: Guidance) -> nn.Module:
    """The denoiser wrapped by its guidance; None wraps nothing."""
    if callable(guidance):
        return guidance(denoiser)
    return denoiser if guidance is None else ClassifierFree(denoiser, conditioner, float(guidance))
