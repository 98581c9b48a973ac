"""Heun's method: an Euler step, and its slope averaged with the one where it lands."""

from typing import Literal

from torch import Tensor

from .base import Sampler, Step
from .spacing import Karras, Spacing, Trailing

LARGEST = 80 * 1.001  # EDM's σ_max, and what rounding adds


class Heun(Sampler):
    """x_s = α_s·(x_t/α_t + (σ_s - σ_t)·(ε_t + ε_s)/2) with α = √ᾱ, σ = √((1 - ᾱ)/ᾱ), ε_s predicted at DDIM's x_s.

    In x/α against σ the slope of the reverse equation is ε itself. Two network calls a step, but one at the last,
    where ε_s cannot be predicted, and where σ is beyond EDM's largest, 80, there to see of x_0 being nothing: such a
    step, which a cosine schedule (σ_T = 20,000) or zero terminal SNR begins with, has a slope that means nothing
    multiplied by its great length. These steps are DDIM's.

    With the variable τ = σ/(1 + σ) the slope is that of a flow's straight path, v = ε - x_0 in x/(α + √(1 - ᾱ)), and
    x_s = DDIM's + (α_s + √(1 - ᾱ_s))·(τ_s - τ_t)·(v_s - v_t)/2, from τ = 1 on, where no signal is left.

    Paper: Elucidating the design space of diffusion-based generative models. Karras et al., 2022, arXiv 2206.00364,
    algorithm 1, without its churn.

    Args:
        steps: see `Sampler`.
        clip: see `Sampler`.
        spacing: see `Sampler`; None is EDM's own, `Karras()`, for sigma, and `Trailing()` for tau.
        dynamic: see `Sampler`.
        variable: in which the slope is averaged: sigma, or tau for flows.
    """

    def __init__(
        self,
        steps: int | None = 18,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
        variable: Literal["sigma", "tau"] = "sigma",
    ) -> None:
        if variable not in ("sigma", "tau"):
            raise ValueError(f"variable is {variable}, but slopes are averaged in sigma or in tau: give one of them")
        super().__init__(steps, clip, spacing or (Karras() if variable == "sigma" else Trailing()), dynamic)
        self.variable = variable

    @property
    def deterministic(self) -> bool:
        return True

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        signal, noise = at.schedule.scales(at.s, x_t)
        euler = signal * at.prediction.x_0 + noise * at.prediction.eps
        if self.variable == "tau":
            return euler if at.s == 0 else euler + self._curved(euler, at)
        sigma_t, sigma_s = at.schedule.snr(at.t).rsqrt(), at.schedule.snr(at.s).rsqrt()
        if at.s == 0 or max(sigma_t, sigma_s) > LARGEST:
            return euler
        change = at.schedule.alpha_sigma(at.s)[0] * (sigma_s - sigma_t) / 2
        return euler + change * (at.predict(euler, at.s).eps - at.prediction.eps)

    def _curved(self, euler: Tensor, at: Step) -> Tensor:
        """What the slope's change along a straight path adds to Euler's step."""
        there, here = at.predict(euler, at.s), at.prediction
        signal, noise = at.schedule.alpha_sigma(at.s)
        change = (signal + noise) * (at.schedule.tau(at.s) - at.schedule.tau(at.t)) / 2
        return change * ((there.eps - there.x_0) - (here.eps - here.x_0))
