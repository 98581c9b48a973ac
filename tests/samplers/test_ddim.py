"""DDIM against diffusers: its steps, and whole trajectories of the Euler schedulers of flows and EDM, which are its."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusion_lightning.denoising import EDM, Denoiser, Epsilon, Flow, Prediction
from diffusion_lightning.samplers import DDIM, Ancestral, Leading
from diffusion_lightning.schedules import Linear, RectifiedFlow, Shifted

from ..support.solvers import BETAS, F64, Fixed, draws, from_sigmas, from_taus, one_step, start, trajectory


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


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_ddim_step_is_that_of_diffusers(eta: float, clip: float | None) -> None:
    theirs = DDIMScheduler(**BETAS, clip_sample=clip is not None)
    theirs.set_timesteps(20)
    schedule, (x_t, eps) = Linear(), draws(2)
    ours = DDIM(20, eta=eta, clip=clip, spacing=Leading())
    times = ours.times(schedule)
    assert [int(t) + 1 for t in theirs.timesteps] == times[:-1]
    for t, s in pairwise(times):
        their_x = theirs.step(eps, t - 1, x_t, eta=eta, use_clipped_model_output=True,
                              generator=torch.Generator().manual_seed(t)).prev_sample  # fmt: skip
        z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(t)) if s else torch.zeros(2, 3, 4, 4)
        prediction = Epsilon().prediction(schedule, eps, x_t, t)
        torch.testing.assert_close(one_step(ours, x_t, t, s, prediction, z=z), their_x, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [7, 20])
def test_a_flows_trajectory_is_that_of_diffusers_on_its_own_sigmas(shift: float, steps: int) -> None:
    """Which it calls σ and are τ. Left to itself it shifts the least of them twice, so they are taken from it."""
    scheduler, network = FlowMatchEulerDiscreteScheduler(shift=shift), Fixed(1e-3)
    scheduler.set_timesteps(steps)
    schedule = from_taus(scheduler.sigmas)
    denoiser = Denoiser(network, schedule, Flow(), rescale_timesteps=True)  # 1000·τ
    found = DDIM(None, clip=None)(denoiser, schedule, start())
    torch.testing.assert_close(found, trajectory(scheduler, network, start()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_trajectory_is_that_of_diffusers_on_a_schedule_of_a_thousand_steps(shift: float) -> None:
    """Given τ = 1, 1 - 1/n, …, 1/n, as the pipelines of Stable Diffusion 3 and FLUX do, it shifts each once."""
    scheduler, network, n = FlowMatchEulerDiscreteScheduler(shift=shift), Fixed(1e-3), 20
    scheduler.set_timesteps(sigmas=[1 - k / n for k in range(n)])
    schedule = Shifted(RectifiedFlow(1000), shift)
    denoiser = Denoiser(network, schedule, Flow(), rescale_timesteps=True)
    found = DDIM(n, clip=None)(denoiser, schedule, start())
    torch.testing.assert_close(found, trajectory(scheduler, network, start()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_an_euler_trajectory_of_edm_is_that_of_diffusers(sigma_schedule: str) -> None:
    """Its last σ is zero, as ours; it starts at x_T/α_T, and EDM's "epsilon" is what the paper calls F."""
    scheduler, network = EDMEulerScheduler(sigma_schedule=sigma_schedule), Fixed(1.0)
    scheduler.set_timesteps(18)
    schedule = from_sigmas(scheduler.sigmas)
    found = DDIM(None, clip=None)(Denoiser(network, schedule, EDM()), schedule, start())
    x = start() * math.sqrt(1 + float(scheduler.sigmas[0]) ** 2)
    torch.testing.assert_close(found, trajectory(scheduler, network, x), rtol=1e-5, atol=1e-5)
