"""The forward process: its table, its marginals, its posterior; in float64 unless a test is about something else."""

import math

import pytest
import torch

from diffusion_lightning.schedules import Cosine, Linear, Schedule, Sigmoid, ZeroTerminalSNR

from .conftest import of_length

ALL = Schedule.__subclasses__()
F64 = torch.float64


# At T = 1 there is no ZeroTerminalSNR: its first step is to stay and its last to lose all signal.
@pytest.mark.parametrize(
    ("make", "T"), [(make, T) for make in ALL for T in (1, 2, 50, 1000) if (make, T) != (ZeroTerminalSNR, 1)]
)
def test_alpha_bar_falls_from_one(make: type[Schedule], T: int) -> None:
    schedule = of_length(make, T)
    assert schedule.T == T
    assert schedule.alpha_bar.shape == (T + 1,)
    assert schedule.alpha_bar.dtype == F64
    assert schedule.alpha_bar[0] == 1
    assert (schedule.alpha_bar.diff() < 0).all()
    assert schedule.alpha_bar[-1] >= 0


@pytest.mark.parametrize("make", ALL)
def test_closed_form_is_the_chain_in_distribution(make: type[Schedule]) -> None:
    """x_t ← √(1 - β_t)·x_{t-1} + √β_t·z, as a recursion of the mean and the variance, for every t."""
    schedule = of_length(make, 200)
    mean, variance = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for t in range(1, schedule.T + 1):
        beta = schedule.beta(t, t - 1)
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        at = schedule.alpha_bar[t]
        torch.testing.assert_close(mean, at.sqrt(), rtol=1e-10, atol=0)
        torch.testing.assert_close(variance, 1 - at, rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", ALL)
def test_q_sample_has_the_marginal_of_the_simulated_chain(make: type[Schedule]) -> None:
    schedule, n, t = of_length(make, 100), 200_000, 60
    x_0 = torch.full((n,), 0.7, dtype=F64)
    g = torch.Generator().manual_seed(0)
    x = x_0.clone()
    for k in range(1, t + 1):
        beta = schedule.beta(k, k - 1)
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(n, dtype=F64, generator=g)
    direct = schedule.q_sample(x_0, torch.full((n,), t), torch.randn(n, dtype=F64, generator=g))
    variance = 1 - schedule.alpha_bar[t]
    for sample in (x, direct):
        assert abs(sample.mean() - 0.7 * schedule.alpha_bar[t].sqrt()) < 3 * (variance / n).sqrt()
        assert abs(sample.var() - variance) < 3 * variance * math.sqrt(2 / n)
    # Two-sample Kolmogorov-Smirnov, 99.9%: 1.95·√(2/n).
    both = torch.cat([x, direct])
    steps = torch.cat([torch.full((n,), 1 / n), torch.full((n,), -1 / n)])[both.argsort()]
    assert steps.cumsum(0).abs().max() < 1.95 * math.sqrt(2 / n)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (500, 499), (500, 250), (999, 20), (1000, 999)])
