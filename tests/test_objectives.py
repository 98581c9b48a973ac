"""The draws of t, and how much each example counts."""

import math

import pytest
import torch

from diffusion_lightning.denoising import EDM, X0, Epsilon, Flow, Parameterization, Velocity
from diffusion_lightning.objectives import (
    P2,
    LogNormal,
    LossAware,
    LossIn,
    MinSNR,
    Simple,
    Stratified,
    TimestepSampler,
    Uniform,
    Weighting,
    ZeroWeight,
)
from diffusion_lightning.random import Draw
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, RectifiedFlow, Shifted, ZeroTerminalSNR

F64 = torch.float64


@pytest.mark.parametrize("make", [kind for kind in TimestepSampler.__subclasses__() if kind is not LogNormal])
def test_times_are_uniform_and_count_alike_before_anything_is_learned(make: type[TimestepSampler]) -> None:
    schedule, n, sampler = Linear(T=1000), 100_000, make()
    sampler.prepare(schedule)
    t, importance = sampler(schedule, Draw(0, "", 0, torch.arange(n)), n)
    assert t.min() == 1
    assert t.max() == 1000
    assert abs(t.double().mean() - 500.5) < 3 * math.sqrt((1000**2 - 1) / 12 / n)
    counts = torch.bincount(t, minlength=1001)[1:].double()
    assert ((counts - 100) ** 2 / 100).sum() < 999 + 3.1 * math.sqrt(2 * 999)  # χ², 99.9%
    torch.testing.assert_close(importance.double(), torch.ones(n, dtype=F64))


@pytest.mark.parametrize("make", TimestepSampler.__subclasses__())
def test_times_are_functions_of_step_and_sample(make: type[TimestepSampler]) -> None:
    schedule, sample, sampler = Linear(T=1000), torch.arange(64), make()
    sampler.prepare(schedule)
    first, second = (sampler(schedule, Draw(0, "", step, sample), 64).t for step in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, sampler(schedule, Draw(0, "", 0, sample), 64).t)
    assert not torch.equal(first, sampler(schedule, Draw(1, "", 0, sample), 64).t)
    halves = [sampler(schedule, Draw(0, "", 0, half), 64).t for half in sample.split(32)]
    assert torch.equal(first, torch.cat(halves))


@pytest.mark.parametrize("make", TimestepSampler.__subclasses__())
def test_what_it_keeps_of_a_schedule_can_be_made_without_memory(make: type[TimestepSampler]) -> None:
    """As a checkpoint's is, on the device "meta", before its sizes are believed."""
    with torch.device("meta"):
        sampler = make()
    schedule = Cosine(T=50)
    with torch.device("meta"):
        sampler.prepare(schedule)
    assert sum(x.numel() for x in sampler.buffers()) < 1000


@pytest.mark.parametrize(("T", "total"), [(1000, 8), (1000, 128), (7, 7), (7, 21), (4000, 4096), (1, 3)])
def test_stratified_times_are_one_from_each_part_of_the_global_batch(T: int, total: int) -> None:
    schedule = Linear(T, 1e-4, 2e-2)
    for step in range(5):
        t = Stratified()(schedule, Draw(0, "", step, torch.arange(total)), total).t
        assert ((t >= 1) & (t <= T)).all()
        low = torch.arange(total) * T / total
        assert (t - 1 >= low.floor()).all()
        assert (t - 1 < low + T / total + 1e-9).all()


@pytest.mark.parametrize("make", Parameterization.__subclasses__())
def test_a_weight_is_the_same_for_what_the_network_outputs(make: type[Parameterization]) -> None:
    """w·‖Δo‖², with the output's error written as one of x_0, is the weight that the paper gives x_0's."""
    schedule, t = Cosine(T=100), torch.arange(1, 100)
    snr, scale = schedule.snr(t), make().x0_error_scale(schedule, t)
    for weighting, of_x_0 in (
        (MinSNR(gamma=5.0), snr.clamp(max=5)),
        (MinSNR(gamma=1.0), snr.clamp(max=1)),
        (P2(), snr / (1 + snr)),
        (P2(gamma=0.5, k=2.0), snr / (2 + snr) ** 0.5),
    ):
        torch.testing.assert_close(weighting(schedule, make(), t) * scale, of_x_0, rtol=1e-10, atol=0)


