"""Samplers on Gaussian data N(μ, s²), where the optimal denoiser is linear and every result has a closed form."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lightning.denoising import Prediction
from diffusion_lightning.samplers import DDIM, Ancestral, Leading, Sampler, Spacing
from diffusion_lightning.schedules import Cosine, Linear, Schedule

from .conftest import gaussian

F64 = torch.float64


def one() -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=F64)


def exact_std(sampler: Sampler, schedule: Schedule, std: float) -> float:
    """The standard deviation of what a sampler makes: its step is linear in x_t and in its noise."""
    denoise, variance = gaussian(schedule, std), 1.0
    for t, s in pairwise(sampler.times(schedule)):

        def step(x_t: Tensor, noise: Tensor, t: int = t, s: int = s) -> float:
            return sampler.step(schedule, x_t, t, s, denoise(x_t, t), lambda: noise).item()

        of_x, of_noise = step(one(), 0 * one()), step(0 * one(), one())
        variance = of_x**2 * variance + of_noise**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Ancestral(variance=0.0, clip=None), 0.49611008),
        (Ancestral(variance=1.0, clip=None), 0.50075151),
        (Ancestral(clip=None), 0.50075151),
        (DDIM(10, clip=None, spacing=Leading()), 0.37412849),
        (DDIM(50, clip=None, spacing=Leading()), 0.47243911),
        (DDIM(None, clip=None), 0.49849528),
        (DDIM(1000, clip=None, spacing=Leading()), 0.49849528),
    ],
)
def test_known_standard_deviations(sampler: Sampler, expected: float) -> None:
    """Linear schedule, T = 1000, s = 0.5."""
    assert exact_std(sampler, Linear(), 0.5) == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize("make", Sampler.__subclasses__())
@pytest.mark.parametrize("schedule", [Linear, Cosine])
@pytest.mark.parametrize("std", [0.25, 1.0])
def test_samplers_converge_to_the_data(make: type[Sampler], schedule: type[Schedule], std: float) -> None:
    """With ever finer chains (the same ᾱ curve, T = 125, 250, …, 4000) the error falls below 1%, and each time."""
    errors = []
    for T in (250, 1000, 4000):
        chain = Linear(T, 0.1 / T, 20 / T) if schedule is Linear else Cosine(T)
        errors.append(abs(exact_std(make(steps=None, clip=None), chain, std) - std) / std)
    assert errors[2] < 0.01
    assert errors[0] > errors[1] > errors[2] or max(errors) < 1e-3


@pytest.mark.parametrize("make", Sampler.__subclasses__())
def test_the_whole_loop_samples_the_data(make: type[Sampler]) -> None:
    """The public call with its own noise, on data N(0.3, 0.5²): mean and variance within three standard errors."""
    schedule, n = Cosine(500), 4000
    g = torch.Generator().manual_seed(0)
    x_T = torch.randn(n, 1, 1, 1, dtype=F64, generator=g)
    x_0 = make(steps=None, clip=None)(gaussian(schedule, 0.5, 0.3), schedule, x_T)
    expected = exact_std(make(steps=None, clip=None), schedule, 0.5)
    assert abs(x_0.mean() - 0.3) < 3 * expected / math.sqrt(n)
    assert abs(x_0.var() - expected**2) < 3 * expected**2 * math.sqrt(2 / n)
    assert abs(expected - 0.5) < 0.01


@pytest.mark.parametrize("steps", [None, 10, 37])
def test_ddim_with_eta_one_is_ancestral_with_small_variance(steps: int | None) -> None:
    schedule = Linear()
    x_T = torch.randn(3, 2, 4, 4, dtype=F64)

    def denoise(x_t: Tensor, t: int, c: Tensor | None) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        eps = torch.tanh(x_t + t / 1000)
        return Prediction((x_t - noise * eps) / signal, eps)

    for clip in (None, 1.0):
        ddim = DDIM(steps, eta=1.0, clip=clip)(denoise, schedule, x_T)
        ancestral = Ancestral(steps, variance=0.0, clip=clip)(denoise, schedule, x_T)
        torch.testing.assert_close(ddim, ancestral, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", [make() for make in Spacing.__subclasses__()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [(Linear(T=7, beta_1=0.1, beta_T=0.5), n) for n in range(1, 8)]
    + [(make(), n) for make in (Linear, Cosine) for n in (1, 2, 5, 50, 333, 999, 1000)],
)
def test_spacings_visit_as_many_falling_times_as_asked(spacing: Spacing, schedule: Schedule, steps: int) -> None:
    times = Ancestral(steps, spacing=spacing).times(schedule)
    assert len(times) == steps + 1
    assert times[-1] == 0
    assert times[0] <= schedule.T
    assert all(t > s for t, s in pairwise(times))


def test_spacings_against_their_definitions() -> None:
    assert DDIM(5).times(Linear()) == [1000, 800, 600, 400, 200, 0]
    assert DDIM(5, spacing=Leading()).times(Linear()) == [801, 601, 401, 201, 1, 0]
    assert Ancestral().times(Linear(T=3)) == [3, 2, 1, 0]


def test_more_steps_than_times_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 20 steps, but the schedule has T = 10"):
        DDIM(20)(gaussian(Linear(), 1.0), Linear(T=10), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ancestral(0), "0 steps"),
        (lambda: DDIM(eta=1.5), "eta is 1.5"),
        (lambda: Ancestral(variance=2.0), "variance is 2.0"),
        (lambda: DDIM(clip=-1.0), "clip is -1.0"),
    ],
)
def test_impossible_samplers_are_refused(make: Callable[[], Sampler], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_x_0_is_clipped_before_the_mean_is_formed_and_eps_follows() -> None:
    schedule, seen = Linear(), []

    class Spy(DDIM):
        def step(self, schedule, x_t, t, s, prediction, noise):
            signal, total = schedule.scales(t, x_t)
            torch.testing.assert_close(signal * prediction.x_0 + total * prediction.eps, x_t)
            seen.append(prediction.x_0.abs().max().item())
            return super().step(schedule, x_t, t, s, prediction, noise)

    def wild(x_t: Tensor, t: int, c: Tensor | None) -> Prediction:
        signal, total = schedule.scales(t, x_t)
        return Prediction((x_t + 3 * total) / signal, torch.full_like(x_t, -3))

    Spy(20, clip=0.8)(wild, schedule, torch.randn(4, 1, 2, 2, dtype=F64))
    assert max(seen) == pytest.approx(0.8)


def test_a_samples_noise_follows_its_seed_alone() -> None:
    schedule = Linear(T=30, beta_1=1e-3, beta_T=0.3)
    x_T = torch.randn(1, 1, 4, 4, dtype=F64).expand(4, 1, 4, 4)
    run = Ancestral(clip=None)
    denoise = gaussian(schedule, 0.5)
    together = run(denoise, schedule, x_T, seeds=[7, 8, 7, 2**40])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    alone = run(denoise, schedule, x_T[:1], seeds=[2**40])
    torch.testing.assert_close(alone[0], together[3], rtol=1e-12, atol=1e-12)
    default = run(denoise, schedule, x_T)
    torch.testing.assert_close(default, run(denoise, schedule, x_T, seeds=range(4)), rtol=0, atol=0)


def test_as_many_seeds_as_samples() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        DDIM(2)(gaussian(Linear(), 1.0), Linear(), torch.zeros(3, 1, 1, 1), seeds=[1, 2])
