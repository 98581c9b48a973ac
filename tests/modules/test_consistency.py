"""Consistency: its boundary, its loss written out, the same masks in both calls, a teacher's step, its refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import samplers
from diffusion_lightning.curricula import ICT
from diffusion_lightning.modules import Consistency
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import Heun
from diffusion_lightning.schedules import LogSigma

from ..conftest import gaussian, tiny_unet

FINE = LogSigma(20_000, 2e-4, 500.0)


def small(**changes: Any) -> Consistency:
    torch.manual_seed(0)
    return Consistency(**{"network": tiny_unet(), "schedule": LogSigma(20_000, 2e-4, 500.0), **changes})


def draw(n: int) -> Draw:
    return Draw(0, "training", 2, torch.arange(n))


def pictures(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def evaluated(model: Consistency, x_0: Tensor, of: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """t, r and each example's loss, in the first of eight stages, where r is 0 for σ_t below 1.95."""
    t, model._earlier = model.curriculum(model.schedule, of, 0)
    return t, model._earlier, model._losses(x_0, t, of, torch.zeros(len(x_0), dtype=torch.long))


def test_the_boundary_holds_bitwise() -> None:
    """f(x, 0) = x, beside other examples of other times; and continuously: at σ = 2e-4 it is x to 1e-3."""
    model = small().eval()
    x = pictures(4)
    t = torch.tensor([0, 5000, 0, 1])
    made = model.clean(x, t)
    assert torch.equal(made[[0, 2]], x[[0, 2]])
    assert not torch.equal(made[1], x[1])
    assert float((made[3] - x[3]).abs().max()) < 1e-3


@pytest.mark.parametrize(("huber", "c"), [(0.0, 0.0), (0.1, 0.1), (None, 0.00054 * 8)])
def test_its_loss_is_that_of_the_papers(huber: float | None, c: float) -> None:
    """‖f(x_t, t) - f(x_r, r)‖ of one image and noise, or √(‖·‖² + c²) - c, over σ_t - σ_r; in float64 from EDM's D."""
    model = small(huber=huber).double().eval()
    x_0, of = pictures(20).double(), draw(20)
    t, r, losses = evaluated(model, x_0, of)
    assert (r == 0).any()
    assert (r > 0).any()
    eps = of.normal("eps", x_0)

    def D(x: Tensor, sigma: float) -> Tensor:
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out, c_in = sigma * 0.5 / math.sqrt(sigma**2 + 0.25), 1 / math.sqrt(sigma**2 + 0.25)
        F = model.denoiser.network((c_in * x)[None], torch.tensor([math.log(sigma) / 4]).float(), None)[0]
        return c_skip * x + c_out * F

    for i in range(20):
        sigma = [0.0 if k == 0 else 2e-4 * (500 / 2e-4) ** ((k - 1) / 19_999) for k in (int(r[i]), int(t[i]))]
        there = D(x_0[i] + sigma[1] * eps[i], sigma[1])
        target = x_0[i] if sigma[0] == 0 else D(x_0[i] + sigma[0] * eps[i], sigma[0])
        square = float((there - target).square().sum())
        wanted = (math.sqrt(square + c**2) - c) / (sigma[1] - sigma[0])
        assert float(losses[i]) == pytest.approx(wanted, rel=1e-6)


class Masked(nn.Module):
    """F = dropout of ones: shows the mask."""

    in_channels, size = 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), list[Tensor]()

    def forward(self, x: Tensor, time: Tensor, c: Any = None) -> Tensor:
        self.seen.append(mask := nn.functional.dropout(torch.ones_like(x), 0.5, self.training))
        return mask * self.weight


def test_both_calls_have_the_same_masks_and_the_next_step_others() -> None:
    network = Masked()
    model = small(network=network).train()
    network.seen.clear()
    x_0 = pictures(8)
    evaluated(model, x_0, draw(8))
    first, second = network.seen
    assert torch.equal(first, second)
    assert 0.3 < float((first == 0).float().mean()) < 0.7
    evaluated(model, x_0, draw(8))
    assert not torch.equal(network.seen[2], first)