def test_weights_as_the_papers_write_them() -> None:
    """min(SNR, γ)/SNR for ε, min(SNR, γ) for x_0, min(SNR, γ)/(SNR + 1) for v; 1/(k + SNR)^γ for ε."""
    schedule, t = Linear(), torch.tensor([1, 200, 500, 1000])
    snr = schedule.snr(t)
    least = snr.clamp(max=5)
    for parameterization, expected in ((Epsilon(), least / snr), (X0(), least), (Velocity(), least / (snr + 1))):
        torch.testing.assert_close(MinSNR()(schedule, parameterization, t), expected, rtol=1e-10, atol=0)
        assert torch.equal(Simple()(schedule, parameterization, t), torch.ones(4, dtype=F64))
        assert torch.equal(ZeroWeight()(schedule, parameterization, t), torch.zeros(4, dtype=F64))
    torch.testing.assert_close(P2()(schedule, Epsilon(), t), 1 / (1 + snr), rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", Weighting.__subclasses__())
def test_weights_are_finite_without_signal(make: type[Weighting]) -> None:
    schedule = ZeroTerminalSNR(Linear(T=20))
    for parameterization in (X0(), Velocity(), Flow(), EDM()):
        weights = make()(schedule, parameterization, torch.arange(1, 21))
        assert weights.isfinite().all()
        assert (weights >= 0).all()


def filled(losses: torch.Tensor, **options) -> LossAware:  # type: ignore[no-untyped-def]
    """A sampler that saw each time's loss as often as it remembers."""
    sampler = LossAware(**options)
    sampler.prepare(Linear(len(losses), 1e-4, 2e-2))
    for _ in range(sampler.history):
        sampler.update(torch.arange(1, len(losses) + 1), losses)
    return sampler


def test_loss_aware_draws_by_the_root_of_the_second_moment() -> None:
    losses = torch.tensor([0.5, 1.0, 2.0, 4.0])
    sampler = filled(losses, uniform=0.1)
    expected = 0.9 * losses.double() / losses.double().sum() + 0.1 / 4
    torch.testing.assert_close(sampler.probability(), expected, rtol=1e-12, atol=0)
    n = 100_000
    t, importance = sampler(Linear(T=4), Draw(0, "", 0, torch.arange(n)), n)
    share = torch.bincount(t, minlength=5)[1:].double() / n
    assert ((share - expected).abs() < 3.5 * (expected * (1 - expected) / n).sqrt()).all()
    torch.testing.assert_close(importance, 1 / (4 * expected[t - 1]), rtol=1e-12, atol=0)
    # The weighted mean of any function of t is that of uniform times.
    value = torch.tensor([3.0, -1.0, 7.0, 2.0], dtype=F64)[t - 1] * importance
    assert abs(value.mean() - 2.75) < 3.5 * value.std() / math.sqrt(n)


def test_loss_aware_waits_for_a_whole_history_of_every_time() -> None:
    sampler = LossAware(history=3)
    sampler.prepare(Linear(T=3))
    uniform = torch.full((3,), 1 / 3, dtype=F64)
    for t in ([1, 1, 1, 2, 2, 2, 3, 3], []):
        sampler.update(torch.tensor(t, dtype=torch.long), torch.ones(len(t)) * 9)
        torch.testing.assert_close(sampler.probability(), uniform)
    sampler.update(torch.tensor([3]), torch.tensor([0.0]))
    assert not torch.allclose(sampler.probability(), uniform)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_loss_aware_remembers_the_last_losses_of_each_time(history: int) -> None:
    """Against lists in plain Python, with times that come many times in one batch."""
    sampler, T = LossAware(history=history), 5
    sampler.prepare(Linear(T=T))
    lists: dict[int, list[float]] = {t: [] for t in range(1, T + 1)}
    g = torch.Generator().manual_seed(0)
    for _ in range(30):
        t = torch.randint(1, T + 1, (40,), generator=g)
        losses = torch.rand(40, generator=g)
        sampler.update(t, losses)
        for k, loss in zip(t.tolist(), losses.tolist(), strict=True):
            lists[k].append(loss)
    for k, seen in lists.items():
        assert sampler.seen[k] == len(seen)
        assert sorted(sampler.losses[k].tolist()) == sorted(seen[-history:])
    assert sampler.losses[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MinSNR(gamma=0), "gamma is 0"),
        (lambda: P2(k=0), "k is 0"),
        (lambda: P2(gamma=-1), "gamma is -1"),
        (lambda: LossAware(history=0), "history is 0"),
        (lambda: LossAware(uniform=0), "uniform is 0"),
    ],
)
def test_impossible_objectives_are_refused(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        make()


def test_uniform_is_algorithm_1s() -> None:
    assert torch.equal(Uniform()(Linear(), Draw(0, "", 0, torch.arange(9)), 9).importance, torch.ones(9))


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 1.0), (-0.8, 1.6)])
def test_log_normal_times(mean: float, std: float, stratified: bool) -> None:
    """The moments of ln σ, every sample counted once; and a quantile, which a wrong density of these moments misses."""
    schedule, n, sampler = LogSigma(4000, 1e-4, 1e4), 100_000, LogNormal(mean, std, stratified)
    sampler.prepare(schedule)
    t, importance = sampler(schedule, Draw(0, "", 0, torch.arange(n)), n)
    log_sigma = schedule.log_sigma(t)
    spread = 1e-3 if stratified else 3 * std / n**0.5
    assert abs(log_sigma.mean() - mean) < spread
    assert abs(log_sigma.std() - std) < spread
    assert abs((log_sigma < mean + std).double().mean() - 0.8413) < (0.002 if stratified else 0.005)
    assert torch.equal(importance, torch.ones(n))


