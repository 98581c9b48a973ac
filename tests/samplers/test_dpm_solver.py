"""DPM-Solver++ against diffusers, by steps and over whole trajectories, and what its third order is."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from diffusion_lightning.denoising import EDM, Denoiser, Epsilon, Flow, Prediction
from diffusion_lightning.samplers import DDIM, DPMSolver, Karras, Leading, Spacing, Trailing, UniformLogSNR
from diffusion_lightning.samplers.base import Denoise
from diffusion_lightning.schedules import Linear, LogSigma, Schedule, ZeroTerminalSNR

from ..conftest import gaussian
from ..support.solvers import BETAS, F64, Fixed, draws, exact_std, from_sigmas, from_taus, one_step, start, trajectory


@pytest.mark.parametrize("spacing", [Trailing(), Leading(), UniformLogSNR(), Karras()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_dpm_solver_of_first_order_is_ddim(spacing: Spacing, clip: float | None) -> None:
    x_T = torch.randn(3, 2, 4, 4, dtype=F64)

    def denoise(x_t: Tensor, t: int, c: Tensor | None) -> Prediction:
        return Epsilon().prediction(Linear(), torch.tanh(x_t + t / 1000), x_t, t)

    first = DPMSolver(20, order=1, clip=clip, spacing=spacing)(denoise, Linear(), x_T)
    second = DDIM(20, clip=clip, spacing=spacing)(denoise, Linear(), x_T)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_a_dpm_solver_step_is_that_of_diffusers(order: int) -> None:
    theirs = DPMSolverMultistepScheduler(**BETAS, solver_order=order, timestep_spacing="leading")
    theirs.set_timesteps(20)
    schedule, ours = Linear(), DPMSolver(20, order=order, clip=None)
    times = [int(t) + 1 for t in theirs.timesteps] + [0]
    assert len(times) == 21
    x_t, *outputs = draws(21)
    before: tuple[tuple[int, Prediction], ...] = ()
    for (t, s), eps in zip(pairwise(times), outputs, strict=True):
        prediction = Epsilon().prediction(schedule, eps, x_t, t)
        our_x = one_step(ours, x_t, t, s, prediction, before)
        before, x_t = ((t, prediction), *before), theirs.step(eps, t - 1, x_t).prev_sample
        torch.testing.assert_close(our_x, x_t, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [10, 25])
def test_a_trajectory_of_edm_is_that_of_diffusers(order: int, steps: int) -> None:
    """Its last σ is zero, where it takes a step of first order as we do.

    `lower_order_final` is off: it would lower the last but one step as well, where there are fewer than 15.
    """
    scheduler = EDMDPMSolverMultistepScheduler(solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(steps)
    schedule, network = from_sigmas(scheduler.sigmas), Fixed(1.0)
    found = DPMSolver(None, order, clip=None)(Denoiser(network, schedule, EDM()), schedule, start())
    x = start() * math.sqrt(1 + float(scheduler.sigmas[0]) ** 2)
    torch.testing.assert_close(found, trajectory(scheduler, network, x), rtol=1e-5, atol=1e-5)


class Exact(nn.Module):
    """EDM's F for data N(0, std²) with the σ_data of EDM's own, in its fed variables."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, scaled: Tensor, time: Tensor) -> Tensor:
        sigma = float(torch.exp(4 * time[0].double()))
        total = 0.25 + sigma**2
        x = scaled * math.sqrt(total)
        return (self.std**2 / (self.std**2 + sigma**2) - 0.25 / total) * x * math.sqrt(total) / (0.5 * sigma)