def test_the_target_has_no_gradient() -> None:
    model = small().eval()
    x_0, of = pictures(6), draw(6)
    t, _, losses = evaluated(model, x_0, of)
    losses.sum().backward()
    found = [p.grad.clone() for p in model.denoiser.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in found)
    model.zero_grad()
    x_t = FINE.q_sample(x_0, t, of.normal("eps", x_0))
    target = None
    with torch.no_grad():
        r = model._earlier
        target = model.clean(FINE.q_sample(x_0, r, of.normal("eps", x_0)), r)
    apart = torch.linalg.vector_norm((model.clean(x_t, t) - target).flatten(1), dim=1)
    sigma_t, sigma_r = (FINE.log_sigma(x).exp() for x in (t, r))
    (apart / (sigma_t - sigma_r).float()).sum().backward()
    again = [p.grad for p in model.denoiser.parameters() if p.grad is not None]
    for a, b in zip(found, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_a_teachers_step_is_its_samplers(solver: Any) -> None:
    """From t to r of the exact denoiser of Gaussian data: DDIM's, or Heun's in σ."""
    model = small(solver=solver).double()
    schedule = model.schedule
    exact = gaussian(schedule, 0.5)

    class Exact(nn.Module):
        def forward(self, *given: Any) -> Any:
            return exact(*given)

    model.teacher = Exact()  # type: ignore[assignment]
    x_t, t, r = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([18_000, 15_000, 9_000, 400, 300]), None
    r = torch.tensor([17_000, 14_000, 8_000, 0, 1])
    found = model._solved(x_t, t, r, None)
    sampler: Any = {"ddim": samplers.DDIM(1, clip=None), "heun": Heun(1, clip=None)}[solver]
    for i in range(5):
        predict = lambda x, at: exact(x, at)
        step = samplers.Step(schedule, int(t[i]), int(r[i]), exact(x_t[i : i + 1], int(t[i])), (), predict, None)  # type: ignore[arg-type]
        wanted = sampler.step(x_t[i : i + 1], step)
        if float(schedule.log_sigma(int(t[i])).exp()) < 80:
            torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-10, atol=1e-10)


def test_the_sampler_adds_noise_between_its_calls() -> None:
    schedule = FINE
    exact = gaussian(schedule, 0.5)
    x_T = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    one = samplers.Consistency(clip=None)(exact, schedule, x_T)
    assert torch.equal(one, exact(x_T, schedule.T).x_0)
    sampler = samplers.Consistency(2, between=[0.821], clip=None)
    first, middle, last = sampler.times(schedule)
    assert (first, last) == (schedule.T, 0)
    assert float(schedule.log_sigma(middle).exp()) == pytest.approx(0.821, rel=1e-3)
    seen: list[tuple[int, Tensor]] = []
    made = sampler(exact, schedule, x_T, watch=lambda t, x: seen.append((t, x)))
    signal, noise = schedule.alpha_sigma(middle)
    z = (seen[1][1] - signal * one) / noise
    assert 0.2 < float(z.std()) < 3
    torch.testing.assert_close(made, exact(seen[1][1], middle).x_0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 2, "between": [0.8, 0.2]}, "give 1 falling σ's above 0"),
        ({"steps": 3, "between": [0.2, 0.8]}, "give 2 falling σ's above 0"),
        ({"steps": 2, "between": [0.0]}, "give 1 falling σ's above 0"),
    ],
)
def test_noise_levels_that_do_not_fall_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        samplers.Consistency(**arguments)


@pytest.mark.parametrize("between", [[600.0], [0.5, 0.49999]])
def test_levels_that_are_one_time_of_the_schedule_are_refused(between: list[float]) -> None:
    with pytest.raises(ValueError, match="but each step goes to an earlier time"):
        samplers.Consistency(len(between) + 1, between).times(LogSigma(1000))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"huber": -1.0}, "huber is -1.0, but it is a length"),
        ({"solver": "euler"}, "solver is euler, but a teacher's step is heun or ddim"),
        ({"schedule": LogSigma(1000)}, "give LogSigma with a larger T"),
        ({"curriculum": ICT(), "schedule": LogSigma(1000)}, "give LogSigma a larger T"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changes)
