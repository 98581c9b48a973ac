"""The times of a schedule that a sampler visits."""

from abc import ABC, abstractmethod
from itertools import accumulate, repeat

import torch
from torch import Tensor

from ..schedules import Schedule


class Spacing(ABC):
    """The choice of the schedule's times that a sampler visits."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        """`steps` falling times in 1 … T, then 0, or above it where a published sampler ends."""


class Trailing(Spacing):
    """T, T - T/n, …, T/n, 0, rounded: starts at pure noise."""

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        return [round(schedule.T * k / steps) for k in range(steps, -1, -1)]


class Leading(Spacing):
    """1 + k·⌊T/n⌋ for k = n - 1 … 0, then 0: DDIM's own; it ends with the smallest step and starts below T.

    Published latent models are sampled one time later, and to t = 1 instead of 0: diffusers' `steps_offset: 1` and
    `set_alpha_to_one: false` are `Leading(offset=1, final=1)`.

    Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, appendix D.2, "linear".

    Args:
        offset: by how much all times are later, at least 0.
        final: the last time, 0 or 1. With 1 and no offset the last step has no length and is left out.
    """

    def __init__(self, offset: int = 0, final: int = 0) -> None:
        if offset < 0 or final not in (0, 1):
            raise ValueError(
                f"offset is {offset} and final is {final}, but times are later by at least 0 and end at 0 or 1: give "
                "such numbers"
            )
        self.offset, self.final = offset, final

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        stride, first = schedule.T // steps, 1 + self.offset
        times = [first + k * stride for k in range(steps - 1, -1, -1)]
        if times[0] > schedule.T:
            raise ValueError(
                f"{steps} steps that are later by an offset of {self.offset} begin at t = {times[0]}, but the schedule "
                f"has T = {schedule.T}: give fewer steps"
            )
        last = max(self.final, first - stride)  # one stride on, as diffusers goes, where that is a time still
        return times if times[-1] == last else [*times, last]


class Respaced(Spacing):
    """1 + k·(T - 1)/(n - 1) for k = n - 1 … 0, rounded, then 0: evenly from T to 1, both among them, as DiT is sampled.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, section 4.
    """

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        if steps == 1:
            return [schedule.T, 0]
        strides = repeat((schedule.T - 1) / (steps - 1), steps - 1)
        rising = [1 + round(x) for x in accumulate(strides, initial=0.0)]  # summed as the released code does
        return [*reversed(rising), 0]


class UniformLogSNR(Spacing):
    """Times evenly spaced in the log-SNR: more of them at both ends of a cosine schedule, where it changes fastest.

    From T (its log-SNR taken as at least -12, below which there is nothing to see of x_0) to 1; each time once, so
    where many fall together they move to the nearest free ones.

    Paper: DPM-Solver. Lu et al., 2022, arXiv 2206.00927, section 3.4, for its "uniform λ".
    """

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        log_snr = schedule.snr(torch.arange(1, schedule.T + 1)).log().clamp(min=-12).cpu()
        return nearest(log_snr, torch.linspace(float(log_snr[0]), float(log_snr[-1]), steps, dtype=torch.float64))


class Karras(Spacing):
    """Times whose σ = √((1 - ᾱ_t)/ᾱ_t) are nearest to EDM's, evenly spaced in σ^(1/ρ): fewer where σ is large.

    From T (its σ taken as at most 80) to 1; each time once.

    Paper: Elucidating the design space of diffusion-based generative models. Karras et al., 2022, arXiv 2206.00364,
    equation 5.

    Args:
        rho: ρ, above 0; the larger, the more of the steps are at small σ.
    """

    def __init__(self, rho: float = 7.0) -> None:
        if rho <= 0:
            raise ValueError(f"rho is {rho}, but σ^(1/ρ) is evenly spaced: give rho > 0")
        self.rho = rho

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        curve = schedule.snr(torch.arange(1, schedule.T + 1)).rsqrt().clamp(max=80).pow(1 / self.rho).cpu()
        return nearest(curve, torch.linspace(float(curve[0]), float(curve[-1]), steps, dtype=torch.float64))


def nearest(curve: Tensor, wanted: Tensor) -> list[int]:
    """Falling times whose values on a curve over t = 1 … T are nearest to the wanted ones, then 0.

    The curve and the wanted values run from 1 to T. Each time is taken once, so where many fall together they move to
    the nearest free ones.
    """
    T, steps = len(curve), len(wanted)
    times: list[int] = []
    for k, t in enumerate(((curve - wanted[:, None]).abs().argmin(1) + 1).tolist()):
        times.append(min(max(t, times[-1] + 1 if times else 1), T - (steps - 1 - k)))
    times[-1] = T
    return [*reversed(times), 0]


def even(angles: dict[int, float], n: int) -> list[int]:
    """Some n of a sampler's times, from the last to the first: those whose angles φ are nearest to evenly spaced ones.

    Even steps of a sampler would show little but noise, or little but the image, of all schedules and spacings but one.

    Args:
        angles: φ at each time that is visited, rising, as `Sampler.angles` gives them.
        n: how many; all times where there are fewer.
    """
    times, angle = list(angles), torch.tensor(list(angles.values()), dtype=torch.float64)
    wanted = torch.linspace(0, float(angle[-1]), min(n, len(times)), dtype=torch.float64)
    return [times[i] for i in nearest(angle[1:], wanted[1:])]
