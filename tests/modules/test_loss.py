"""The loss of a learned variance on latents, against the released code's arithmetic in numpy's float64."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_lightning.denoising import Denoiser, Epsilon
from diffusion_lightning.modules.base.loss import Loss
from diffusion_lightning.objectives import Simple
from diffusion_lightning.schedules import Linear

SHAPE = (4, 4, 4)


def exact(z: Any) -> Any:
    return stats.norm.cdf(z)


def approximate(z: Any) -> Any:
    """The released code's stand-in for Φ."""
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def released(x_0: Any, eps: Any, output: Any, t: int, cdf: Any) -> float:
    """improved-diffusion's and DiT's loss of an example at t in 1 … T: mean squared error and a term of the bound.

    LEARNED_RANGE, EPSILON and MSE are its names for it; the term is in bits/dim, its mean is held fixed, and predicted
    x_0 are not clipped. At the first time a value is one of bins of 2/255, those past ±0.999 open to infinity.
    """
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    posterior = beta * (1 - before) / (1 - alpha_bar)
    log_small = np.log(np.append(posterior[1], posterior[1:]))
    i = t - 1
    x_t = np.sqrt(alpha_bar[i]) * x_0 + np.sqrt(1 - alpha_bar[i]) * eps
    guess_eps, v = np.split(output, 2)

    def mean(of: Any) -> Any:
        first = beta[i] * np.sqrt(before[i]) / (1 - alpha_bar[i])
        return first * of + (1 - before[i]) * np.sqrt(1 - beta[i]) / (1 - alpha_bar[i]) * x_t

    guess = mean(np.sqrt(1 / alpha_bar[i]) * x_t - np.sqrt(1 / alpha_bar[i] - 1) * guess_eps)
    share = (v + 1) / 2
    log_variance = share * np.log(beta[i]) + (1 - share) * log_small[i]
    if t > 1:
        apart = log_variance - log_small[i]
        term = 0.5 * (-1 + apart + np.exp(-apart) + (mean(x_0) - guess) ** 2 * np.exp(-log_variance))
    else:
        inverse = np.exp(-0.5 * log_variance)
        high, low = (cdf(inverse * (x_0 - guess + side / 255)) for side in (1, -1))
        inside = np.where(x_0 < -0.999, high, np.where(x_0 > 0.999, 1 - low, high - low))
        term = -np.log(np.maximum(inside, 1e-12))
    return ((guess_eps - eps) ** 2).mean() + term.mean() / np.log(2)


@pytest.mark.parametrize("t", [1, 2, 40, 999, 1000])
def test_a_learned_variance_on_latents_is_trained_as_the_released_code_does(t: int) -> None:
    """On latents of unit scale, a third of which lie outside of [-1, 1], where pixels do not."""
    rng = np.random.default_rng(t)
    x_0, eps = rng.normal(size=(2, *SHAPE))
    assert (np.abs(x_0) > 1).mean() > 0.2
    assert t > 1 or not ((0.997 < np.abs(x_0)) & (np.abs(x_0) < 1)).any()  # where the outermost bins begin
    output = np.concatenate([eps + 0.5 * rng.normal(size=SHAPE), rng.uniform(-1, 1, size=SHAPE)])
    schedule = Linear()

    class Fixed(torch.nn.Module):
        def forward(self, x_t: Any, time: Any, c: Any) -> Any:
            return torch.from_numpy(output)[None]

    denoiser = Denoiser(Fixed(), schedule, Epsilon())
    clean, noise = (torch.from_numpy(x)[None] for x in (x_0, eps))
    times = torch.tensor([t])
    prediction = denoiser(schedule.q_sample(clean, times, noise), times)
    found = Loss(Simple(), None, True)(denoiser, clean, noise, times, prediction, 256).item()
    assert found == pytest.approx(released(x_0, eps, output, t, exact), rel=1e-7)
    assert found == pytest.approx(released(x_0, eps, output, t, approximate), rel=2e-3)
    squares = ((output[:4] - eps) ** 2).mean()
    assert found - squares > 1e-6  # the term counts
