"""Ancestral sampling against closed forms and diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion_lightning.denoising import Epsilon
from diffusion_lightning.samplers import DDIM, Ancestral, Leading, Sampler
from diffusion_lightning.schedules import Linear

from ..support.solvers import BETAS, draws, exact_std, one_step


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


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("variance", "name"), [(0.0, "fixed_small"), (1.0, "fixed_large"), (None, "learned_range")])
def test_an_ancestral_step_is_that_of_diffusers(clip: float | None, variance: float | None, name: str) -> None:
    theirs = DDPMScheduler(**BETAS, variance_type=name, clip_sample=clip is not None)
    schedule, (x_t, eps, v) = Linear(), draws(3)
    ours = Ancestral(variance=variance, clip=clip)
    for t in range(2, 1001, 52):
        output = eps if variance is not None else torch.cat([eps, v], 1)
        their_x = theirs.step(output, t - 1, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
        z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(t))
        prediction = Epsilon().prediction(schedule, eps, x_t, t)._replace(var_mix=(v + 1) / 2)
        torch.testing.assert_close(one_step(ours, x_t, t, t - 1, prediction, z=z), their_x, rtol=5e-4, atol=5e-4)
