"""Which times are trained, and how much each counts.

L = E_{t, x_0, ε} [ w(t)·‖target - output‖² ],    L_simple: t uniform on 1 … T and w = 1 on the ε-error
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from . import random
from .schedules import Schedule


class Weighting(ABC):
    """How much each example's squared error counts."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(B,) factors for times t (B,)."""


class Simple(Weighting):
    """w = 1.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equation 14.
    """

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)


class TimestepSampler(ABC):
    """Draws the time at which each example of a batch is trained."""

    @abstractmethod
    def __call__(self, schedule: Schedule, seed: int, purpose: str, step: int, sample: Tensor) -> Tensor:
        """(B,) int64 times in 1 … T, a function of the seed, the purpose, the step and the samples' numbers (B,)."""


class Uniform(TimestepSampler):
    """Each sample's own t, uniform on 1 … T.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, algorithm 1, line 3.
    """

    def __call__(self, schedule: Schedule, seed: int, purpose: str, step: int, sample: Tensor) -> Tensor:
        return random.integers(1, schedule.T + 1, seed, purpose, step, sample)
