"""The Fréchet distance against scipy, closed forms and sums; the shipped classifier against the held-out digits."""

import math
from pathlib import Path

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

import diffusion_lightning.metrics
from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.metrics import DigitsNet, FrechetDistance, frechet_distance

F64 = torch.float64


class Pixels(nn.Module):
    """The pixels themselves, as features."""

    name = "pixels"
    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()


def with_scipy(a: Tensor, b: Tensor) -> float:
    cov_a, cov_b = a.T.cov().numpy(), b.T.cov().numpy()
    root = sqrtm(cov_a @ cov_b).real
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root.trace())


@pytest.mark.parametrize("d", [1, 16, 64])
def test_closed_forms(d: int) -> None:
    """N(0, I) against N(0.1, 4I): 0.01·d + d·(2 - 1)²; commuting diagonals: ‖√Σ_1 - √Σ_2‖²."""
    zero, eye = torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64)
    assert frechet_distance(zero, eye, zero + 0.1, 4 * eye).item() == pytest.approx(1.01 * d, rel=1e-12)
    a, b = torch.rand(d, dtype=F64), torch.rand(d, dtype=F64)
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(zero, a.diag(), zero, b.diag()).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert frechet_distance(zero, a.diag(), zero, a.diag()).item() == pytest.approx(0, abs=1e-12)


def test_singular_covariances_stay_finite_and_agree_with_scipy() -> None:
    a, b = torch.randn(20, 64, dtype=F64), torch.randn(30, 64, dtype=F64) + 0.3
    found = frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert found.item() == pytest.approx(with_scipy(a, b), rel=1e-6)


def test_the_metric_agrees_with_scipy_whatever_the_batches() -> None:
    real, fake = (torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8) for n in (300, 200))
    fake = fake // 2
    expected = with_scipy(real.flatten(1).double(), fake.flatten(1).double())
    for size in (7, 64, 300):
        metric = FrechetDistance(Pixels())
        for batch in real.split(size):
            metric.update(batch, real=True)
        for batch in fake.split(size):
            metric.update(batch, real=False)
        value = metric.compute()
        assert value.dtype == F64
        assert value.item() == pytest.approx(expected, rel=1e-9)


def test_its_sums_add_up_over_ranks() -> None:
    """What torchmetrics does between processes: every state of kind "sum" is added."""
    real, fake = (torch.randint(0, 256, (100, 1, 4, 4), dtype=torch.uint8) for _ in range(2))
    whole, parts = FrechetDistance(Pixels()), [FrechetDistance(Pixels()) for _ in range(2)]
    whole.update(real, real=True)
    whole.update(fake, real=False)
    for rank, part in enumerate(parts):
        part.update(real[rank::2], real=True)
        part.update(fake[rank::2], real=False)
    assert all(reduction is torch.sum or "sum" in reduction.__name__ for reduction in whole._reductions.values())  # type: ignore[union-attr]
    for key in whole._defaults:
        setattr(parts[0], key, getattr(parts[0], key) + getattr(parts[1], key))
    assert parts[0].compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)


def test_reset_forgets_the_samples_and_keeps_the_reference() -> None:
    real, fake = (torch.randint(0, 256, (100, 1, 4, 4), dtype=torch.uint8) for _ in range(2))
    metric = FrechetDistance(Pixels())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    first = metric.compute()
    metric.reset()
    metric.update(fake, real=False)
    assert metric.compute() == first


def test_float64_survives_a_cast_and_costs_a_checkpoint_nothing() -> None:
    metric = FrechetDistance(Pixels()).half()
    assert metric.real_sum.dtype == F64
    assert not metric.state_dict()


def test_what_makes_no_distance_is_refused() -> None:
    metric = FrechetDistance(Pixels())
    with pytest.raises(ValueError, match=r"torch.float32, but a distance is measured on bytes"):
        metric.update(torch.zeros(2, 1, 4, 4), real=True)
    metric.update(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), real=True)
    metric.update(torch.zeros(16, 1, 4, 4, dtype=torch.uint8), real=False)
    with pytest.raises(ValueError, match="16 features, but only 16 generated images were given: give at least 17"):
        metric.compute()
    with pytest.raises(ValueError, match="num_features"):
        FrechetDistance(nn.Identity())


def test_the_distance_carries_its_extractors_name() -> None:
    assert FrechetDistance(DigitsNet()).name == "fd_digits"
    assert FrechetDistance(Pixels()).name == "fd_pixels"


def test_the_shipped_classifier() -> None:
    data, net = Digits(), DigitsNet()
    x, y = data.read("val")
    guess = net.logits(images.to_uint8(data.scaled(x))).argmax(1)
    assert (guess == y).double().mean() >= 0.97
    weights = Path(diffusion_lightning.metrics.__file__).with_name("digits.safetensors")
    assert weights.stat().st_size < 300_000
    with pytest.raises(ValueError, match=r"shape \[3, 32, 32\], but it knows bytes of shape \[1, 8, 8\]"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def bias(n: int, d: int, draws: int) -> tuple[float, float]:
    """Mean and spread of the distance between two samples of n from one N(0, I_d)."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        moments = []
        for _ in range(2):
            x = torch.randn(n, d, dtype=torch.float64, generator=g)
            moments += [x.mean(0), torch.cov(x.T)]
        found.append(float(frechet_distance(*moments)))
    values = torch.tensor(found, dtype=torch.float64)
    return values.mean().item(), values.std().item()


@pytest.mark.parametrize(("n", "published", "draws"), [(500, 4.65, 20), (2000, 1.07, 10), (10_000, 0.22, 5)])
def test_two_samples_of_one_distribution_are_not_at_distance_zero(n: int, published: float, draws: int) -> None:
    """D = 64: within three standard errors of one published draw; and about (d² + 4d)/2n, which falls as 1/n."""
    mean, spread = bias(n, 64, draws)
    assert abs(mean - published) < 3 * spread * math.sqrt(1 + 1 / draws) + 0.005  # a figure of three digits
    assert mean == pytest.approx((64**2 + 4 * 64) / (2 * n), rel=0.06)


@pytest.mark.slow
def test_fewer_samples_than_features_say_nothing() -> None:
    """N = 32 in 2,048 dimensions: 3,799 where the truth is 0, which is why so few are refused."""
    assert bias(32, 2048, 2)[0] == pytest.approx(3799, rel=0.005)
