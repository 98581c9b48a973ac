"""Heun in σ, and in τ along a flow's straight path; its churn, EDM's noise added between times of a table."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from diffusers.schedulers import scheduling_edm_euler
from torch import Tensor

from diffusion_lightning import random
from diffusion_lightning.denoising import EDM, Denoiser, Prediction
from diffusion_lightning.samplers import DDIM, Heun, Karras, Sampler, Step, Trailing
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, RectifiedFlow, Schedule, ZeroTerminalSNR

from ..conftest import gaussian
from ..support.solvers import F64, Fixed, exact_std, from_sigmas, mixture, start


def test_the_exact_flow_and_the_solver_that_finds_it() -> None:
    """N(0, 1) at T = 1000 of the linear schedule flows into std 0.50000757 for N(0, 0.5²); Heun nearly so."""
    schedule = Linear()
    alpha_bar = schedule.alpha_bar[-1]
    exact = (0.5 / (alpha_bar * 0.25 + 1 - alpha_bar).sqrt()).item()
    assert exact == pytest.approx(0.50000757, abs=5e-9)
    assert exact_std(Heun(None, clip=None, spacing=Trailing()), schedule, 0.5) == pytest.approx(exact, rel=5e-4)


def error_of_a_flow(sampler: Sampler, std: float = 0.5) -> float:
    """How far a sampler of N(0, std²) by a flow's steps ends from the exact solution: x_T times std."""
    schedule = RectifiedFlow(4096)
    x_T = torch.ones(1, 1, 1, 1, dtype=F64)
    return abs(float(sampler(gaussian(schedule, std), schedule, x_T)) - std)


def test_heun_in_tau_has_order_two_and_eulers_step_order_one() -> None:
    """Each doubling of the steps divides the error by 2^order, to a tenth."""
    for order, make in ((1, lambda n: DDIM(n, clip=None)), (2, lambda n: Heun(n, clip=None, variable="tau"))):
        errors = [error_of_a_flow(make(n)) for n in (16, 32, 64, 128)]
        rates = [math.log2(a / b) for a, b in pairwise(errors)]
        assert rates[-1] == pytest.approx(order, abs=0.1), (order, rates)


def test_heun_in_tau_is_heun_written_out() -> None:
    """Z ← z + h·(v(z) + v(z + h·v(z)))/2 over evenly spaced τ, Euler's at the last step."""
    schedule, denoise = RectifiedFlow(1000), mixture(RectifiedFlow(1000))

    def velocity(z: Tensor, t: int) -> Tensor:
        signal, noise = schedule.alpha_sigma(t)
        found = denoise(z * (signal + noise), t)
        return found.eps - found.x_0

    x_T = torch.randn(5, 1, 1, 1, dtype=F64)
    z, h = x_T, -0.1
    for t in range(1000, 0, -100):
        v = velocity(z, t)
        there = z + h * v
        z = there if t == 100 else z + h * (v + velocity(there, t - 100)) / 2
    found = Heun(10, clip=None, variable="tau")(denoise, schedule, x_T)
    torch.testing.assert_close(found, z, rtol=1e-10, atol=1e-10)


def test_another_variable_is_refused() -> None:
    with pytest.raises(ValueError, match="variable is rho"):
        Heun(variable="rho")  # type: ignore[arg-type]


GAMMA = math.sqrt(2) - 1  # the largest


def sigma(schedule: Schedule, t: int) -> float:
    return float(schedule.log_sigma(t).exp())


