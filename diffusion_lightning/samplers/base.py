"""The loop that all samplers share: over pairs of times T = t_0 > t_1 > … > t_n = 0, one `step` each.

It owns the choice of times, the clipping of x_0, and each sample's own noise; a sampler owns the arithmetic of a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .. import random
from ..denoising import Prediction
from ..schedules import Schedule

Denoise = Callable[[Tensor, int, Tensor | None], Prediction]


class Spacing(ABC):
    """Which of the schedule's times a sampler visits."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        """`steps` falling times in 1 … T, then 0."""


class Trailing(Spacing):
    """T, T - T/n, …, T/n, 0, rounded: starts at pure noise."""

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        return [round(schedule.T * k / steps) for k in range(steps, -1, -1)]


class Leading(Spacing):
    """1 + k·⌊T/n⌋ for k = n - 1 … 0, then 0: DDIM's own; it ends with the smallest step and starts below T.

    Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, appendix D.2, "linear".
    """

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        return [1 + k * (schedule.T // steps) for k in range(steps - 1, -1, -1)] + [0]


class UniformLogSNR(Spacing):
    """Times evenly spaced in the log-SNR: more of them at both ends of a cosine schedule, where it changes fastest.

    From T (its log-SNR taken as at least -12, below which there is nothing to see of x_0) to 1; each time once, so
    where many fall together they move to the nearest free ones.

    Paper: DPM-Solver. Lu et al., 2022, arXiv 2206.00927, section 3.4, for its "uniform λ".
    """

    def __call__(self, schedule: Schedule, steps: int) -> list[int]:
        log_snr = schedule.snr(torch.arange(1, schedule.T + 1)).log().clamp(min=-12).cpu()
        wanted = torch.linspace(float(log_snr[0]), float(log_snr[-1]), steps, dtype=torch.float64)
        nearest = (log_snr - wanted[:, None]).abs().argmin(1) + 1
        times: list[int] = []
        for k, t in enumerate(nearest.tolist()):
            times.append(min(max(t, times[-1] + 1 if times else 1), schedule.T - (steps - 1 - k)))
        if steps > 1:
            times[-1] = schedule.T
        return [*reversed(times), 0]


class Sampler(ABC):
    """The reverse loop. Subclasses give one step, t → s.

    Args:
        steps: number of network calls, in 1 … T; None is all T.
        clip: bound to which |x_0| is clipped before anything is made of it; None for no clipping, as latents want.
        spacing: which times are visited; None is `Trailing()`.
    """

    def __init__(self, steps: int | None = None, clip: float | None = 1.0, spacing: Spacing | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"a sampler of {steps} steps makes no image: give steps ≥ 1, or none for all T")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip is {clip}, which leaves no image: give a bound above 0, or null for no clipping")
        self.steps, self.clip, self.spacing = steps, clip, spacing or Trailing()

    @abstractmethod
    def step(
        self,
        schedule: Schedule,
        x_t: Tensor,
        t: int,
        s: int,
        prediction: Prediction,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        """x_s from x_t (B, C, H, W) and what was predicted there; `noise()` draws standard normals of x_t's shape."""

    def times(self, schedule: Schedule) -> list[int]:
        """The times visited, falling from at most T to 0.

        Raises:
            ValueError: where there are more steps than times.
        """
        steps = self.steps or schedule.T
        if steps > schedule.T:
            raise ValueError(
                f"the sampler takes {steps} steps, but the schedule has T = {schedule.T}: give steps ≤ {schedule.T}"
            )
        return self.spacing(schedule, steps)

    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x_T: Tensor,
        c: Tensor | None = None,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Images from noise.

        Args:
            denoise: `denoise(x_t, t, c) -> Prediction`.
            schedule: the one that the denoiser was made for.
            x_T: (B, C, H, W) standard normal noise.
            c: (B, …) condition.
            seeds: one integer a sample, of which alone its noise is a function; None is 0 … B - 1.

        Returns:
            x_0, (B, C, H, W).
        """
        keys = torch.as_tensor(range(len(x_T)) if seeds is None else seeds, device=x_T.device)
        if keys.shape != x_T.shape[:1]:
            raise ValueError(f"{keys.numel()} seeds for {len(x_T)} samples: give one integer a sample")
        x_t = x_T
        for t, s in pairwise(self.times(schedule)):
            prediction = self._clipped(schedule, x_t, t, denoise(x_t, t, c))

            def noise(x_t: Tensor = x_t, t: int = t) -> Tensor:
                return random.normal(x_t.shape[1:], keys, "reverse step", t, torch.zeros_like(keys)).to(x_t.dtype)

            x_t = self.step(schedule, x_t, t, s, prediction, noise)
        return x_t

    def _clipped(self, schedule: Schedule, x_t: Tensor, t: int, prediction: Prediction) -> Prediction:
        """x_0 within ± clip and the ε that belongs to it, so that a step's mean is made of what was clipped."""
        if self.clip is None:
            return prediction
        x_0 = prediction.x_0.clamp(-self.clip, self.clip)
        signal, noise = schedule.scales(t, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise, prediction.var_mix)
