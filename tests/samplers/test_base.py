"""What holds for every sampler, whatever the schedule and whatever the network predicts."""

import math
from collections.abc import Callable
from copy import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import X0, Denoiser, Parameterization, Prediction, Velocity
from diffusion_lightning.samplers import (
    DDIM,
    Ancestral,
    Consistency,
    DPMSolver,
    Heun,
    Karras,
    Leading,
    Sampler,
    Spacing,
    Step,
    Trailing,
    UniformLogSNR,
)
from diffusion_lightning.samplers.base import slerp
from diffusion_lightning.schedules import Cosine, Linear, Schedule, ZeroTerminalSNR

from ..conftest import gaussian, of_length
from ..support.solvers import F64, exact_std, mixture, one

SAMPLERS: dict[str, Sampler] = {
    **{make.__name__: make(steps=10, clip=None) for make in Sampler.__subclasses__()},
    "DPMSolver, order 3": DPMSolver(10, 3, clip=None),
    "Heun, tau": Heun(10, clip=None, variable="tau"),
    "Heun, churn": Heun(10, clip=None, churn=4),
}

# Those whose samples are the data's by a denoiser; `Consistency` asks a function that goes all the way.
OF_A_DENOISER = [make for make in Sampler.__subclasses__() if make is not Consistency]