def test_posterior_is_bayes_rule_by_quadrature(make: type[Schedule], t: int, s: int) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s)·q(x_s | x_0), its mean and variance integrated on a grid."""
    schedule = of_length(make)
    at, as_ = schedule.alpha_bar[t], schedule.alpha_bar[s]
    x_0, eps = torch.tensor([0.6], dtype=F64), torch.tensor([-0.8], dtype=F64)
    x_t = at.sqrt() * x_0 + (1 - at).sqrt() * eps
    mean, variance = schedule.posterior(x_0, x_t, t, s)
    if s == 0:
        torch.testing.assert_close(mean, x_0, rtol=1e-9, atol=1e-12)
        assert variance == 0
        return
    # The grid is laid around the prior q(x_s | x_0), as far as the likelihood reaches, without asking the answer.
    prior_mean, prior_std = as_.sqrt() * x_0, (1 - as_).sqrt()
    alpha = at / as_
    like_mean, like_std = x_t / alpha.sqrt(), ((1 - alpha) / alpha).sqrt()
    narrow = min(prior_std, like_std)
    centre = prior_mean if prior_std < like_std else like_mean
    grid = centre + narrow * torch.linspace(-12, 12, 200_001, dtype=F64)
    log_density = -((grid - prior_mean) ** 2) / (2 * prior_std**2) - (x_t - alpha.sqrt() * grid) ** 2 / (
        2 * (1 - alpha)
    )
    weight = torch.softmax(log_density, 0)
    by_quadrature = (weight * grid).sum()
    torch.testing.assert_close(mean, by_quadrature[None], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(variance, (weight * (grid - by_quadrature) ** 2).sum(), rtol=1e-7, atol=0)


def test_posterior_takes_a_time_for_each_example() -> None:
    schedule = Linear()
    x_0, x_t = torch.randn(4, 1, 2, 2, dtype=F64), torch.randn(4, 1, 2, 2, dtype=F64)
    t, s = torch.tensor([5, 100, 700, 1000]), torch.tensor([4, 20, 699, 0])
    mean, variance = schedule.posterior(x_0, x_t, t, s)
    for i in range(4):
        one, var = schedule.posterior(x_0[i : i + 1], x_t[i : i + 1], int(t[i]), int(s[i]))
        assert torch.equal(mean[i : i + 1], one)
        assert variance[i] == var


def test_constants_of_the_linear_schedule() -> None:
    """Published figures of DDPM's tables, whose index t is our t + 1."""
    schedule = Linear()
    close = {"rtol": 1e-10, "atol": 0}
    expected = torch.tensor([0.9999, 0.07779665836502389, 4.035829765375676e-05], dtype=F64)
    torch.testing.assert_close(schedule.alpha_bar[[1, 501, 1000]], expected, **close)  # type: ignore[arg-type]
    assert schedule.posterior_variance(2, 1).item() == pytest.approx(5.4531876613021935e-05, rel=1e-10)
    assert schedule.posterior_variance(501, 500).item() == pytest.approx(0.010051335778909593, rel=1e-10)
    one, zero = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    assert schedule.posterior(one, zero, 501, 500)[0].item() == pytest.approx(0.003058057075629619, rel=1e-10)
    assert schedule.posterior(zero, one, 501, 500)[0].item() == pytest.approx(0.9941043507567258, rel=1e-10)
    assert schedule.snr(1).log().item() == pytest.approx(9.21024, abs=5e-6)
    assert schedule.snr(1000).log().item() == pytest.approx(-10.11767, abs=5e-6)


def test_constants_of_the_cosine_schedule() -> None:
    schedule = Cosine()
    assert schedule.beta(1, 0).item() == pytest.approx(4.128422482196914e-05, rel=1e-10)
    beta = schedule.beta(torch.arange(1, 1001), torch.arange(1000))
    assert (beta > 0.999 - 1e-9).sum() == 1
    assert schedule.alpha_bar[501].item() == pytest.approx(0.49228517244880304, rel=1e-10)
    assert schedule.alpha_bar[1000].item() == pytest.approx(2.4287669070348567e-09, rel=1e-10)
    assert Cosine(T=4000).alpha_bar[4000].item() == pytest.approx(1.5179804688514517e-10, rel=1e-10)


def test_the_sigmoid_schedule_against_its_formula() -> None:
    """Chen's γ(t), written out for three times of start = -3, end = 3 at two temperatures."""
    for tau in (1.0, 0.5):
        schedule = Sigmoid(T=100, tau=tau)
        low, high = (1 / (1 + math.exp(-v / tau)) for v in (-3, 3))
        for t in (1, 50, 93):
            at = 1 / (1 + math.exp(-(-3 + 6 * t / 100) / tau))
            assert schedule.alpha_bar[t].item() == pytest.approx((high - at) / (high - low), rel=1e-12)
        assert schedule.alpha_bar[100].item() == 1e-9


