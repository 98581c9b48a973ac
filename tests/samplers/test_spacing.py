"""The times that each spacing visits."""

from itertools import pairwise

import pytest
import torch

from diffusion_lightning.samplers import DDIM, Ancestral, Karras, Leading, Respaced, Spacing, UniformLogSNR
from diffusion_lightning.schedules import Cosine, Linear, Schedule


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