class Exact(nn.Module):
    """What a perfect network outputs for data N(0.3, 0.5²), from what it is fed alone."""

    def __init__(self, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.schedule, self.parameterization = schedule, parameterization
        self.times = parameterization.time(schedule, torch.arange(1, schedule.T + 1))

    def forward(self, scaled: Tensor, time: Tensor, c: Tensor | None = None) -> Tensor:
        t = int((self.times == time[0]).nonzero()[0, 0]) + 1
        x_t = scaled / self.parameterization.input_scale(self.schedule, t)
        found = gaussian(self.schedule, 0.5, 0.3)(x_t, t)
        return self.parameterization.target(self.schedule, found.x_0, found.eps, t)


@pytest.mark.parametrize("make", Schedule.__subclasses__(), ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_make_the_same_of_every_parameterization_on_every_schedule(name: str, make: type[Schedule]) -> None:
    """The same x_0 as from the exact prediction; a pair that leaves x_0 undetermined is refused by the denoiser."""
    schedule, sampler = of_length(make, 100), SAMPLERS[name]
    x_T = torch.randn(4, 1, 2, 2, dtype=F64)
    wanted = sampler(gaussian(schedule, 0.5, 0.3), schedule, x_T)
    assert wanted.isfinite().all()
    assert wanted.abs().max() < 4
    ran = 0
    for parameterization in Parameterization.__subclasses__():
        given = parameterization()
        if (given.determinant(schedule, torch.arange(1, 101)) == 0).any():
            continue
        found = sampler(Denoiser(Exact(schedule, given), schedule, given), schedule, x_T)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7, msg=parameterization.__name__)
        ran += 1
    assert ran >= len(Parameterization.__subclasses__()) - 1


@pytest.mark.parametrize("make", OF_A_DENOISER)
@pytest.mark.parametrize("schedule", [Linear, Cosine])
@pytest.mark.parametrize("std", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
def test_samplers_converge_to_the_data(make: type[Sampler], schedule: type[Schedule], std: float) -> None:
    """With ever finer chains (the same ᾱ curve, T = 125, 250, …, 4000) the error falls below 1%, and each time."""
    errors = []
    for T in (250, 1000, 4000):
        chain = Linear(T, 0.1 / T, 20 / T) if schedule is Linear else Cosine(T)
        errors.append(abs(exact_std(make(steps=None, clip=None), chain, std) - std) / std)
    assert errors[2] < 0.01
    assert errors[0] > errors[1] > errors[2] or max(errors) < 1e-3


@pytest.mark.parametrize("make", OF_A_DENOISER)
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


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_consistency_function_samples_the_data_in_any_number_of_calls(steps: int) -> None:
    """On data N(0.3, 0.5²) it is f(x_t) = 0.3 + 0.5·(x_t - 0.3·√ᾱ_t)/√(0.25·ᾱ_t + 1 - ᾱ_t), x_t's own quantile."""
    schedule, n = Cosine(500), 4000

    def function(x_t: Tensor, t: int, c: Any) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        x_0 = 0.3 + 0.5 * (x_t - 0.3 * signal) / (0.25 * signal**2 + noise**2).sqrt()
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    x_T = torch.randn(n, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x_0 = Consistency(steps, clip=None)(function, schedule, x_T)
    assert abs(x_0.mean() - 0.3) < 3 * 0.5 / math.sqrt(n)
    assert abs(x_0.var() - 0.25) < 3 * 0.25 * math.sqrt(2 / n)


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
        (lambda: DDIM(dynamic=1.5), "dynamic is 1.5"),
        (lambda: DDIM(dynamic=0.9, clip=None), "without a clip there is no bound"),
        (lambda: DPMSolver(order=4), "order is 4"),
        (lambda: Karras(rho=0), "rho is 0"),
    ],
)
def test_impossible_samplers_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_x_0_is_clipped_before_the_mean_is_formed_and_eps_follows() -> None:
    schedule, seen = Linear(), []

    class Spy(DDIM):
        def step(self, x_t: Tensor, at: Step) -> Tensor:
            signal, total = schedule.scales(at.t, x_t)
            torch.testing.assert_close(signal * at.prediction.x_0 + total * at.prediction.eps, x_t)
            seen.append(at.prediction.x_0.abs().max().item())
            return super().step(x_t, at)

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


@pytest.mark.parametrize("make", OF_A_DENOISER)
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_who_watches_sees_x_t_at_every_time_and_changes_nothing(make: type[Sampler], steps: int) -> None:
    """At the start of each step and at the end; each x_t is where a run that begins there goes on from."""
    schedule, seen = Linear(T=30, beta_1=1e-3, beta_T=0.3), list[tuple[int, Tensor]]()
    sampler, x_T = make(steps=steps), torch.randn(3, 1, 4, 4, dtype=F64)
    x_0 = sampler(gaussian(schedule, 0.5), schedule, x_T, seeds=[4, 5, 6], watch=lambda t, x: seen.append((t, x)))
    assert torch.equal(x_0, sampler(gaussian(schedule, 0.5), schedule, x_T, seeds=[4, 5, 6]))
    times = sampler.times(schedule)
    assert [t for t, _ in seen] == times
    assert torch.equal(seen[0][1], x_T)
    assert torch.equal(seen[-1][1], x_0)
    if isinstance(sampler, DPMSolver):
        return  # which remembers the step before
    for k, (_, x_t) in enumerate(seen[:-1]):
        rest = copy(sampler)
        rest.times = lambda schedule, k=k: times[k:]  # type: ignore[method-assign, misc]
        assert torch.equal(rest(gaussian(schedule, 0.5), schedule, x_t, seeds=[4, 5, 6]), x_0)


def test_as_many_seeds_as_samples() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        DDIM(2)(gaussian(Linear(), 1.0), Linear(), torch.zeros(3, 1, 1, 1), seeds=[1, 2])


# Verbs: the same steps, there and back


def curved(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
    """A denoiser that is no straight line: data on two blobs, under the linear schedule."""
    return mixture(Linear())(x_t, t, c)


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (DDIM(None), 5e-2),
        (DPMSolver(None, order=1), 5e-2),
        (DPMSolver(None), 1e-3),
        (DPMSolver(None, 3), 1e-3),
        (Heun(None), 1e-3),
    ],
)
def test_inversion_finds_the_noise_that_makes_the_image(sampler: Sampler, tolerance: float) -> None:
    sampler.clip = None
    x_0 = torch.tensor([-1.3, -0.9, -0.2, 0.1, 0.8, 1.1], dtype=F64).view(6, 1, 1, 1)
    x_T = sampler.invert(curved, Linear(), x_0)
    assert x_T.abs().max() < 4
    torch.testing.assert_close(sampler(curved, Linear(), x_T), x_0, rtol=0, atol=tolerance)


