"""Sampling by a consistency function: from noise to an image in one call, and from there on by adding noise again."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedules import Schedule
from .base import Sampler, Step
from .spacing import Spacing


class Consistency(Sampler):
    """x_s = √ᾱ_s·f(x_t, t) + √(1 - ᾱ_s)·z with new noise z: each step ends at an image, which the next one corrects.

    Paper: Consistency models. Song, Dhariwal, Chen, Sutskever, 2023, arXiv 2303.01469, algorithm 1.

    Args:
        steps: number of calls, at least 1.
        between: the σ's, falling, to which noise is added between the calls, steps - 1 of them, each the nearest of
            the schedule; None leaves them to the spacing.
        clip: see `Sampler`.
        spacing: see `Sampler`.
        dynamic: see `Sampler`.

    Raises:
        ValueError: if `between` is not of such σ's.
    """

    def __init__(
        self,
        steps: int = 1,
        between: Sequence[float] | None = None,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
    ) -> None:
        super().__init__(steps, clip, spacing, dynamic)
        if between is not None:
            falls = all(a > b for a, b in itertools.pairwise(between))
            if len(between) != steps - 1 or not falls or not all(0 < sigma < float("inf") for sigma in between):
                raise ValueError(
                    f"between is {list(between)} and steps is {steps}, but noise is added between two calls: give "
                    f"{steps - 1} falling σ's above 0"
                )
        self.between = between

    def times(self, schedule: Schedule) -> list[int]:
        if self.between is None:
            return super().times(schedule)
        log_sigma = schedule.log_sigma(torch.arange(1, schedule.T + 1))
        wanted = torch.tensor(self.between, dtype=torch.float64).log()
        times = [schedule.T, *((log_sigma - wanted[:, None]).abs().argmin(1) + 1).tolist(), 0]
        if any(t <= s for t, s in itertools.pairwise(times)):
            raise ValueError(
                f"between is {list(self.between)}, which are the times {times[1:-1]} of the schedule's {schedule.T}, "
                "but each step goes to an earlier time: give σ's further apart, below the schedule's largest"
            )
        return times

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        if at.s == 0:
            return at.prediction.x_0
        signal, noise = at.schedule.scales(at.s, x_t)
        return signal * at.prediction.x_0 + noise * at.noise()
