"""DPM-Solver++: a multistep solver that treats the linear part of the reverse equation exactly."""

from torch import Tensor

from ..schedules import Schedule
from .base import Sampler, Step
from .spacing import Spacing


class DPMSolver(Sampler):
    """x_s = (σ_s/σ_t)·x_t + (α_s - σ_s·α_t/σ_t)·D, with α = √ᾱ and σ = √(1 - ᾱ).

    D is x_0 at first order, which is DDIM, and at second order ("2M") x_0 + (x_0 - x_0')·h/(2h') with x_0' from the
    step before, h and h' being this step's and that one's length in λ = log(α/σ). The first step is of first order,
    and so is the last, which is infinitely long, and the one after an infinitely long one (zero terminal SNR).

    Paper: DPM-Solver++. Lu et al., 2022, arXiv 2211.01095, algorithm 2.

    Args:
        steps: see `Sampler`.
        order: 1 or 2.
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
        if order not in (1, 2):
            raise ValueError(f"order is {order}, but DPMSolver keeps at most one earlier step: give order 1 or 2")
        self.order = order

    @property
    def deterministic(self) -> bool:
        return True

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        if at.t == 0:  # an inversion's first step, of infinite length, is DDIM's
            signal, noise = at.schedule.scales(at.s, x_t)
            return signal * at.prediction.x_0 + noise * at.prediction.eps
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at.schedule.alpha_sigma(at.t), at.schedule.alpha_sigma(at.s)
        x_0 = at.prediction.x_0
        if self.order == 2 and at.before is not None:
            before, other = at.before
            ratio = _length(at.schedule, at.t, at.s) / _length(at.schedule, before, at.t)
            if 0 < abs(ratio) < float("inf"):
                x_0 = x_0 + ratio / 2 * (x_0 - other.x_0)
        return sigma_s / sigma_t * x_t + (alpha_s - sigma_s * alpha_t / sigma_t) * x_0


def _length(schedule: Schedule, t: int, s: int) -> float:
    """λ_s - λ_t, half the change of the log-SNR."""
    return float(schedule.snr(s).log() - schedule.snr(t).log()) / 2
