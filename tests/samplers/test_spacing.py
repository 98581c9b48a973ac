"""The times that each spacing visits."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_lightning.denoising import Prediction
from diffusion_lightning.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    Heun,
    Karras,
    Leading,
    Respaced,
    Sampler,
    Spacing,
    UniformLogSNR,
)  # fmt: skip
from diffusion_lightning.schedules import Cosine, Linear, ScaledLinear, Schedule


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


def test_spacings_are_even_in_what_they_say() -> None:
    """Where the times are fine enough: λ for one, σ^(1/7) for the other."""
    schedule = Cosine(T=20_000, s=0.001)
    snr = schedule.snr(torch.arange(1, 20_001))
    for spacing, curve in (
        (UniformLogSNR(), snr.log().clamp(min=-12)),
        (Karras(), snr.rsqrt().clamp(max=80) ** (1 / 7)),
    ):
        times = torch.tensor(spacing(schedule, 20)[1:-1])  # T itself may lie beyond the bound
        steps = curve[times[times > 100] - 1].diff()  # and below, one time is a coarse step
        assert len(steps) > 8
        assert (steps / steps.mean() - 1).abs().max() < 0.02


@pytest.mark.parametrize("steps", [2, 27, 50, 100, 250, 999, 1000])
def test_respaced_times_are_those_of_the_released_code(steps: int) -> None:
    """Its `space_timesteps` of one section, 0-based: a sum of strides, each rounded."""
    stride, at, expected = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        expected.append(round(at) + 1)
        at += stride
    assert Ancestral(steps, spacing=Respaced()).times(Linear()) == [*reversed(expected), 0]


@pytest.mark.parametrize("alpha_to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 333, 501, 900])
def test_leading_times_are_those_of_diffusers(steps: int, offset: int, alpha_to_one: bool) -> None:
    """Each ᾱ that its scheduler goes through, and the last one."""
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=offset,
        set_alpha_to_one=alpha_to_one,
    )  # fmt: skip
    theirs.set_timesteps(steps)
    before = int(theirs.timesteps[-1]) - 1000 // steps
    final = theirs.alphas_cumprod[before] if before >= 0 else theirs.final_alpha_cumprod
    expected = torch.cat([theirs.alphas_cumprod[theirs.timesteps], final[None]])
    schedule = ScaledLinear()
    times = Leading(offset, 0 if alpha_to_one else 1)(schedule, steps)
    if offset == 0 and not alpha_to_one:
        expected = expected[:-1]  # a last step of no length
    torch.testing.assert_close(schedule.alpha_bar[times].float(), expected, rtol=1e-5, atol=0)


def test_leading_times_later_than_the_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="begin at t = 1001, but the schedule has T = 1000"):
        DDIM(1000, spacing=Leading(offset=1)).times(Linear())
    for given in ({"offset": -1}, {"final": 2}):
        with pytest.raises(ValueError, match="end at 0 or 1"):
            Leading(**given)


ALL = [make(steps=30, clip=None, spacing=Leading(1, 1)) for make in (DDIM, Ancestral, DPMSolver, Heun)]


@pytest.mark.parametrize("sampler", ALL, ids=lambda sampler: type(sampler).__name__)
def test_samplers_end_at_the_first_time_where_the_spacing_does(sampler: Sampler) -> None:
    """Of N(0, 1) x_t has variance 1 at every time, and the exact denoiser keeps it."""
    schedule = ScaledLinear(60, 0.01, 0.3)
    seen: list[int] = []

    def watch(t: int, x: torch.Tensor) -> None:
        seen.append(t)

    def exact(x: torch.Tensor, t: int, c: Any) -> Prediction:
        assert t >= 1
        signal, noise = schedule.alpha_sigma(t)
        return Prediction(signal * x, noise * x)

    x = sampler(exact, schedule, torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)), watch=watch)
    assert seen == [*range(60, 0, -2), 1]
    assert float(x.std()) == pytest.approx(1, abs=0.1)
    assert list(sampler.angles(schedule)) == seen[::-1]
    if sampler.deterministic:
        again = sampler(exact, schedule, sampler.invert(exact, schedule, x))
        assert (again - x).abs().max() < 0.1 * x.abs().max()


def test_known_pixels_are_exact_where_the_last_time_is_not_clean() -> None:
    schedule, image = ScaledLinear(60, 0.01, 0.3), torch.rand(2, 1, 4, 4)

    def nothing(x: torch.Tensor, t: int, c: Any) -> Prediction:
        return Prediction(torch.zeros_like(x), x)

    known = (torch.arange(4) < 2).float().expand(1, 1, 4, 4)
    made = DDIM(6, clip=None, spacing=Leading(1, 1)).inpaint(nothing, schedule, torch.randn(2, 1, 4, 4), image, known)
    assert torch.equal(made[..., :2], image[..., :2])