def test_churn_is_algorithm_two_written_out() -> None:
    """In EDM's own variables, x = x_0 + σ·ε, with the σ̂ nearest to σ·(1 + γ) in the table and our noise."""
    schedule, seeds = LogSigma(400), torch.tensor([5, 6, 7])
    denoise, low, high, scale, steps = mixture(schedule), 0.05, 50.0, 1.007, 12
    table = [sigma(schedule, t) for t in range(401)]

    def clean(x: Tensor, t: int) -> Tensor:
        return denoise(x / math.sqrt(1 + table[t] ** 2), t).x_0

    x_T = torch.randn(3, 1, 2, 2, dtype=F64)
    x, gamma, churned = x_T * math.sqrt(1 + table[400] ** 2), min(3 / steps, GAMMA), 0
    for t, s in pairwise(Karras()(schedule, steps)):
        above = t
        if low <= table[t] <= high:
            above = min(range(1, 401), key=lambda u: abs(math.log(table[u] / (table[t] * (1 + gamma)))))
            z = random.normal(x.shape[1:], seeds, "reverse step", t, torch.zeros_like(seeds)).double()
            x = x + math.sqrt(table[above] ** 2 - table[t] ** 2) * scale * z
            churned += 1
        d = (x - clean(x, above)) / table[above]
        there = x + (table[s] - table[above]) * d
        if s > 0:
            d = (d + (there - clean(there, s)) / table[s]) / 2
        x = x + (table[s] - table[above]) * d
    assert 6 < churned < steps
    sampler = Heun(steps, clip=None, churn=3, churn_interval=(low, high), noise_scale=scale)
    torch.testing.assert_close(sampler(denoise, schedule, x_T, seeds=seeds), x, rtol=1e-9, atol=1e-9)


class EulerPart(Heun):
    """Whose step is the first half of Heun's, and which keeps the noise of its churn."""

    def begin(self, schedule: Schedule, x_t: Tensor, t: int, noise: Callable[[], Tensor]) -> tuple[Tensor, int]:
        self.drawn = [*getattr(self, "drawn", []), noise()]
        return super().begin(schedule, x_t, t, noise)

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        signal, noise = at.schedule.scales(at.s, x_t)
        return signal * at.prediction.x_0 + noise * at.prediction.eps