def test_the_inverse_of_gaussian_data_is_a_change_of_scale() -> None:
    """Exactly x_T = x_0/s: both are standard normal there."""
    x_0 = torch.linspace(-1, 1, 5, dtype=F64).view(5, 1, 1, 1)
    found = Heun(None, clip=None).invert(gaussian(Linear(), 0.5), Linear(), x_0)
    torch.testing.assert_close(found, x_0 / 0.5, rtol=2e-3, atol=0)


@pytest.mark.parametrize("sampler", [Ancestral(10), DDIM(10, eta=0.5), Heun(10, churn=1)])
def test_noise_cannot_be_run_backwards(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"adds noise of its own.*DDIM"):
        sampler.invert(curved, Linear(), torch.zeros(1, 1, 1, 1))


def test_interpolation_leads_from_one_image_to_the_other() -> None:
    """Over noise in many dimensions, whose length stays what noise has."""
    g = torch.Generator().manual_seed(0)
    start, end = (0.5 * torch.randn(3, 1, 16, 16, dtype=F64, generator=g) for _ in range(2))
    sampler, denoise = Heun(50, clip=None), gaussian(Linear(), 0.5)
    between = sampler.interpolate(denoise, Linear(), start, end, [0, 0.25, 0.5, 1])
    assert between.shape == (4, 3, 1, 16, 16)
    torch.testing.assert_close(between[0], start, rtol=0, atol=5e-3)
    torch.testing.assert_close(between[3], end, rtol=0, atol=5e-3)
    assert (between.std((2, 3, 4)) / 0.5 - 1).abs().max() < 0.2
    assert (between[2] - (start + end) / 2 * math.sqrt(2)).abs().mean() < 0.05