def test_the_released_third_order_is_of_second_order_and_ours_of_third() -> None:
    """Why no trajectory is compared with diffusers' 3M: it halves the curvature, as DPM-Solver's own code does."""
    theirs, ours = [], []
    for steps in (48, 96, 192):
        scheduler = EDMDPMSolverMultistepScheduler(solver_order=3, lower_order_final=False, sigma_min=1e-3)
        scheduler.set_timesteps(steps)
        exact = 0.8 * 80 / math.sqrt(80**2 + 0.8**2)
        x = torch.full((1, 1, 1, 1), 80.0, dtype=F64)
        theirs.append(abs(float(trajectory(scheduler, Exact(0.8), x)) - exact))
        schedule = from_sigmas(scheduler.sigmas)
        ours.append(abs(exact_std(DPMSolver(None, 3, clip=None), schedule, 0.8) * 80 / math.sqrt(1 + 80**2) - exact))
    assert math.log2(theirs[1] / theirs[2]) == pytest.approx(2, abs=0.25)
    assert math.log2(ours[1] / ours[2]) == pytest.approx(3, abs=0.25)
    assert ours[2] < theirs[2] / 5


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_trajectory_is_that_of_diffusers_unipc_without_its_corrector(order: int, shift: float) -> None:
    """UniP-p with B(h) = e^h - 1 is the same method, found by solving for its weights.

    Without a last step of lower order it cannot go to zero; so the x before that step are compared. The times that it
    keeps are whole numbers, and the network is fed its σ, which are τ, instead.
    """
    steps, network = 12, Fixed(1e-3)
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", disable_corrector=list(range(steps)), lower_order_final=False,
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, final_sigmas_type="sigma_min",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    taus = scheduler.sigmas[:-1].double()
    schedule = from_taus(torch.cat([taus, torch.zeros(1)]))
    denoiser = Denoiser(network.double(), schedule, Flow(), rescale_timesteps=True)
    found = states(order, denoiser, schedule, start().double())[-2]

    signal, noise = schedule.alpha_sigma(schedule.T)
    x = start().double() / (signal + noise)
    for t, tau in zip(scheduler.timesteps[:-1], taus, strict=False):
        x = scheduler.step(network(x, (1000 * tau).float().expand(len(x))), t, x).prev_sample
    signal, noise = schedule.alpha_sigma(1)
    torch.testing.assert_close(found / (signal + noise), x, rtol=1e-5, atol=1e-5)


def states(order: int, denoise: Denoise, schedule: Schedule, x_T: Tensor) -> list[Tensor]:
    """x_t where each step starts, and x_0."""
    seen = list[Tensor]()
    DPMSolver(None, order, clip=None)(denoise, schedule, x_T, watch=lambda t, x: seen.append(x))
    return seen


def test_third_order_waits_for_three_evaluations_and_for_steps_of_finite_length() -> None:
    """Two steps are those of second order; after zero terminal SNR, where the first is infinitely long, three are."""
    x_T = torch.randn(2, 1, 2, 2, dtype=F64)
    for schedule, same in ((LogSigma(20), 2), (ZeroTerminalSNR(Linear(20)), 3)):
        second, third = (states(order, gaussian(schedule, 0.5), schedule, x_T) for order in (2, 3))
        differs = [not torch.equal(a, b) for a, b in zip(second, third, strict=True)]
        assert differs == [False] * (same + 1) + [True] * (20 - same)


def test_third_order_is_exact_where_x_0_is_a_parabola_in_the_log_snr() -> None:
    """x_s = σ_s/σ_t·x_t + σ_s·∫ e^λ·x_0 dλ (equation 8 of DPM-Solver++), over steps of length 1 in λ."""
    schedule = LogSigma(5, math.exp(-2), math.exp(2))

    def denoise(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
        lam = -float(schedule.log_sigma(t))
        x_0 = torch.full_like(x_t, 0.3 - 0.5 * lam + 0.25 * lam**2)
        signal, noise = schedule.scales(t, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    x = states(3, denoise, schedule, torch.ones(1, 1, 1, 1, dtype=F64))
    sigma_t, sigma_s = schedule.alpha_sigma(3)[1], schedule.alpha_sigma(2)[1]  # the third step, λ from 0 to 1
    integral = 0.3 * (math.e - 1) - 0.5 * 1 + 0.25 * (math.e - 2)  # of e^λ, λ·e^λ and λ²·e^λ, by parts
    torch.testing.assert_close(x[3], sigma_s / sigma_t * x[2] + sigma_s * integral, rtol=1e-12, atol=1e-12)
