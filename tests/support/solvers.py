"""What samplers are held against: data whose optimal denoiser and exact flow are known, and a fixed small network."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import Prediction
from diffusion_lightning.samplers import Sampler, Step
from diffusion_lightning.schedules import Linear, Schedule

from ..conftest import gaussian

F64 = torch.float64


def one() -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=F64)


def mixture(schedule: Schedule, std: float = 0.2):  # type: ignore[no-untyped-def]
    """The optimal denoiser of ½·N(-1, std²) + ½·N(1, std²)."""

    def denoise(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        variance = signal**2 * std**2 + noise**2
        right = torch.sigmoid(2 * signal * x_t / variance)
        mean = 2 * right - 1
        x_0 = mean + signal * std**2 / variance * (x_t - signal * mean)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    return denoise


def exact_std(sampler: Sampler, schedule: Schedule, std: float) -> float:
    """The standard deviation of what a sampler makes of N(0, 1): it is linear in x_T and in the noise of its steps."""
    denoise, variance = gaussian(schedule, std), 1.0
    if sampler.deterministic:
        return sampler(denoise, schedule, one()).item()
    for t, s in pairwise(sampler.times(schedule)):

        def step(x_t: Tensor, noise: Tensor, t: int = t, s: int = s) -> float:
            x_t, t = sampler.begin(schedule, x_t, t, lambda: noise)
            return sampler.step(x_t, Step(schedule, t, s, denoise(x_t, t), (), denoise, lambda: noise)).item()

        of_x, of_noise = step(one(), 0 * one()), step(0 * one(), one())
        variance = of_x**2 * variance + of_noise**2
    return math.sqrt(variance)


def edm(steps: int, sigma_min: float = 0.002) -> Schedule:
    """ᾱ = 1/(1 + σ²) for σ from 80 down to σ_min with ρ = 7, and 0."""
    sigma = torch.linspace(sigma_min ** (1 / 7), 80 ** (1 / 7), steps, dtype=F64) ** 7
    return Schedule(torch.cat([torch.ones(1, dtype=F64), 1 / (1 + sigma**2)]))


EDM_START = 80 / math.sqrt(1 + 80**2)  # x_T of N(0, 80²) in units where x_t keeps its variance


def gaussian_errors(sampler: Sampler, steps: Sequence[int], sigma_min: float = 0.002) -> list[float]:
    """Of the standard deviation of N(0, 0.5²) against that of the exact flow, 0.5·80/√(80² + 0.5²)."""
    sampler.clip = None
    exact = 0.5 * 80 / math.sqrt(80**2 + 0.25)
    return [abs(EDM_START * exact_std(sampler, edm(n, sigma_min), 0.5) - exact) for n in steps]


def mixture_errors(sampler: Sampler, steps: Sequence[int], sigma_min: float = 0.002) -> list[float]:
    """Root mean square over x_T against the exact flow, which in one dimension keeps each point's quantile."""
    sampler.clip, std = None, 0.5
    x_T = torch.linspace(-2, 2, 41, dtype=F64)

    def quantile(x: Tensor, sigma: float) -> Tensor:
        spread = math.sqrt(std**2 + sigma**2)
        return (torch.special.ndtr((x + 1) / spread) + torch.special.ndtr((x - 1) / spread)) / 2

    wanted, low, high = quantile(80 * x_T, 80), torch.full_like(x_T, -5), torch.full_like(x_T, 5)
    for _ in range(80):
        middle = (low + high) / 2
        above = quantile(middle, 0) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    exact = low.view(-1, 1, 1, 1)
    start = EDM_START * x_T.view(-1, 1, 1, 1)
    grids = [edm(n, sigma_min) for n in steps]
    found = [sampler(mixture(grid, std), grid, start) for grid in grids]
    return [(x - exact).square().mean().sqrt().item() for x in found]


class Fixed(nn.Module):
    """A small random network, always the same one: smooth in x and in its time, of bounded output."""

    def __init__(self, rate: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rate, self.first, self.last = rate, nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        g = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.3, generator=g)
        self.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor, time: Tensor, c: Tensor | None = None) -> Tensor:
        shift = torch.arange(6) + self.rate * time.view(-1, 1)
        return self.last(torch.tanh(self.first(x) + torch.sin(shift).to(x)[:, :, None, None]))


def from_sigmas(sigmas: Tensor) -> Schedule:
    """The schedule whose σ_T … σ_0 are these, falling to 0: every step of a scheduler of diffusers is one of its."""
    return Schedule(1 / (1 + sigmas.double().flip(0) ** 2))


def from_taus(taus: Tensor) -> Schedule:
    """The schedule whose τ_T … τ_0 are these, falling to 0."""
    tau = taus.double().flip(0)
    return Schedule((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2))


def start() -> Tensor:
    """x_T, (2, 2, 4, 4), float32."""
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def trajectory(scheduler: Any, network: nn.Module, x: Tensor) -> Tensor:
    """What a scheduler of diffusers makes of x in all its steps."""
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t.expand(len(x))), t, x).prev_sample
    return x


# For single steps, under the linear schedule


BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def one_step(
    sampler: Sampler,
    x_t: Tensor,
    t: int,
    s: int,
    prediction: Prediction,
    before: tuple[tuple[int, Prediction], ...] = (),
    z: Tensor | None = None,
) -> Tensor:
    """x_s from what was predicted, under the linear schedule, with this noise."""
    noise = torch.zeros_like(x_t) if z is None else z
    prediction = sampler._clipped(Linear(), x_t, t, prediction)
    return sampler.step(x_t, Step(Linear(), t, s, prediction, before, lambda x, t: prediction, lambda: noise))


def draws(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 4, 4, generator=g) for _ in range(n)]
