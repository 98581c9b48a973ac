"""SDEdit by every sampler: its two ends, its marginal, its closed form; and that all loops can be watched."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lightning.samplers import (
    DDIM,
    Ancestral,
    Consistency,
    DPMSolver,
    Heun,
    Karras,
    Leading,
    Respaced,
    Sampler,
    Spacing,
    Trailing,
    UniformLogSNR,
)
from diffusion_lightning.schedules import Cosine, Linear, Schedule, ZeroTerminalSNR

from ..conftest import gaussian
from ..support.solvers import F64

SCHEDULES = [Linear(), Cosine(), ZeroTerminalSNR(Linear())]
SPACINGS = [Trailing(), Leading(), Leading(1, 1), Respaced(), UniformLogSNR(), Karras()]
OF_A_DENOISER = [make for make in Sampler.__subclasses__() if make is not Consistency]


def noise(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", Sampler.__subclasses__())
@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda spacing: type(spacing).__name__)
def test_its_ends_are_the_image_and_the_samplers_own_call(make: type[Sampler], spacing: Spacing) -> None:
    """Bit for bit: at 0 for every x_0, within the clip and not; at 1 for every image there is nothing of it."""
    schedule, sampler = Cosine(60), make(steps=7, spacing=spacing)
    denoise, x_0, x_T = gaussian(schedule, 0.5), 2 * noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    assert torch.equal(sampler.vary(denoise, schedule, x_0, x_T, 0), x_0)
    wanted = sampler(denoise, schedule, x_T, seeds=[5, 6, 7])
    assert torch.equal(sampler.vary(denoise, schedule, x_0, x_T, 1, seeds=[5, 6, 7]), wanted)
    half = sampler.vary(denoise, schedule, x_0, x_T, 0.5, seeds=[5, 6, 7])
    if len(sampler.times_from(schedule, 0.5)) > 1:
        assert not torch.equal(half, x_0)
    assert not torch.equal(half, wanted)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "zero"])
@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda spacing: type(spacing).__name__)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_more_strength_the_earlier_it_starts(schedule: Schedule, spacing: Spacing, steps: int) -> None:
    """At one of the sampler's own times, from where it goes on as ever; no other is nearer to the angle asked for."""
    sampler = DDIM(steps, spacing=spacing)
    times, angles = sampler.times(schedule), sampler.angles(schedule)
    found = [sampler.times_from(schedule, k / 40) for k in range(41)]
    assert all(times[-len(own) :] == own for own in found)
    assert [found[0], found[-1]] == [times[-1:], times]
    assert all(len(a) <= len(b) for a, b in pairwise(found))
    for k, own in enumerate(found[1:-1], start=1):
        wanted = angles[times[0]] * k / 40
        assert abs(angles[own[0]] - wanted) == min(abs(angle - wanted) for angle in angles.values())


@pytest.mark.parametrize("make", OF_A_DENOISER)
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
def test_images_of_the_data_stay_images_of_the_data(make: type[Sampler], strength: float) -> None:
    """x_0 ~ N(0.3, 0.5²) and the optimal denoiser: what comes out has the same mean and deviation."""
    schedule, n = Cosine(500), 4000
    x_0 = 0.3 + 0.5 * noise(n, 1, 1, 1)
    found = make(steps=None, clip=None).vary(
        gaussian(schedule, 0.5, 0.3), schedule, x_0, noise(n, 1, 1, 1, seed=1), strength
    )
    assert abs(found.mean() - 0.3) < 4 * 0.5 / math.sqrt(n)
    assert abs(found.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * n) + 0.005


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.8])
def test_the_closed_form_of_the_flow(strength: float) -> None:
    """Of data N(0, s²) the flow takes x_t to s·x_t/√(ᾱ_t·s² + 1 - ᾱ_t): so much of x_0 is left."""
    schedule, sampler, s = Linear(), Heun(None, clip=None), 0.5
    x_0, eps = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
    signal, total = schedule.alpha_sigma(sampler.times_from(schedule, strength)[0])
    wanted = s * (signal * x_0 + total * eps) / (signal**2 * s**2 + total**2).sqrt()
    found = sampler.vary(gaussian(schedule, s), schedule, x_0, eps, strength)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_the_seeds_are_looked_at_as_in_a_call(strength: float) -> None:
    """Whatever the strength; and they alone decide about the steps' noise."""
    schedule, x = Linear(T=30, beta_1=1e-3, beta_T=0.3), noise(1, 1, 4, 4).expand(3, 1, 4, 4)
    sampler, denoise = Ancestral(clip=None), gaussian(schedule, 0.5)
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        sampler.vary(denoise, schedule, x, x, strength, seeds=[1, 2])
    with pytest.raises(ValueError, match="whole number"):
        sampler.vary(denoise, schedule, x, x, strength, seeds=[1, 2, -3])
    found = sampler.vary(denoise, schedule, x, x, strength, seeds=[8, 8, 9])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (strength == 0)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan, math.inf])
def test_a_strength_out_of_its_range_is_refused(strength: float) -> None:
    schedule, x = Linear(), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="the strength is"):
        DDIM(2).vary(gaussian(schedule, 1.0), schedule, x, x, strength)


@pytest.mark.parametrize("sampler", [DDIM(6), DPMSolver(6), Heun(6)], ids=lambda sampler: type(sampler).__name__)
def test_every_loop_is_watched_and_none_is_changed(sampler: Sampler) -> None:
    """Once where a step starts and once at the end, along the times that the loop says it visits."""
    schedule, seen = Cosine(60), list[int]()
    denoise, x = gaussian(schedule, 0.5), noise(2, 1, 4, 4).clamp(-1, 1)
    times, known = sampler.times(schedule), torch.zeros(1, 1, 4, 4)

    def watch(t: int, x_t: Tensor) -> None:
        seen.append(t)

    loops = {
        "vary": (sampler.times_from(schedule, 0.6), lambda **w: sampler.vary(denoise, schedule, x, x, 0.6, **w)),
        "invert": (times[::-1], lambda **w: sampler.invert(denoise, schedule, x, **w)),
        "inpaint": (
            sampler.times_again(schedule, 3),
            lambda **w: sampler.inpaint(denoise, schedule, x, x, known, resample=3, **w),
        ),
        "interpolate": (
            [*times[::-1] * 2, *times * 3],
            lambda **w: sampler.interpolate(denoise, schedule, x, x.flip(0), [0, 0.5, 1], **w),
        ),
    }
    for name, (wanted, loop) in loops.items():
        seen.clear()
        assert torch.equal(loop(watch=watch), loop()), name
        assert seen == wanted, name
