"""The variational bound, against numbers worked out in float64 without the package."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from diffusion_lightning.denoising import Epsilon, Prediction, log_variance
from diffusion_lightning.likelihood import VLB, bits_per_dim, decoder, kl, prior
from diffusion_lightning.random import Draw
from diffusion_lightning.schedules import Cosine, Linear, Schedule, ZeroTerminalSNR

from .conftest import of_length

F64 = torch.float64


def pixel(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=F64).reshape(-1, 1, 1, 1)


def test_the_prior_of_the_linear_schedule() -> None:
    """Published figures, in bits/dim; float32 would give 0 for the first."""
    found = bits_per_dim(prior(Linear(), pixel(torch.tensor([0.0, 1.0, -1.0]))), 1)
    assert found[0].item() == pytest.approx(5.875e-10, rel=1e-4)
    assert found[1].item() == pytest.approx(2.911295e-05, rel=1e-6)
    assert found[1] == found[2]
    assert prior(ZeroTerminalSNR(Linear()), pixel(0.7)) == 0
    assert prior(Linear(), pixel(1.0).float()).item() == pytest.approx(2.911295e-05 * math.log(2), rel=1e-6)


def gaussian_error(schedule: Schedule, t: Tensor, std: float) -> Tensor:
    """√Var[x_0 | x_t] of data N(0, std²): KL is quadratic in the error of x_0, so this one gives its expectation."""
    alpha_bar = schedule.alpha_bar[t]
    return (std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)).sqrt()


def optimal_share(schedule: Schedule, t: Tensor, std: float) -> Tensor:
    """The m of the best variance of a reverse step, that of q(x_s | x_t) for data N(0, std²)."""
    s = t - 1
    small, large = schedule.posterior_variance(t, s), schedule.beta(t, s)
    share = schedule.alpha_bar[s].sqrt() * large / (1 - schedule.alpha_bar[t])
    best = small + (share * gaussian_error(schedule, t, std)) ** 2
    return (best / small).log() / (large / small).log()


@pytest.mark.parametrize(
    ("variance", "expected"), [("small", 6.302436876), ("large", 5.645641042), ("optimal", 5.644065283)]
)
def test_the_sum_of_kl_terms_of_gaussian_data(variance: str, expected: float) -> None:
    """Linear schedule, s = 0.5, the exact denoiser; bits/dim over t = 2 … T."""
    schedule, t = Linear(), torch.arange(2, 1001)
    m = pixel(optimal_share(schedule, t, 0.5)) if variance == "optimal" else float(variance == "large")
    error = pixel(gaussian_error(schedule, t, 0.5))
    terms = kl(schedule, error, t, Prediction(torch.zeros_like(error), error), m)
    assert bits_per_dim(terms, 1).sum().item() == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(T=50, beta_1=1e-3, beta_T=0.3)])
@pytest.mark.parametrize("m", [0.0, 0.4, 1.0, "learned"])
def test_kl_terms_against_numpy(schedule: Schedule, m: float | str) -> None:
    """KL of two Gaussians from the betas alone, as DDPM's tables give them, in numpy's float64."""
    beta = schedule.beta(torch.arange(1, schedule.T + 1), torch.arange(schedule.T)).numpy()
    alpha_bar = np.cumprod(1 - beta)
    rng, C, H = np.random.default_rng(0), 3, 4
    for t in (2, 3, 10, schedule.T // 2, schedule.T - 1, schedule.T):
        x_0, x_t, guess = rng.normal(size=(3, 1, C, H, H))
        share = rng.uniform(size=(1, C, H, H)) if isinstance(m, str) else np.full((1, C, H, H), m)
        b, at, before = beta[t - 1], alpha_bar[t - 1], alpha_bar[t - 2]
        true_variance = b * (1 - before) / (1 - at)
        mean, guessed = (
            np.sqrt(before) * b / (1 - at) * x + np.sqrt(1 - b) * (1 - before) / (1 - at) * x_t for x in (x_0, guess)
        )
        variance = np.exp(share * np.log(b) + (1 - share) * np.log(true_variance))
        expected = 0.5 * (
            np.log(variance / true_variance) - 1 + true_variance / variance + (mean - guessed) ** 2 / variance
        )
        given = torch.from_numpy(share) if isinstance(m, str) else m
        found = kl(schedule, torch.from_numpy(x_0), torch.tensor([t]), Prediction(torch.from_numpy(guess), None), given)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected.sum(), rel=1e-8)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("m", [0.0, 1.0])
@pytest.mark.parametrize("centre", [-1.2, -0.3, 0.0, 0.999])
def test_the_decoder_is_a_distribution_over_the_levels(levels: int, m: float, centre: float) -> None:
    for schedule in (Linear(), Cosine(), Linear(T=4, beta_1=0.1, beta_T=0.5)):
        x_0 = pixel(torch.linspace(-1, 1, levels, dtype=F64))
        nats = decoder(schedule, x_0, Prediction(torch.full_like(x_0, centre), x_0), m, levels)
        assert nats.isfinite().all()
        assert torch.exp(-nats).sum().item() == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("m", [0.0, 1.0])
@pytest.mark.parametrize(("value", "off"), [(0, 6.0), (0, -2.0), (127, 0.0), (200, 7.0), (131, -20.0), (255, -5.0)])
def test_the_decoder_against_an_integral(m: float, value: int, off: float) -> None:
    """The Gaussian's density integrated over a bin, the centre so many σ off the value."""
    schedule = Linear(T=100, beta_1=1e-3, beta_T=0.2)
    sigma, x = math.exp(log_variance(schedule, 1, 0, m).item() / 2), value / 127.5 - 1
    centre = x + off * sigma
    low, high = x - 1 / 255 if value else -np.inf, x + 1 / 255 if value < 255 else np.inf
    bounds = (max(low, x - 40 * sigma), min(high, x + 40 * sigma))
    expected = -math.log(integrate.quad(stats.norm(centre, sigma).pdf, *bounds, epsabs=0, epsrel=1e-12, limit=500)[0])
    found = decoder(schedule, pixel(x), Prediction(pixel(centre), pixel(0.0)), m)
    assert found.item() == pytest.approx(expected, rel=1e-8)


