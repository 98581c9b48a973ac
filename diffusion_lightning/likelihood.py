"""The variational bound on -log p(x_0), term by term and example by example, in nats; bits/dim at the very end.

    L_vlb = L_T + Σ_{t = 2 … T} L_{t-1} + L_0
    prior    L_T     = KL(q(x_T | x_0) ‖ N(0, I))
    KL       L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)),    t = 2 … T
    decoder  L_0     = -log p(x_0 | x_1), x_0 one of a number of levels evenly spaced on [-1, 1]

Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equations 5 and 13.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .denoising import Prediction, log_variance, log_variances
from .random import Draw
from .schedules import Schedule, expand_like


def prior(schedule: Schedule, x_0: Tensor) -> Tensor:
    """L_T (B,) of images (B, *): ½·Σ (ᾱ_T·x_0² - ᾱ_T - log(1 - ᾱ_T)), in float64: float32 gives 0 or less."""
    alpha_bar = schedule.alpha_bar[-1]
    of_x_0 = alpha_bar * x_0.to(alpha_bar).square()
    return 0.5 * (of_x_0 - alpha_bar - torch.log1p(-alpha_bar)).flatten(1).sum(1)


def kl(schedule: Schedule, x_0: Tensor, t: Tensor, prediction: Prediction, m: float | Tensor) -> Tensor:
    """L_{t-1} (B,) at times t (B,) in 2 … T: of two Gaussians whose means differ by √ᾱ_s·β/(1 - ᾱ_t)·(x_0 - x̂_0).

    Args:
        schedule: ᾱ.
        x_0: (B, *) clean images.
        t: (B,) in 2 … T.
        prediction: at x_t.
        m: the weight of the larger log-variance in the reverse step's, a number or (B, *).
    """
    s = t - 1
    error = expand_like(schedule.posterior_x0_coef(t, s), x_0) * (x_0 - prediction.x_0)
    small, gap = (expand_like(x, x_0) for x in log_variances(schedule, t, s))
    apart = (m.to(x_0) if isinstance(m, Tensor) else m) * gap  # log σ_p² - log σ_q²
    terms = 0.5 * (_above_tangent(-apart) + error.square() * torch.exp(-(small + apart)))
    return terms.flatten(1).sum(1)


def decoder(schedule: Schedule, x_0: Tensor, prediction: Prediction, m: float | Tensor, levels: int = 256) -> Tensor:
    """L_0 (B,) at t = 1: N(x̂_0, σ²) over the bin of each value, the outermost bins reaching to ±∞.

    Args:
        schedule: ᾱ.
        x_0: (B, *) of `levels` values evenly spaced on [-1, 1].
        prediction: at x_1.
        m: the weight of the larger log-variance: 1 is σ² = 1 - ᾱ_1, 0 is β̃ of the step from 2 to 1 (DDPM's choice).
        levels: 256 for bytes.
    """
    t = torch.ones(len(x_0), dtype=torch.long, device=x_0.device)
    sigma = _expanded(log_variance(schedule, t, 0, m), x_0).mul(0.5).exp()
    centred, half = x_0 - prediction.x_0, 1 / (levels - 1)
    below, above = (centred - half) / sigma, (centred + half) / sigma
    below = torch.where(x_0 <= -1 + half / 2, -math.inf, below)
    above = torch.where(x_0 >= 1 - half / 2, math.inf, above)
    return -_log_probability(below, above).flatten(1).sum(1)


def _log_probability(below: Tensor, above: Tensor) -> Tensor:
    """log(Φ(above) - Φ(below)), exact in both tails: mirrored so that both are as far left as can be."""
    mirrored = below + above > 0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    low, high = torch.special.log_ndtr(below), torch.special.log_ndtr(above)
    return high + torch.log1p(-torch.exp(low - high))


def _above_tangent(x: Tensor) -> Tensor:
    """eˣ - 1 - x, and its derivative eˣ - 1, to the last digits near 0 too, by Taylor's series there."""
    near = x.abs() < 0.1
    small = torch.where(near, x, 0.0)
    series = small.square() * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small / 720))))
    return torch.where(near, series, torch.expm1(x) - x)


def _expanded(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.to(x) if coefficient.ndim == x.ndim else expand_like(coefficient, x)


class VLB:
    """Which reverse process is measured.

    Args:
        variance: m of every step's log σ² = m·log β + (1 - m)·log β̃, in [0, 1]; None is what the network predicts,
            and 1, "fixed large", where it predicts none.
        decoder: m of the decoder alone; None is `variance`'s. DDPM's own choice is 0 beside a variance of 1.
        clip: bound to which the predicted x_0 is clipped; None for none, as latents want. The data lie within it, so
            a clipped prediction is never further from them.
        times: how many of the times 2 … T are measured for each example, one from each of as many equal parts,
            their sum an unbiased estimate; None is all of them.
    """

    def __init__(
        self,
        variance: float | None = None,
        decoder: float | None = None,
        clip: float | None = 1.0,
        times: int | None = None,
    ) -> None:
        for name, m in (("variance", variance), ("decoder", decoder)):
            if m is not None and not 0 <= m <= 1:
                raise ValueError(f"{name} is {m}, but it mixes β̃ (0) and β (1): give a number in [0, 1]")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip is {clip}, which leaves no image: give a bound above 0, or null for no clipping")
        if times is not None and times < 1:
            raise ValueError(f"the bound is a sum over times, but {times} are to be measured: give times ≥ 1")
        self.variance, self.decoder, self.clip, self.times = variance, decoder, clip, times

    def term(self, schedule: Schedule, x_0: Tensor, t: Tensor, prediction: Prediction, levels: int = 256) -> Tensor:
        """(B,) nats: L_{t-1} where t > 1 and L_0 where t = 1, from what was predicted at x_t, with a gradient."""
        if self.clip is not None:
            prediction = prediction._replace(x_0=prediction.x_0.clamp(-self.clip, self.clip))
        # Both terms are worked out for each example, and the one not taken must have a finite gradient all the same:
        # far off, where predictions from noise lie, the decoder's would be 0·∞.
        first = (t == 1).view(-1, *(1,) * (x_0.ndim - 1))
        near = prediction._replace(x_0=torch.where(first, prediction.x_0, x_0))
        at_x_1 = decoder(schedule, x_0, near, self._share(self.decoder, prediction), levels)
        between = kl(schedule, x_0, t.clamp(min=2), prediction, self._share(None, prediction)) if schedule.T > 1 else 0
        return torch.where(t == 1, at_x_1, between)

    def draws(self, schedule: Schedule, draw: Draw) -> Iterator[tuple[Tensor, float]]:
        """The times (B,) to measure for a draw's samples, and what each term counts in the sum.

        First t = 1, the decoder's; then all of 2 … T, or of each sample its own.
        """
        yield torch.ones_like(draw.sample), 1.0
        count = schedule.T - 1 if self.times is None else min(self.times, schedule.T - 1)
        for k in range(count):
            if count == schedule.T - 1:
                yield torch.full_like(draw.sample, k + 2), 1.0
            else:
                u = draw.at(k).fractions("t")
                t = ((schedule.T - 1) * ((k + u) / count)).long().clamp(max=schedule.T - 2) + 2
                yield t, (schedule.T - 1) / count

    def _share(self, own: float | None, prediction: Prediction) -> float | Tensor:
        for m in (own, self.variance, prediction.var_mix):
            if m is not None:
                return m
        return 1.0


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats of an image of `dimensions` values to bits per dimension."""
    return nats / (dimensions * math.log(2))
