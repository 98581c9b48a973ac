"""What a network's output means: from (x_t, t, c) to `Prediction(x_0, eps)`, for every parameterisation.

    x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε,    log σ² = m·log β_{t|s} + (1 - m)·log β̃_{t|s}

The only place that knows which of x_0, ε, … a network was trained to give, and the only one that shifts the time:
outside t runs 1 … T, a network is fed the 0-based index t - 1 that published checkpoints expect.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .schedules import Schedule


class Prediction(NamedTuple):
    """What a denoiser knows of x_t: the clean image, the noise, and its share m of the larger log-variance.

    All of x_t's shape (B, C, H, W); `var_mix`, in [0, 1], is None where the network does not predict the variance.
    """

    x_0: Tensor
    eps: Tensor
    var_mix: Tensor | None = None


class Parameterization(ABC):
    """What the network is trained to output, as a linear function of x_0 and ε."""

    @abstractmethod
    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should output at x_t = q_sample(x_0, t, ε), (B, C, H, W)."""

    @abstractmethod
    def prediction(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The network's output turned into x_0 and ε."""


class Epsilon(Parameterization):
    """The network outputs ε; x_0 = (x_t - √(1 - ᾱ_t)·ε)/√ᾱ_t.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equations 9, 11, 15.
    """

    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def prediction(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        return Prediction((x_t - noise * output) / signal, output)


class Denoiser(nn.Module):
    """A network, a schedule and what the one outputs: `denoiser(x_t, t, c) -> Prediction`.

    Args:
        network: `forward(x_t, index, c) -> (B, C, H, W)`, index being t - 1.
        schedule: ᾱ.
        parameterization: what the network outputs.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.network, self.schedule, self.parameterization = network, schedule, parameterization

    def output(self, x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Tensor:
        """The network's raw output at x_t (B, C, H, W), t an int in 1 … T or a tensor (B,), in x_t's type."""
        if not isinstance(t, Tensor):
            if not 1 <= t <= self.schedule.T:
                raise ValueError(f"t = {t} is not among the times 1 … {self.schedule.T} that have noise: give one")
            t = torch.full((len(x_t),), t, device=x_t.device)
        return self.network(x_t, t - 1, c).to(x_t.dtype)

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Prediction:
        """x_0 and ε at x_t (B, C, H, W), with t an int in 1 … T or a tensor (B,)."""
        return self.parameterization.prediction(self.schedule, self.output(x_t, t, c), x_t, t)


def log_variance(schedule: Schedule, t: int, s: int, m: float | Tensor) -> Tensor:
    """Log σ² = m·log β_{t|s} + (1 - m)·log β̃_{t|s}, float64: the variance of a reverse step from t to s.

    m = 1 is DDPM's "fixed large", m = 0 its "fixed small", and a tensor what a network predicts. At s = 0, where
    β̃ = 0, log β̃ is that of the step before, from t + 1 to t (the last step draws no noise; a likelihood needs it).

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 15.
    """
    large = schedule.beta(t, s).log()
    if s == 0:
        small = schedule.posterior_variance(t + 1, t).log() if t < schedule.T else large
    else:
        small = schedule.posterior_variance(t, s).log()
    return m * large + (1 - m) * small