@pytest.mark.parametrize("churn", [2.0, 40.0], ids=["some", "most"])
def test_churned_trajectories_are_those_of_diffusers(churn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDMEulerScheduler, on a table of its own σ and σ̂, with our noise.

    Its `step` takes the network's output at the x before the noise. Algorithm 2 evaluates after it, which their own
    argument `pred_original_sample` allows: so x̂ is worked out here, and γ, σ̂ and the step are theirs. Its σ_0 is zero,
    as ours. At σ_max there is nothing above in a table, hence S_tmax.
    """
    scheduler, network, low, high, scale = EDMEulerScheduler(), Fixed(1.0), 0.05, 50.0, 1.007
    scheduler.set_timesteps(18)
    sigmas = scheduler.sigmas.double()
    gamma = min(churn / 18, GAMMA)
    raised = [float(s) * (1 + gamma) if low <= s <= high else float(s) for s in sigmas[:-1]]
    schedule = from_sigmas(torch.tensor(sorted({*sigmas.tolist(), *raised}, reverse=True), dtype=F64))
    table = schedule.log_sigma(torch.arange(schedule.T + 1)).exp()
    times = [int((table - s).abs().argmin()) for s in sigmas[:-1]]
    ours = EulerPart(18, None, churn=churn, churn_interval=(low, high), noise_scale=scale)
    ours.times = lambda schedule: [*times, 0]  # type: ignore[method-assign]
    x_T = start()
    found = ours(Denoiser(network, schedule, EDM()), schedule, x_T)

    x = x_T * math.sqrt(1 + 80**2)
    for t, s, above, z in zip(scheduler.timesteps, sigmas, raised, ours.drawn, strict=False):
        monkeypatch.setattr(scheduling_edm_euler, "randn_tensor", lambda *a, z=z, **k: z)
        up = torch.tensor(above, dtype=torch.float32)
        there = x + math.sqrt(above**2 - float(s) ** 2) * scale * z
        output = network(scheduler.precondition_inputs(there, up), scheduler.precondition_noise(up).expand(len(x)))
        clean = scheduler.precondition_outputs(there, output, up)
        scheduler.is_scale_input_called = True
        x = scheduler.step(
            output, t, x, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=scale, pred_original_sample=clean
        ).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variable", ["sigma", "tau"])
@pytest.mark.parametrize("make", [LogSigma, Cosine, RectifiedFlow], ids=["log sigma", "cosine", "flow"])
def test_churn_leaves_data_as_they_are(make: Callable[[int], Schedule], variable: str) -> None:
    """N(0.3, 0.5²) in the whole loop: mean and variance within three standard errors; γ is 1/4 in each step."""
    schedule, n = make(1000), 4000
    given: dict[str, Any] = {"steps": 160, "clip": None, "variable": variable}
    sampler = Heun(**given, churn=40)
    assert exact_std(sampler, schedule, 0.5) == pytest.approx(0.5, rel=0.01)
    x_T = torch.randn(n, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x_0 = sampler(gaussian(schedule, 0.5, 0.3), schedule, x_T)
    assert abs(x_0.mean() - 0.3) < 3 * 0.5 / math.sqrt(n)
    assert abs(x_0.var() - 0.25) < 3 * 0.25 * math.sqrt(2 / n)
    plain = Heun(**given)(gaussian(schedule, 0.5, 0.3), schedule, x_T)
    assert torch.corrcoef(torch.stack([x_0.flatten(), plain.flatten()]))[0, 1] < 0.9  # the noise is another
    assert exact_std(Heun(**given, churn=40, noise_scale=1.1), schedule, 0.5) > 0.51


def test_churned_times_are_the_nearest_of_the_schedules() -> None:
    schedule = LogSigma(2001, 0.01, 100.0)  # whose steps are 0.46% of σ
    for churn, gamma in ((4, 0.4), (100, GAMMA), (0.1, 0.01)):
        sampler = Heun(10, churn=churn)
        ratio = sigma(schedule, sampler._churned(schedule, 1000)) / sigma(schedule, 1000)
        assert ratio == pytest.approx(1 + gamma, rel=0.0024)
    within = Heun(10, churn=4, churn_interval=(0.1, 1.0))
    assert [t for t in range(1, 2002) if within._churned(schedule, t) > t] == [
        t for t in range(1, 2002) if 0.1 <= sigma(schedule, t) <= 1.0
    ]


@pytest.mark.parametrize("schedule", [LogSigma(4), ZeroTerminalSNR(Linear(40)), RectifiedFlow(40)])
def test_churn_without_a_time_above_adds_none(schedule: Schedule) -> None:
    """At T, and where a table's times are farther apart than γ; nor anything that is not finite."""
    sampler = Heun(4, None, Trailing(), churn=100)
    assert sampler._churned(schedule, schedule.T) == schedule.T
    x_T = torch.randn(3, 1, 2, 2, dtype=F64)
    found = sampler(gaussian(schedule, 0.5), schedule, x_T)
    assert found.isfinite().all()
    if schedule.T == 4:
        assert torch.equal(found, Heun(4, None, Trailing())(gaussian(schedule, 0.5), schedule, x_T))


def test_churn_costs_no_call_of_the_network_and_shows_who_watches_its_times() -> None:
    schedule, called, seen = LogSigma(100), list[int](), list[int]()
    sampler = Heun(10, churn=5)

    def denoise(x_t: Tensor, t: int, c: Tensor | None) -> Prediction:
        called.append(t)
        return gaussian(schedule, 0.5)(x_t, t)

    sampler(denoise, schedule, torch.randn(2, 1, 2, 2), watch=lambda t, x: seen.append(t))
    assert seen == sampler.times(schedule)
    assert len(called) == 19
    assert [t for t in called[::2] if t not in seen]  # at σ̂


def test_churn_follows_a_samples_seed_and_leaves_known_pixels() -> None:
    schedule, sampler = Linear(T=30, beta_1=1e-3, beta_T=0.3), Heun(10, None, churn=3)
    x_T, denoise = torch.randn(1, 1, 4, 4, dtype=F64).expand(3, 1, 4, 4), gaussian(schedule, 0.5)
    together = sampler(denoise, schedule, x_T, seeds=[7, 8, 7])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    known = torch.arange(16).view(4, 4) % 2
    filled = sampler.inpaint(denoise, schedule, x_T, together, known, seeds=[7, 8, 9], resample=3)
    assert torch.equal(filled * known, together * known)
    assert not torch.equal(filled[0], filled[2])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"churn": -1.0}, "churn is -1.0"),
        ({"churn_interval": (2.0, 1.0)}, r"churn_interval is \[2.0, 1.0\]"),
        ({"churn_interval": (-1.0, 1.0)}, r"churn_interval is \[-1.0, 1.0\]"),
        ({"noise_scale": 0.0}, "noise_scale is 0.0"),
    ],
)
def test_impossible_churn_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Heun(**given)  # type: ignore[arg-type]
