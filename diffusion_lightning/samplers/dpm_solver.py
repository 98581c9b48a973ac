"""DPM-Solver++: a multistep solver that treats the linear part of the reverse equation exactly."""

import math
from itertools import pairwise, takewhile

from torch import Tensor

from ..schedules import Schedule
from .base import Sampler, Step
from .spacing import Spacing


class DPMSolver(Sampler):
    """x_s = (σ_s/σ_t)·x_t + (α_s - σ_s·α_t/σ_t)·D, with α = √ᾱ and σ = √(1 - ᾱ).

    D is the mean of x_0 over the step, weighted by e^λ, λ = log(α/σ). At first order it is x_0, which is DDIM, and at
    second order ("2M") x_0 + h/2·x_0', with the slope x_0' = (x_0 - x_0 of the step before)/h_1, h and h_1 being this
    step's and that one's length in λ. At third order ("3M") the slope and the curvature are those of the parabola in λ
    through three x_0: D = x_0 + k_1·h·x_0' + k_2·h²·x_0'', k_1 = 1/(1 - e^-h) - 1/h, k_2 = (1/2 - k_1)/h + k_1/2.

    The first step is of first order, the second at most of second, and so on after an infinitely long one (zero
    terminal SNR); the last, which is infinitely long, is of first order.

    Papers: DPM-Solver++. Lu et al., 2022, arXiv 2211.01095, algorithm 2; UniPC. Zhao et al., 2023, arXiv 2302.04867,
    for the third order, which is its predictor UniP-3. DPM-Solver's released code takes half this curvature, which
    leaves its "3M" of second order.

    Args:
        steps: see `Sampler`.
        order: 1, 2 or 3.
        clip: see `Sampler`.
        spacing: see `Sampler`.
        dynamic: see `Sampler`.
    """

    def __init__(
        self,
        steps: int | None = 20,
        order: int = 2,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
    ) -> None:
        super().__init__(steps, clip, spacing, dynamic)
        if order not in (1, 2, 3):
            raise ValueError(f"order is {order}, but DPMSolver keeps at most two earlier steps: give order 1, 2 or 3")
        self.order = order

    @property
    def deterministic(self) -> bool:
        return True

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        if at.t == 0:  # an inversion's first step, of infinite length, is DDIM's
            signal, noise = at.schedule.scales(at.s, x_t)
            return signal * at.prediction.x_0 + noise * at.prediction.eps
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at.schedule.alpha_sigma(at.t), at.schedule.alpha_sigma(at.s)
        return sigma_s / sigma_t * x_t + (alpha_s - sigma_s * alpha_t / sigma_t) * self._mean(at)

    def _mean(self, at: Step) -> Tensor:
        """D, of as high an order as the steps before allow."""
        earlier = at.before[: self.order - 1]
        found = [at.prediction.x_0, *(prediction.x_0 for _, prediction in earlier)]
        h = _length(at.schedule, at.t, at.s)
        spans = pairwise([at.t, *(t for t, _ in earlier)])
        ratios = [h / _length(at.schedule, before, after) for after, before in spans]
        usable = list(takewhile(lambda ratio: 0 < abs(ratio) < math.inf, ratios))
        if not usable:
            return found[0]
        change = usable[0] * (found[0] - found[1])  # h·x_0', the slope being that of the step before
        if len(usable) == 1:
            return found[0] + change / 2
        bend = (change - usable[1] * (found[1] - found[2])) / (1 / usable[0] + 1 / usable[1])  # h²·x_0''/2
        k_1 = -1 / math.expm1(-h) - 1 / h
        k_2 = (0.5 - k_1) / h + k_1 / 2
        return found[0] + k_1 * (change + bend / usable[0]) + 2 * k_2 * bend


def _length(schedule: Schedule, t: int, s: int) -> float:
    """λ_s - λ_t, half the change of the log-SNR."""
    return float(schedule.snr(s).log() - schedule.snr(t).log()) / 2
