"""DDIM's whole trajectories against diffusers' Euler schedulers of flows and of EDM, which take the same steps."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from diffusion_lightning.denoising import EDM, Denoiser, Flow
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import RectifiedFlow, Shifted

from ..support.solvers import Fixed, from_sigmas, from_taus, start, trajectory


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
