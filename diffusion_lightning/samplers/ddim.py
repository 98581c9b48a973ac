"""DDIM: from ancestral noise (η = 1) to none at all (η = 0)."""

from torch import Tensor

from .base import Sampler, Step
from .spacing import Spacing


class DDIM(Sampler):
    """x_s = √ᾱ_s·x_0 + √(1 - ᾱ_s - σ²)·ε + σ·z with σ² = η²·β̃_{t|s}.

    Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, equations 12 and 16.

    Args:
        steps: see `Sampler`.
        eta: 0 is deterministic, 1 has the variance of `Ancestral(variance=0)`; in [0, 1].
        clip: see `Sampler`.
        spacing: see `Sampler`.
        dynamic: see `Sampler`.
    """

    def __init__(
        self,
        steps: int | None = 50,
        eta: float = 0.0,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
    ) -> None:
        super().__init__(steps, clip, spacing, dynamic)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}, but it scales the noise from none (0) to ancestral (1): give 0 … 1")
        self.eta = eta

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        signal, total = at.schedule.scales(at.s, x_t)
        if self.eta == 0 or at.s == 0:
            return signal * at.prediction.x_0 + total * at.prediction.eps
        variance = self.eta**2 * at.schedule.posterior_variance(at.t, at.s)
        mean = signal * at.prediction.x_0 + (total**2 - variance).clamp(min=0).sqrt() * at.prediction.eps
        return mean + variance.sqrt() * at.noise()