def test_the_decoder_where_differences_of_probabilities_are_nothing() -> None:
    """500 σ off, Φ itself is 0: against log Φ(-z) ≈ -z²/2 - log(z·√2π) - 1/z²."""
    schedule = Linear()
    sigma = math.exp(log_variance(schedule, 1, 0, 0.0).item() / 2)
    z = 500.0
    near = 200 / 127.5 - 1 + 1 / 255  # the bin's edge towards the centre; the other is further off by far
    expected = z**2 / 2 + math.log(z * math.sqrt(2 * math.pi)) + 1 / z**2
    for sign in (1, -1):
        x_0, centre = pixel(sign * (200 / 127.5 - 1)), pixel(sign * (near + z * sigma))
        assert decoder(schedule, x_0, Prediction(centre, x_0), 0.0).item() == pytest.approx(expected, rel=1e-10)


def test_terms_have_gradients_at_the_outermost_levels() -> None:
    x_0 = pixel(torch.tensor([-1.0, 1.0, 0.0, 127.5 / 127.5])).float()
    guess, mix = torch.zeros_like(x_0).requires_grad_(), torch.full_like(x_0, 0.5).requires_grad_()
    for t in (1, 2, 1000):
        VLB(clip=None).term(Linear(), x_0, torch.full((4,), t), Prediction(guess, x_0, mix)).sum().backward()
        for gradient in (guess.grad, mix.grad):
            assert gradient is not None
            assert gradient.isfinite().all()
    assert guess.grad is not None
    assert guess.grad.abs().min() > 0


def test_gradients_are_finite_at_every_time_in_float32() -> None:
    """Also where a network that knows nothing yet puts x_0 at ε/√ᾱ, 20,000 off at the cosine's T."""
    schedule, t = Cosine(), torch.arange(1, 1001)
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 1000, 1, 4, 4, generator=g).clamp(-1, 1)
    x_t = schedule.q_sample(x_0, t, eps)
    output = torch.zeros_like(x_t).requires_grad_()
    mix = torch.full_like(x_t, 0.5).requires_grad_()
    prediction = Epsilon().prediction(schedule, output, x_t, t)._replace(var_mix=mix)
    VLB(clip=None).term(schedule, x_0, t, prediction).sum().backward()
    for gradient in (output.grad, mix.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_a_term_is_the_decoder_at_one_and_a_kl_elsewhere() -> None:
    schedule, t = Linear(), torch.tensor([1, 2, 500, 1000])
    x_0 = pixel(torch.tensor([-1.0, 0.2, 0.5, 1.0]))
    prediction = Prediction(pixel(torch.tensor([-1.4, 0.1, 0.4, 3.0])), x_0, torch.full_like(x_0, 0.3))
    clipped = prediction._replace(x_0=prediction.x_0.clamp(-1, 1))
    for bound, first, rest, used in (
        (VLB(), prediction.var_mix, prediction.var_mix, clipped),
        (VLB(clip=None), prediction.var_mix, prediction.var_mix, prediction),
        (VLB(variance=1.0, decoder=0.0), 0.0, 1.0, clipped),
        (VLB(variance=0.0), 0.0, 0.0, clipped),
        (VLB(decoder=1.0), 1.0, prediction.var_mix, clipped),
    ):
        found = bound.term(schedule, x_0, t, prediction)
        assert found[0] == decoder(schedule, x_0, used, first)[0]  # type: ignore[arg-type]
        assert torch.equal(found[1:], kl(schedule, x_0, t.clamp(min=2), used, rest)[1:])  # type: ignore[arg-type]


def test_draws_measure_every_time_or_an_unbiased_share() -> None:
    schedule, sample = Linear(T=20), torch.arange(4000)
    whole = list(VLB().draws(schedule, Draw(0, "bound", 0, sample[:2])))
    assert [int(t[0]) for t, _ in whole] == list(range(1, 21))
    assert {count for _, count in whole} == {1.0}
    value = torch.linspace(0, 3, 21, dtype=F64) ** 2
    (first, one), *rest = VLB(times=5).draws(schedule, Draw(0, "bound", 0, sample))
    assert (first == 1).all()
    assert one == 1
    assert len(rest) == 5
    estimate = sum(count * value[t] for t, count in rest)
    assert isinstance(estimate, Tensor)
    assert abs(estimate.mean() - value[2:].sum()) < 3 * estimate.std() / math.sqrt(len(sample))
    assert len(list(VLB(times=100).draws(schedule, Draw(0, "bound", 0, sample[:1])))) == 20
    assert len(list(VLB().draws(Linear(T=1), Draw(0, "bound", 0, sample[:1])))) == 1


LEVELS = torch.linspace(-1, 1, 256, dtype=F64)


def rounded_gaussian() -> Tensor:
    """N(0, 0.25²) rounded to the 256 levels: the probability of each."""
    edges = torch.cat([torch.tensor([-math.inf], dtype=F64), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])])
    return torch.special.ndtr(edges / 0.25).diff()