def test_zero_terminal_snr_moves_the_ends_where_the_paper_says() -> None:
    """√ᾱ is stretched linearly: ᾱ_1 stays, ᾱ_T is exactly 0, and the log-SNR is -∞ there and finite before."""
    for inner in (Linear(), Cosine(T=50), Sigmoid()):
        schedule = ZeroTerminalSNR(inner)
        assert schedule.alpha_bar[1].item() == pytest.approx(inner.alpha_bar[1].item(), rel=1e-14)
        assert schedule.alpha_bar[-1] == 0
        assert schedule.snr(inner.T).log() == -math.inf
        assert schedule.snr(inner.T - 1).log().isfinite()
        ratio = schedule.alpha_bar[1:].sqrt().diff() / inner.alpha_bar[1:].sqrt().diff()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0)
        mean, variance = schedule.posterior(torch.ones(1), torch.full((1,), 9.0), inner.T, 1)
        assert mean.item() == pytest.approx(schedule.alpha_bar[1].sqrt().item())  # x_T says nothing of x_0
        assert variance.item() == pytest.approx(1 - schedule.alpha_bar[1].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sigmoid(start=3, end=-3), "start is 3 and end is -3"),
        (lambda: Sigmoid(tau=0), "tau is 0"),
        (lambda: ZeroTerminalSNR(Linear(T=1)), "T = 1, but its first step is to stay"),
        (lambda: Linear(T=0), "T is 0"),
        (lambda: Cosine(T=-3), "T is -3"),
        (lambda: Linear(T=1.5), "T is 1.5"),  # type: ignore[arg-type]
        (lambda: Linear(beta_1=0.0), "beta_1 is 0.0, but .* alpha_bar must fall"),
        (lambda: Linear(beta_1=1e-20), "alpha_bar must fall at every step, but alpha_bar\\[1\\] = 1"),
        (lambda: Linear(beta_T=1.5), "beta_T is 1.5"),
        (lambda: Schedule(torch.tensor([1.0, 0.5, -0.1])), "cannot be negative, but alpha_bar\\[2\\] = -0.1"),
        (lambda: Cosine(s=-0.1), "s is -0.1"),
        (lambda: Schedule(torch.tensor([1.0, 0.5, 0.6])), "alpha_bar\\[2\\] = 0.6 is not below alpha_bar\\[1\\] = 0.5"),
        (lambda: Schedule(torch.tensor([0.9, 0.5])), "alpha_bar\\[0\\] is 0.9"),
        (lambda: Schedule(torch.tensor([1.0, math.nan])), "must fall"),
        (lambda: Schedule(torch.tensor([1.0])), "T\\+1 entries"),
        (lambda: Linear().q_sample(torch.zeros(1), 1001, torch.zeros(1)), "t = 1001"),
        (lambda: Linear().q_sample(torch.zeros(1), -1, torch.zeros(1)), "t = -1"),
    ],
)
def test_what_is_no_schedule_is_refused(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("make", ALL)
def test_the_table_is_never_cast_and_never_saved(make: type[Schedule]) -> None:
    schedule = of_length(make)
    module = torch.nn.Sequential(schedule, torch.nn.Linear(1, 1))
    before = schedule.alpha_bar.clone()
    for _ in (module.half(), module.to(torch.bfloat16), module.float()):
        assert schedule.alpha_bar.dtype == F64
        assert torch.equal(schedule.alpha_bar, before)
    assert not [key for key in module.state_dict() if "alpha_bar" in key]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x_t_keeps_the_images_type(dtype: torch.dtype) -> None:
    x = torch.randn(2, 1, 2, 2, dtype=dtype)
    x_t = Linear().q_sample(x, torch.tensor([3, 900]), torch.randn(2, 1, 2, 2, dtype=dtype))
    assert x_t.dtype == dtype
    assert x_t.shape == x.shape
