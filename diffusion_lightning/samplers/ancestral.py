"""Algorithm 2 of DDPM: x_s ~ N(μ̃(x_0, x_t), σ²)."""

from torch import Tensor

from ..denoising import log_variance
from .base import Sampler, Step
from .spacing import Spacing


class Ancestral(Sampler):
    """x_s = posterior mean of (x_0, x_t) + σ·z, z ~ N(0, I) where s > 0 and 0 at the last step.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, algorithm 2, with the
    mean of equation 7 for any two times s < t.

    Args:
        steps: see `Sampler`.
        variance: m of log σ² = m·log β + (1 - m)·log β̃, in [0, 1]: 1 is "fixed large", 0 "fixed small"; None is
            what the network predicts, and fixed large if it predicts none.
        clip: see `Sampler`.
        spacing: see `Sampler`.
        dynamic: see `Sampler`.
    """

    def __init__(
        self,
        steps: int | None = None,
        variance: float | None = None,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
    ) -> None:
        super().__init__(steps, clip, spacing, dynamic)
        if variance is not None and not 0 <= variance <= 1:
            raise ValueError(f"variance is {variance}, but it mixes β̃ (0) and β (1): give a number in [0, 1]")
        self.variance = variance

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        mean, _ = at.schedule.posterior(at.prediction.x_0, x_t, at.t, at.s)
        if at.s == 0:
            return mean
        m: float | Tensor = 1.0
        if self.variance is not None:
            m = self.variance
        elif at.prediction.var_mix is not None:
            m = at.prediction.var_mix
        return mean + log_variance(at.schedule, at.t, at.s, m).mul(0.5).exp() * at.noise()