def test_bits_of_data_whose_entropy_is_known() -> None:
    """The whole bound for the 256-level Gaussian, with the exact denoiser and the optimal variance, by quadrature.

    Never below the entropy of 7.0412 bits; within 0.05 of it with 1 - ᾱ_1 as the decoder's variance, and 0.115 off
    with β̃ of the step from 2 to 1.
    """
    schedule, p = Linear(), rounded_gaussian()
    entropy = -(p * p.log2()).sum().item()
    assert entropy == pytest.approx(7.0412, abs=5e-5)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(12))
    weights = weights / weights.sum()
    x_0 = LEVELS.repeat_interleave(len(nodes))
    joint = p.repeat_interleave(len(nodes)) * weights.repeat(256)
    total = (p * prior(schedule, pixel(LEVELS))).sum().expand(2)
    for t in range(1, schedule.T + 1):
        alpha_bar = schedule.alpha_bar[t]
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * nodes.repeat(256)
        chance = torch.softmax(p.log() - (x_t[:, None] - alpha_bar.sqrt() * LEVELS) ** 2 / (2 * (1 - alpha_bar)), 1)
        guess = chance @ LEVELS
        spread = (joint * (x_0 - guess) ** 2).sum()
        m = torch.ones((), dtype=F64)
        if t > 1:
            small, large = schedule.posterior_variance(t, t - 1), schedule.beta(t, t - 1)
            share = schedule.alpha_bar[t - 1].sqrt() * large / (1 - alpha_bar)
            m = ((small + share**2 * spread) / small).log() / (large / small).log()
        prediction = Prediction(pixel(guess), pixel(guess), m.expand(len(x_0)).reshape(-1, 1, 1, 1))
        times = torch.full((len(x_0),), t)
        terms = [VLB(decoder=first).term(schedule, pixel(x_0), times, prediction) for first in (1.0, 0.0)]
        total = total + torch.stack([(joint * term).sum() for term in terms])
    with_beta, with_replaced = bits_per_dim(total, 1).tolist()
    assert entropy <= with_beta <= entropy + 0.05
    assert with_replaced == pytest.approx(entropy + 0.115, abs=0.001)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VLB(variance=1.5), "variance is 1.5"),
        (lambda: VLB(decoder=-1), "decoder is -1"),
        (lambda: VLB(clip=0), "clip is 0"),
        (lambda: VLB(times=0), "0 are to be measured"),
    ],
)
def test_impossible_bounds_are_refused(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("make", Schedule.__subclasses__(), ids=lambda make: make.__name__)
def test_the_gradient_of_the_bound_by_the_variance_is_that_of_float64(make: type[Schedule], T: int) -> None:
    """At every t = 2 … T, near T too, where the two logarithms that m mixes differ by less than float32 can show."""
    schedule = of_length(make, T)
    t = torch.arange(2, T + 1)
    generator = torch.Generator().manual_seed(0)
    m = torch.rand(len(t), 1, 1, 1, generator=generator)
    x_0, error = (torch.randn(len(t), 1, 1, 1, generator=generator) for _ in range(2))
    error = error * pixel(gaussian_error(schedule, t, 0.5)).float()

    # ½·(log σ² - log β̃ + (β̃ + apart²)/σ²) in float64, of the same float32 numbers, and its derivative by hand.
    below, above = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    gap = pixel(torch.log1p(-below) - torch.log1p(-above))  # log β - log β̃: to the last digit however small ᾱ is
    apart = pixel(schedule.posterior_x0_coef(t, t - 1)) * (x_0.double() - (x_0 - error).double())
    spread = -0.5 * gap * torch.expm1(-m.double() * gap)
    shift = -0.5 * gap * apart**2 * torch.exp(-m.double() * gap) / pixel(schedule.posterior_variance(t, t - 1))

    m.requires_grad_()
    found = torch.autograd.grad(kl(schedule, x_0, t, Prediction(x_0 - error, error), m).sum(), m)[0]
    assert found.dtype == torch.float32
    wrong = (found.double() - spread - shift).abs() / (spread.abs() + shift.abs() + 1e-30)
    assert wrong.max() < 1e-5