def test_slerp_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), (a + b) / math.sqrt(2))
    torch.testing.assert_close(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("make", OF_A_DENOISER)
def test_inpainting_keeps_what_is_known_and_fills_what_follows(make: type[Sampler]) -> None:
    """Pairs that are equal or nearly so, N(0, 0.5²) each, correlation r: the unknown is N(r·known, 0.25·(1 - r²))."""
    schedule, r, n = Linear(T=200, beta_1=5e-4, beta_T=0.1), 0.9, 4000
    covariance = 0.25 * torch.tensor([[1, r], [r, 1]], dtype=F64)

    def denoise(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
        signal, noise = (root.item() for root in schedule.alpha_sigma(t))
        gain = signal * covariance @ torch.linalg.inv(signal**2 * covariance + noise**2 * torch.eye(2, dtype=F64))
        x_0 = (x_t.flatten(1) @ gain.T).view_as(x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    g = torch.Generator().manual_seed(0)
    x_T = torch.randn(n, 1, 1, 2, dtype=F64, generator=g)
    image = torch.tensor([0.8, 77.0], dtype=F64).view(1, 1, 1, 2).expand(n, 1, 1, 2)
    known = torch.tensor([1, 0]).view(1, 1, 1, 2)
    found = make(steps=None, clip=None).inpaint(denoise, schedule, x_T, image, known)
    assert torch.equal(found[..., 0], image[..., 0])
    assert abs(found[..., 1].mean() - 0.8 * r) < 0.06
    assert 0 < found[..., 1].std() < 0.5
    if make is Ancestral:
        assert found[..., 1].std() == pytest.approx(0.5 * math.sqrt(1 - r**2), rel=0.25)


class Path(DDIM):
    """Keeps the steps that it takes."""

    def step(self, x_t: Tensor, at: Step) -> Tensor:
        self.taken.append((at.t, at.s))
        return super().step(x_t, at)

    taken: list[tuple[int, int]]


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("resample", [1, 2, 10], ids=["once", "twice", "ten times"])
@pytest.mark.parametrize("steps", [1, 3, 12], ids=["1 step", "3 steps", "12 steps"])
def test_inpainting_takes_the_last_step_once_and_every_other_as_often_as_asked(steps: int, resample: int) -> None:
    """RePaint, algorithm 1: for t = T … 1, for u = 1 … U, and back up "if u < U and t > 1"."""
    schedule, sampler = Linear(T=12), Path(steps)
    sampler.taken = []
    x = torch.randn(2, 1, 4, 4)
    sampler.inpaint(gaussian(schedule, 0.5), schedule, x, x, torch.ones(1), resample=resample)
    pairs = list(pairwise(sampler.times(schedule)))
    assert sampler.taken == [pair for pair in pairs for _ in range(resample if pair[1] > 0 else 1)]


# Zero terminal SNR, thresholding, spacings


@pytest.mark.parametrize("make", OF_A_DENOISER)
@pytest.mark.parametrize("parameterization", [X0(), Velocity()])
@pytest.mark.parametrize("spacing", [Trailing(), Leading(), UniformLogSNR(), Karras()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_all_stay_finite_where_no_signal_is_left(
    make: type[Sampler], parameterization: Parameterization, spacing: Spacing, steps: int
) -> None:
    """In float32, with a network that is far from right, clipped and not; the inversion too."""
    schedule = ZeroTerminalSNR(Cosine(T=40))

    class Wild(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return 3 * torch.cos(5 * x_t + t.view(-1, 1, 1, 1))

    denoise = Denoiser(Wild(), schedule, parameterization)
    x_T = torch.randn(3, 1, 4, 4)
    for clip in (1.0, None):
        sampler = make(steps=steps, clip=clip, spacing=spacing)
        assert sampler.times(schedule)[0] == 40 or isinstance(spacing, Leading)
        assert sampler(denoise, schedule, x_T).isfinite().all()
        if sampler.deterministic:
            assert sampler.invert(denoise, schedule, x_T.clamp(-1, 1)).isfinite().all()


@pytest.mark.parametrize("schedule", [Cosine(), ZeroTerminalSNR(Linear()), Linear()], ids=["cosine", "zero", "linear"])
@pytest.mark.parametrize("sampler", [DPMSolver(20), DPMSolver(20, 3), Heun(20), Heun(20, spacing=Trailing())])
def test_few_steps_suffice_whatever_the_noise_at_T(schedule: Schedule, sampler: Sampler) -> None:
    """σ_T is 20,000 for the cosine and infinite for zero terminal SNR; the digits' spread is made in 20 steps."""
    sampler.clip = None
    assert exact_std(sampler, schedule, 0.5) == pytest.approx(0.5, rel=0.06)
    wobbly = gaussian(schedule, 0.5)

    def denoise(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
        """As a network is: off by a tenth, differently at every time."""
        x_0 = wobbly(x_t, t).x_0 + 0.1 * math.sin(7 * t)
        signal, noise = schedule.scales(t, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    assert sampler(denoise, schedule, 0 * one()).abs().item() < 0.5


def test_dynamic_thresholding_scales_what_is_out_of_bounds_back_into_them() -> None:
    """Imagen's rule by hand: s = max(quantile of |x_0|, 1), x_0 clipped to ± s and divided by s."""
    schedule, seen = Linear(), []

    class Spy(DDIM):
        def step(self, x_t: Tensor, at: Step) -> Tensor:
            seen.append(at.prediction.x_0)
            return super().step(x_t, at)

    x_0 = torch.stack([torch.linspace(-4, 4, 101, dtype=F64), torch.linspace(-0.5, 0.5, 101, dtype=F64)])[:, None, None]
    Spy(1, dynamic=0.9)(lambda x, t, c: Prediction(x_0, x), schedule, torch.zeros(2, 1, 1, 101, dtype=F64))
    torch.testing.assert_close(seen[0][0], x_0[0].clamp(-3.6, 3.6) / 3.6, rtol=1e-6, atol=0)
    torch.testing.assert_close(seen[0][1], x_0[1], rtol=1e-12, atol=0)
