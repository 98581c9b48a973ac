"""Heun's method: an Euler step, and its slope averaged with the one where it lands."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
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

    With churn, a step first adds noise, up to σ̂ = σ_t·(1 + γ) with γ = min(churn/steps, √2 - 1), and starts from there.
    Networks are made for the schedule's times, so σ̂ is the nearest of theirs in ln σ, and the noise is what the forward
    process adds between the two times, x ← √(1 - β)·x + noise_scale·√β·z: x stays exactly on its marginal. A schedule
    whose times are farther apart than γ gets no noise, and none has any at T, above which there is no time.

    Paper: Elucidating the design space of diffusion-based generative models. Karras et al., 2022, arXiv 2206.00364,
    algorithm 1, and 2 with churn.

    Args:
        steps: see `Sampler`.
        clip: see `Sampler`.
        spacing: see `Sampler`; None is EDM's own, `Karras()`, for sigma, and `Trailing()` for tau.
        dynamic: see `Sampler`.
        variable: in which the slope is averaged: sigma, or tau for flows.
        churn: EDM's S_churn, at least 0: how much noise is added, over all steps; 0 is none.
        churn_interval: EDM's (S_tmin, S_tmax) in σ: noise is added where low ≤ σ_t ≤ high; None is everywhere.
        noise_scale: EDM's S_noise, above 0: what this noise is multiplied by, a little above 1 against networks that
            remove too much; 1 is exact.
    """

    def __init__(
        self,
        steps: int | None = 18,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
        variable: Literal["sigma", "tau"] = "sigma",
        churn: float = 0.0,
        churn_interval: tuple[float, float] | None = None,
        noise_scale: float = 1.0,
    ) -> None:
        if variable not in ("sigma", "tau"):
            raise ValueError(f"variable is {variable}, but slopes are averaged in sigma or in tau: give one of them")
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn is {churn}, but it is an amount of noise: give 0 or more")
        if churn_interval is not None and not 0 <= churn_interval[0] <= churn_interval[1]:
            raise ValueError(f"churn_interval is {list(churn_interval)} in σ: give [low, high], 0 ≤ low ≤ high")
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale is {noise_scale}, but it is a factor of noise: give a number above 0")
        super().__init__(steps, clip, spacing or (Karras() if variable == "sigma" else Trailing()), dynamic)
        self.variable, self.churn = variable, churn
        self.churn_interval, self.noise_scale = churn_interval, noise_scale

    @property
    def deterministic(self) -> bool:
        return self.churn == 0

    def begin(self, schedule: Schedule, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> tuple[Tensor, int]:
        above = self._churned(schedule, t)
        if above == t:
            return x_t, t
        beta = schedule.beta(above, t)
        return (1 - beta).sqrt() * x_t + self.noise_scale * beta.sqrt() * noise(), above

    def _churned(self, schedule: Schedule, t: int) -> int:
        """The time from T down to t whose σ is nearest to σ̂."""
        low, high = self.churn_interval or (0.0, math.inf)
        log_sigma = schedule.log_sigma(torch.arange(t, schedule.T + 1))
        gamma = min(self.churn / (self.steps or schedule.T), math.sqrt(2) - 1)
        if gamma == 0 or t == schedule.T or not low <= float(log_sigma[0].exp()) <= high:
            return t
        return t + int((log_sigma - log_sigma[0] - math.log1p(gamma)).abs().argmin())

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
