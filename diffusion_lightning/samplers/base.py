"""The loop that all samplers share: over pairs of times T = t_0 > t_1 > … > t_n = 0, one `step` each.

A spacing may end at t_n = 1, as published latent models are sampled: what is left of the noise there stays.

It owns the choice of times, the clipping of x_0, and each sample's own noise; a sampler owns the arithmetic of a step.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from ..conditioning.base import Embedded
from ..denoising import Prediction
from ..schedules import Schedule, expand_like
from .spacing import Spacing, Trailing

Denoise = Callable[[Tensor, int, Any], Prediction]
Watch = Callable[[int, Tensor], None]


class Step(NamedTuple):
    """The inputs of a sampler's step from t to s.

    `prediction` is the denoiser's at x_t, `before` the times and the predictions of at most two steps before, the
    latest first (none at the first step), `predict(x, t)` calls the denoiser again, `noise()` draws standard normals
    of x_t's shape, the same ones each time in a step.
    """

    schedule: Schedule
    t: int
    s: int
    prediction: Prediction
    before: tuple[tuple[int, Prediction], ...]
    predict: Callable[[Tensor, int], Prediction]
    noise: Callable[[], Tensor]


class Sampler(ABC):
    """The reverse loop. Subclasses give one step, t → s.

    Args:
        steps: number of steps, in 1 … T; None is all T.
        clip: bound to which |x_0| is clipped before it is used; None for no clipping, as for latents.
        spacing: which times are visited; None is `Trailing()`.
        dynamic: dynamic thresholding: a quantile, in (0, 1], of each sample's |x_0|; if it exceeds the bound `clip`,
            x_0 is clipped to it instead and scaled back into the bound (Imagen: Saharia et al., 2022, arXiv
            2205.11487, section 2.3). Against guidance that saturates; None turns it off.
    """

    def __init__(
        self,
        steps: int | None = None,
        clip: float | None = 1.0,
        spacing: Spacing | None = None,
        dynamic: float | None = None,
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"a sampler of {steps} steps makes no image: give steps ≥ 1, or none for all T")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip is {clip}, which leaves no image: give a bound above 0, or null for no clipping")
        if dynamic is not None and not 0 < dynamic <= 1:
            raise ValueError(f"dynamic is {dynamic}, but it is a quantile of |x_0|: give a number in (0, 1], or null")
        if dynamic is not None and clip is None:
            raise ValueError(
                f"dynamic is {dynamic}, but without a clip there is no bound to return to: give a clip, or no dynamic"
            )
        self.steps, self.clip, self.spacing, self.dynamic = steps, clip, spacing or Trailing(), dynamic

    def angles(self, schedule: Schedule) -> dict[int, float]:
        """The angle φ of noise and signal, tan φ = √(1 - ᾱ_t)/√ᾱ_t, at each time that it visits, rising."""
        times = self.times(schedule)[::-1]
        signal, noise = schedule.alpha_sigma(torch.tensor(times))
        return dict(zip(times, torch.atan2(noise, signal).flatten().tolist(), strict=True))

    @abstractmethod
    def step(self, x_t: Tensor, at: Step) -> Tensor:
        """x_s from x_t, (B, C, H, W)."""

    def begin(self, schedule: Schedule, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> tuple[Tensor, int]:
        """The x and the time from which a step at x_t is taken: x_t and t, unless a sampler first adds noise."""
        return x_t, t

    @property
    def deterministic(self) -> bool:
        """Whether it follows a differential equation without noise of its own, so that it can be inverted."""
        return False

    def times(self, schedule: Schedule) -> list[int]:
        """The times visited, falling from at most T to 0, or to where the spacing ends.

        Raises:
            ValueError: if there are more steps than times.
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
        c: Embedded = None,
        seeds: Sequence[int] | Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images from noise.

        Args:
            denoise: `denoise(x_t, t, c) -> Prediction`.
            schedule: that of the denoiser.
            x_T: (B, C, H, W) standard normal noise.
            c: the samples' condition, which the denoiser is given.
            seeds: one integer a sample, which alone determines its noise; None is 0 … B - 1.
            watch: called with t and x_t where each step starts, and with the last time and the result at the end; not
                to change them.

        Returns:
            x_0, (B, C, H, W), in x_T's type, but float32 at least: in less, the many small steps would be lost.
        """
        return self._run(denoise, schedule, x_T, self.times(schedule), c, seeds, watch=watch)

    def invert(
        self, denoise: Denoise, schedule: Schedule, x_0: Tensor, c: Embedded = None, watch: Watch | None = None
    ) -> Tensor:
        """The noise x_T (B, C, H, W) from which this sampler makes the images x_0, to its own order of accuracy.

        The same steps, taken from clean to noise.

        Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, section 4.3.

        Raises:
            ValueError: if the sampler adds noise of its own.
        """
        if not self.deterministic:
            raise ValueError(
                f"{type(self).__name__} adds noise of its own, so that no one x_T belongs to an image: invert by a "
                "sampler without, such as DDIM(eta=0)"
            )
        return self._run(denoise, schedule, x_0, self.times(schedule)[::-1], c, watch=watch)

    def interpolate(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x_0: Tensor,
        other: Tensor,
        weights: Sequence[float],
        c: Embedded = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images between each pair of images x_0, other (B, C, H, W), (len(weights), B, C, H, W).

        Both are inverted, and what is made into images lies on the great circle between the two noises: 0 gives x_0
        again and 1 other.

        Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, appendix D.5.
        """
        start, end = (self.invert(denoise, schedule, x, c, watch) for x in (x_0, other))
        return torch.stack([self(denoise, schedule, slerp(start, end, weight), c, watch=watch) for weight in weights])

    def times_from(self, schedule: Schedule, strength: float) -> list[int]:
        """The times that `vary` visits: the last of `times`, from the one whose angle φ is nearest to strength·φ_T.

        The angle (see `angles`) is that of the noise in x_t, whose share of the variance is sin²φ, so that a strength
        means about the same on every schedule, spacing and number of steps; the start never falls as it rises.

        Raises:
            ValueError: if the strength is not in [0, 1].
        """
        if not 0 <= strength <= 1:
            raise ValueError(
                f"the strength is {strength}, but it runs from 0, the image itself, to 1, a new sample: give a number "
                "in [0, 1]"
            )
        times, angles = self.times(schedule), self.angles(schedule)
        if strength in (0, 1):
            return times[-1:] if strength == 0 else times
        wanted = strength * angles[times[0]]
        start = min(angles, key=lambda t: abs(angles[t] - wanted))
        return [t for t in times if t <= start]

    def vary(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x_0: Tensor,
        noise: Tensor,
        strength: float,
        c: Embedded = None,
        seeds: Sequence[int] | Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images like x_0: it gets the noise of a time t, x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·noise, and loses it again.

        The steps from t on are those of `times_from`. At strength 0 none is taken and x_0 is returned; strength 1 has
        nothing of x_0 and is the sampler's own call on the noise.

        Paper: SDEdit: guided image synthesis and editing with stochastic differential equations. Meng et al., 2021,
        arXiv 2108.01073, algorithm 2.

        Args:
            denoise: see `__call__`.
            schedule: see `__call__`.
            x_0: clean images (B, C, H, W), or one that broadcasts against the noise.
            noise: (B, C, H, W), standard normal.
            strength: in [0, 1].
            c: see `__call__`.
            seeds: see `__call__`.
            watch: see `__call__`.

        Raises:
            ValueError: if the strength is not in [0, 1], or the seeds are not one for each sample.
        """
        noise, times = _precise(noise), self.times_from(schedule, strength)
        if strength == 1:
            return self._run(denoise, schedule, noise, times, c, seeds, watch=watch)
        x_t = x_0.to(noise).expand_as(noise)
        if len(times) > 1:
            x_t = schedule.q_sample(x_t, times[0], noise)
        return self._run(denoise, schedule, x_t, times, c, seeds, watch=watch)

    def inpaint(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x_T: Tensor,
        image: Tensor,
        known: Tensor,
        c: Embedded = None,
        seeds: Sequence[int] | Tensor | None = None,
        resample: int = 10,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images that equal `image` (B, C, H, W) where the mask `known` (broadcast against it) is 1.

        Where x_0 is known it takes the prediction's place, ε following from it: the known pixels go exactly through
        the reverse process q(x_s | x_t, x_0) (equation 7 of DDPM). One pass leaves the others too free, since they
        were drawn beside known pixels that were noise still; so every step but the last is undone by the forward
        process and done again, `resample` times in all, which brings the two together at each noise level.

        Paper: RePaint: inpainting using denoising diffusion probabilistic models. Lugmayr et al., 2022, arXiv
        2201.09865, algorithm 1 and section 4.2.

        Raises:
            ValueError: if resample is below 1.
        """
        path = self.times_again(schedule, resample)
        x_T = _precise(x_T)
        image, known = image.to(x_T), known.to(x_T)
        signal, noise = schedule.scales(schedule.T, x_T)

        def informed(x_t: Tensor, t: int, c: Embedded) -> Prediction:
            prediction = denoise(x_t, t, c)
            return _with_x_0(schedule, x_t, t, prediction, torch.lerp(prediction.x_0, image, known))

        start = torch.lerp(x_T, signal * image + noise * x_T, known)
        made = self._run(informed, schedule, start, path, c, seeds, undo=True, watch=watch)
        return torch.lerp(made, image, known) if path[-1] else made

    def times_again(self, schedule: Schedule, resample: int) -> list[int]:
        """The times that `inpaint` visits: each step but the last there and back, `resample` times there in all.

        Raises:
            ValueError: if resample is below 1.
        """
        if resample < 1:
            raise ValueError(f"resample is {resample}, but each step is taken at least once: give 1 or more")
        times = self.times(schedule)
        path = times[:1]
        for t, s in pairwise(times):
            path += [s, t] * (resample - 1 if s > times[-1] else 0) + [s]  # the paper's "if u < U and t > 1"
        return path

    def _run(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x: Tensor,
        times: list[int],
        c: Embedded,
        seeds: Sequence[int] | Tensor | None = None,
        undo: bool = False,
        watch: Watch | None = None,
    ) -> Tensor:
        """Along the times; `undo` goes up by the forward process where else a step is the sampler's own."""
        x = _precise(x)
        if seeds is not None and not isinstance(seeds, Tensor):
            seeds = [random.check_seed(seed) for seed in seeds]
        keys = torch.as_tensor(range(len(x)) if seeds is None else seeds, device=x.device)
        if keys.is_floating_point() or (keys.device.type == "cpu" and (keys < 0).any()):
            raise ValueError(f"the seeds {keys.tolist()} are not all whole numbers from 0 on: give such")
        if keys.shape != x.shape[:1]:
            raise ValueError(f"{keys.numel()} seeds for {len(x)} samples: give one integer a sample")

        def predict(x_t: Tensor, t: int) -> Prediction:
            if t > 0:
                # Without the raw output, which no step looks at: held, a GPU could not write the next one there.
                return self._clipped(schedule, x_t, t, denoise(x_t, t, c)._replace(output=None))
            # Clean already; only an inversion needs a prediction here, of the noise: that at the least noisy time, 1.
            return Prediction(x_t, denoise(x_t, 1, c).eps)

        before: tuple[tuple[int, Prediction], ...] = ()
        visits = Counter[tuple[int, int]]()
        for t, s in pairwise(times):
            if watch is not None:
                watch(t, x)
            visits[t, s] += 1

            def noise(x: Tensor = x, t: int = t, s: int = s) -> Tensor:
                purpose, visit = "forward step" if s > t else "reverse step", visits[t, s] - 1
                return random.normal(x.shape[1:], keys, purpose, t, torch.full_like(keys, visit)).to(x.dtype)

            if undo and s > t:
                beta = schedule.beta(s, t)
                x, before = (1 - beta).sqrt() * x + beta.sqrt() * noise(), ()
                continue
            x, start = self.begin(schedule, x, t, noise)
            prediction = predict(x, start)
            x = self.step(x, Step(schedule, start, s, prediction, before, predict, noise))
            before = ((start, prediction), *before[:1])
        if watch is not None:
            watch(times[-1], x)
        return x

    def _clipped(self, schedule: Schedule, x_t: Tensor, t: int, prediction: Prediction) -> Prediction:
        """x_0 within ± clip and the ε that belongs to it, so that a step's mean is made of what was clipped."""
        if self.clip is None:
            return prediction
        x_0 = prediction.x_0
        if self.dynamic is not None:
            reach = _precise(x_0.flatten(1).abs()).quantile(self.dynamic, dim=1).clamp(min=self.clip)
            x_0 = x_0 * expand_like(self.clip / reach, x_0)
        return _with_x_0(schedule, x_t, t, prediction, x_0.clamp(-self.clip, self.clip))


def _precise(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _with_x_0(schedule: Schedule, x_t: Tensor, t: int, prediction: Prediction, x_0: Tensor) -> Prediction:
    """Another x_0 and the ε that belongs to it, x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε."""
    signal, noise = schedule.scales(t, x_t)
    return prediction._replace(x_0=x_0, eps=(x_t - signal * x_0) / noise)


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """On the great circle from start to end (B, *), so that noise stays as long as noise is; 0 is start, 1 end."""
    a, b = start.flatten(1), end.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()
    even = angle.sin() < 1e-6  # the same direction: a straight line is the circle
    of_start = torch.where(even, 1 - weight, torch.sin((1 - weight) * angle) / angle.sin())
    of_end = torch.where(even, weight, torch.sin(weight * angle) / angle.sin())
    return expand_like(of_start, start) * start + expand_like(of_end, end) * end
