"""DDIM: from ancestral noise (η = 1) to none at all (η = 0)."""

from collections.abc import Callable

from torch import Tensor

from ..denoising import Prediction
from ..schedules import Schedule
from .base import Sampler, Spacing


class DDIM(Sampler):
    """x_s = √ᾱ_s·x_0 + √(1 - ᾱ_s - σ²)·ε + σ·z with σ² = η²·β̃_{t|s}.

    Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, equations 12 and 16.

    Args:
        steps: see `Sampler`.
        eta: 0 is deterministic, 1 has the variance of `Ancestral(variance=0)`; in [0, 1].
        clip: see `Sampler`.
        spacing: see `Sampler`.
    """

    def __init__(
        self,
        steps: int | None = 50,
        eta: float = 0.0,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
    ) -> None:
        super().__init__(steps, clip, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}, but it scales the noise from none (0) to ancestral (1): give 0 … 1")
        self.eta = eta

    def step(
        self,
        schedule: Schedule,
        x_t: Tensor,
        t: int,
        s: int,
        prediction: Prediction,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        signal, total = schedule.scales(s, x_t)
        variance = (self.eta**2 * schedule.posterior_variance(t, s)).to(x_t)
        x_s = signal * prediction.x_0 + (total**2 - variance).clamp(min=0).sqrt() * prediction.eps
        return x_s + variance.sqrt() * noise() if self.eta and s else x_s