def test_of_stratified_times_each_part_of_the_density_has_one() -> None:
    schedule, sampler = LogSigma(4000), LogNormal(-1.2, 1.2, stratified=True)
    sampler.prepare(schedule)
    t = sampler(schedule, Draw(3, "", 5, torch.arange(64)), 64).t
    assert torch.equal(t, t.sort().values)
    reach = torch.special.ndtr((schedule.log_sigma(t) + 1.2) / 1.2) * 64
    assert ((reach - torch.arange(64) - 0.5).abs() < 0.5 + 0.15).all()  # to half a step of the table


def test_a_logit_normal_path_is_a_log_normal_sigma() -> None:
    schedule, n, sampler = RectifiedFlow(10_000), 100_000, LogNormal(0.5, 1.0)
    sampler.prepare(schedule)
    tau = schedule.tau(sampler(schedule, Draw(0, "", 0, torch.arange(n)), n).t)
    assert abs(torch.logit(tau).mean() - 0.5) < 3 / n**0.5


def test_the_bounds_between_times_are_never_cast() -> None:
    sampler = LogNormal()
    sampler.prepare(LogSigma())
    assert sampler.to(torch.bfloat16).between.dtype == F64


@pytest.mark.parametrize("space", [Epsilon, X0, Velocity, Flow, EDM])
@pytest.mark.parametrize("make", [Epsilon, X0, Velocity, Flow, EDM])
def test_a_loss_in_another_space_is_that_spaces_error(
    space: type[Parameterization], make: type[Parameterization]
) -> None:
    """From the outputs themselves: w·‖Δoutput‖² is ‖Δ(what the space would output)‖²."""
    schedule, t = Cosine(T=50), torch.arange(1, 50)
    own, other = make(), space()
    x_t, output, wrong = torch.randn(3, 49, 1, 1, 1, dtype=F64)
    found, missed = (own.prediction(schedule, x, x_t, t) for x in (output, wrong))
    in_space = other.target(schedule, found.x_0 - missed.x_0, found.eps - missed.eps, t).square().flatten()
    weight = LossIn(other)(schedule, own, t)
    torch.testing.assert_close(weight * (output - wrong).square().flatten(), in_space, rtol=1e-7, atol=1e-12)


def test_a_floor_holds_the_weight_of_nearly_clean_images() -> None:
    schedule, t = RectifiedFlow(1000), torch.tensor([1, 10, 50, 500, 1000])
    expected = 1 / schedule.tau(t).clamp(min=0.05) ** 2
    torch.testing.assert_close(LossIn(floor=0.05)(schedule, X0(), t), expected, rtol=1e-12, atol=0)


def test_simple_is_edms_loss_of_x_0() -> None:
    schedule, t = LogSigma(), torch.arange(1, 1001)
    variance = schedule.log_sigma(t).exp() ** 2
    expected = (variance + 0.25) / (variance * 0.25)
    torch.testing.assert_close(LossIn(EDM(0.5))(schedule, X0(), t), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_multiplies_sigma(shift: float) -> None:
    """To ten digits, which 1 - ᾱ keeps at the first times."""
    schedule, t = Linear(), torch.arange(1, 1001)
    torch.testing.assert_close(
        Shifted(schedule, shift).log_sigma(t), schedule.log_sigma(t) + math.log(shift), rtol=1e-10, atol=1e-10
    )
    flow = RectifiedFlow()
    tau = flow.tau(t)
    torch.testing.assert_close(Shifted(flow, shift).tau(t), shift * tau / (1 + (shift - 1) * tau), rtol=1e-9, atol=0)
