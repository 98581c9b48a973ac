"""Each metric against an independent computation; the shipped classifier against the held-out digits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet, MNISTNet
from diffusion_lightning.metrics import (
    KID,
    ClassCoverage,
    FrechetDistance,
    InceptionScore,
    NearestNeighbours,
    PrecisionRecall,
    frechet_distance,
)
from diffusion_lightning.metrics.base import FeatureMetric
from diffusion_lightning.metrics.evaluation import Evaluation

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


@pytest.mark.parametrize("d", [64, pytest.param(2048, marks=pytest.mark.slow)])
def test_planted_gaussians(d: int) -> None:
    """N(0, I) against N(0.1, 4I), 64.64 in 64 dimensions; and in a turned basis with variances from 1 to 1e-12."""
    zero, eye = torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64)
    found = frechet_distance(zero, eye, zero + 0.1, 4 * eye).item()
    assert found == pytest.approx(1.01 * d, rel=1e-8)
    assert d != 64 or found == pytest.approx(64.64, abs=1e-8)
    a, b = torch.logspace(0, -12, d, dtype=F64), torch.logspace(-6, 0, d, dtype=F64)
    turn, _ = torch.linalg.qr(torch.randn(d, d, dtype=F64))
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    found = frechet_distance(zero, turn @ a.diag() @ turn.T, zero, turn @ b.diag() @ turn.T).item()
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("ranks", [(1, 1), (1, 63), (63, 64), (0, 5)])
def test_singular_gaussians_are_at_a_finite_distance(ranks: tuple[int, int]) -> None:
    """Of unequal ranks, down to a single point; and at distance 0 from themselves."""
    zero = torch.zeros(64, dtype=F64)
    factors = [torch.randn(64, rank, dtype=F64) for rank in ranks]
    a, b = (x @ x.T for x in factors)
    expected = a.trace() + b.trace() - 2 * torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    assert frechet_distance(zero, a, zero, b).item() == pytest.approx(expected.item(), rel=1e-8)
    assert 0 <= frechet_distance(zero, a, zero, a).item() < 1e-10 * (1 + a.trace().item())


def test_a_large_mean_costs_the_covariance_no_digits() -> None:
    """Features 1e6 + small: what sums of squares would lose, running scatters keep."""

    class Far(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double() / 255 + 1e6

    real, fake = (torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8) for n in (300, 200))
    metric = FrechetDistance(Far())
    for side, images_ in ((True, real), (False, fake)):
        for batch in images_.split(37):
            metric.update(batch, real=side)
    expected = with_scipy(real.flatten(1).double() / 255, fake.flatten(1).double() / 255)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_error_and_the_extrapolation_of_a_distance(shift: float) -> None:
    """Samples of N(shift, I), reference N(0, I), d = 16. The bias of the value goes with 1/n and is gone in the
    extrapolation; it is about (d² + 4d)/4n where the two are equal. The jackknife's error is the spread of the values
    over draws; where the two are equal, so that no term is linear in the samples, it is known to be larger.
    """
    n, d, draws = 400, 16, 100
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        metric = FrechetDistance(Given(d))
        metric.reference = {"mu": torch.zeros(d, dtype=F64), "sigma": torch.eye(d, dtype=F64)}
        metric.expect(n, None, uncertainty=True)
        show(metric, shift + torch.randn(n, d, dtype=F64))
        for key, value in metric.compute().items():
            found.setdefault(key, []).append(value.item())
    values, errors, infinities = (torch.tensor(found[f"fd_given{part}"]) for part in ("", "_error", "_infinity"))
    assert set(found["fd_given_samples"]) == {n}
    true, bias = d * shift**2, (d**2 + 4 * d) / (4 * n)
    if shift == 0:
        assert values.mean().item() == pytest.approx(bias, rel=0.1)
        assert 1 < (errors.mean() / values.std()).item() < 1.7
    else:
        assert (errors.square().mean().sqrt() / values.std()).item() == pytest.approx(1, abs=0.2)
    standard_error = infinities.std().item() / draws**0.5
    assert infinities.mean().item() == pytest.approx(true, abs=3 * standard_error + 0.1 * bias)
    assert values.mean().item() - true > 6 * values.std().item() / draws**0.5 > 0


class Given(nn.Module):
    """Features and logits as they are given; the images only count."""

    name = "given"

    def __init__(self, d: int, classes: int = 10) -> None:
        super().__init__()
        self.num_features, self.num_classes = d, classes
        self.features, self.logits = torch.zeros(0, d), torch.zeros(0, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.features

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.features, self.logits


def show(metric: FeatureMetric, fake: Tensor, real: Tensor | None = None, logits: bool = False) -> None:
    """Features, or logits, of both sides, in batches and each side in another order than its numbers."""
    extractor = metric.extractor
    assert isinstance(extractor, Given)
    for side, rows in ((False, fake), (True, real)):
        for index in [] if rows is None else torch.randperm(len(rows)).split(96):
            assert rows is not None
            extractor.features = torch.zeros(len(index), extractor.num_features) if logits else rows[index]
            extractor.logits = rows[index] if logits else torch.zeros(len(index), extractor.num_classes)
            metric.update(torch.zeros(len(index), 1, 4, 4, dtype=torch.uint8), real=side, index=index)


def test_kid_is_that_of_torch_fidelity() -> None:
    """The same subsets of the same features in the same arithmetic, to the last bit; in float64 to 1e-5 of it."""
    fake, real = torch.randn(300, 32), 1.1 * torch.randn(400, 32) + 0.1
    for subsets, size in ((1, 300), (20, 100)):
        expected = kid_features_to_metric(fake, real, kid_subsets=subsets, kid_subset_size=size, verbose=False)
        for precision, tolerance in (("float32", 1e-12), ("float64", 1e-5)):
            metric = KID(Given(32), subsets, size, precision=precision)  # type: ignore[arg-type]
            metric.expect(300, 400)
            show(metric, fake, real)
            found = metric.compute()
            mean, std = found["kid_given_mean"].item(), found["kid_given_std"].item()
            assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=tolerance)
            assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=10 * tolerance, abs=1e-12)
        assert ("kid_given_error" in found) == (subsets == 20)
        if subsets == 20:  # three disjoint subsets of 100 out of 300
            assert found["kid_given_error"].item() == pytest.approx(std * (20 / 19) ** 0.5 / 3**0.5)


def test_kid_of_one_distribution_is_zero_on_the_average() -> None:
    values = []
    for _ in range(40):
        metric = KID(Given(8), subsets=1, subset_size=100, precision="float64")
        show(metric, torch.randn(100, 8), torch.randn(100, 8))
        values.append(metric.compute()["kid_given_mean"])
    found = torch.stack(values)
    assert abs(found.mean()) < 3 * found.std() / len(values) ** 0.5
    assert found.min() < 0


def test_the_inception_score_is_that_of_torch_fidelity() -> None:
    logits = 3 * torch.randn(205, 10)
    metric = InceptionScore(Given(4))
    metric.expect(205, None)
    show(metric, logits, logits=True)
    found, expected = metric.compute(), isc_features_to_metric(logits, splits=10, shuffle=False)
    assert found["is_given_mean"].item() == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found["is_given_std"].item() == pytest.approx(expected["inception_score_std"], rel=1e-12)


def test_precision_and_recall_by_numpy_exactly() -> None:
    """Against all pairs in numpy, with duplicates and ties among whole numbers."""
    generator = np.random.default_rng(0)
    for whole in (True, False):
        fake, real = generator.normal(size=(150, 6)), 1.3 * generator.normal(size=(180, 6))
        if whole:
            fake, real = np.round(2 * fake), np.round(2 * real)
        fake[10] = fake[11] = real[5]

        def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))

        def covered(of: np.ndarray, by: np.ndarray) -> float:
            reach = np.sort(distances(by, by), axis=1)[:, 3]
            return float((distances(of, by) <= reach).any(1).mean())

        metric = PrecisionRecall(Given(6))
        show(metric, torch.from_numpy(fake), torch.from_numpy(real))
        found = metric.compute()
        assert found["precision_given"].item() == covered(fake, real)
        assert found["recall_given"].item() == covered(real, fake)
        assert 0.2 < covered(fake, real) < 1


def test_features_are_kept_up_to_the_stated_number_spread_over_the_set() -> None:
    metric = PrecisionRecall(Given(2), kept=50)
    metric.expect(400, 60)
    show(metric, torch.arange(800.0).view(400, 2), torch.arange(120.0).view(60, 2))
    fake, real = metric.fake(), metric.real()
    assert len(fake) == len(real) == 50
    assert (fake[1:, 0] > fake[:-1, 0]).all()  # in the order of the numbers
    assert 320 < fake[:, 0].mean() < 480
    assert fake[:, 0].max() > 640


def test_a_missing_class_is_seen() -> None:
    """Ten even classes; the samples have nine, one of these twice as often, and one wrong guess of the tenth."""
    real = 9 * torch.eye(10).repeat(100, 1)
    fake = 9 * torch.eye(10)[torch.cat([torch.arange(8).repeat(100), torch.full((199,), 8), torch.tensor([9])])]
    metric = ClassCoverage(Given(4))
    show(metric, fake, real, logits=True)
    found = {key.removesuffix("_given"): value.item() for key, value in metric.compute().items()}
    q = np.array([0.1] * 8 + [0.199, 0.001])
    assert found["class_coverage"] == pytest.approx(0.9)
    assert found["class_rarest"] == pytest.approx(0.01)
    assert found["class_rarest_index"] == 9
    assert found["class_evenness"] == pytest.approx(-(q * np.log(q)).sum() / np.log(10))
    assert found["class_overlap"] == pytest.approx(0.901)
    few = ClassCoverage(Given(4))
    show(few, fake[:20], real, logits=True)
    assert set(few.compute()) == {"class_evenness_given", "class_overlap_given"}


def scored(fake: Tensor, real: Tensor, *metrics: FeatureMetric) -> dict[str, float]:
    """Byte images scored by the loop that training and `score` use."""
    found = Evaluation(list(metrics), real, batch_size=50).score(fake)
    return {key: float(value) for key, value in found.items()}


def test_planted_faults_are_caught() -> None:
    """Held-out digits pass; without the nines, or with a tenth of them copied from the training set, they do not."""
    data = Digits()
    real, held, y = images.to_uint8(data.reference()[:]), images.to_uint8(data.reference("val")[:]), data.read("val")[1]
    copied = torch.cat([held[:270], real[::50][:30]])
    found = {
        name: scored(x, real, ClassCoverage(DigitsNet()), NearestNeighbours(DigitsNet()), FrechetDistance(DigitsNet()))
        for name, x in {"honest": held, "no nines": held[y != 9], "copied": copied}.items()
    }
    assert {name: f["class_coverage_digits"] for name, f in found.items()} == pytest.approx(
        {"honest": 1, "no nines": 0.9, "copied": 1}
    )
    assert found["no nines"]["class_rarest_index_digits"] == 9
    assert found["no nines"]["fd_digits"] > 1.5 * found["honest"]["fd_digits"]
    for space in ("pixels", "features_digits"):
        shares = {name: f[f"copies_{space}"] for name, f in found.items()}
        assert shares["honest"] == 0
        assert shares["copied"] == pytest.approx(0.1, abs=0.005)


def test_neighbours_by_all_pairs() -> None:
    """Distances and pictures against all pairs at once, with a training image that is there twice and is copied."""
    real, fake = (torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8) for n in (120, 40))
    real[70] = real[20]
    fake[3], fake[4] = real[20], real[50]
    metric = NearestNeighbours(Pixels(), pairs=3)
    found = scored(fake, real, metric)
    distance = (fake.flatten(1).double()[:, None] - real.flatten(1).double()).square().sum(2).sqrt().sort(1).values
    expected = (distance[:, 0] <= distance[:, 1] / 3).double().mean().item()
    assert found["copies_pixels"] == found["copies_features_pixels"] == expected == 2 / 40
    assert found["nearest_pixels"] == pytest.approx(distance[:, 0].median().item() / 4)
    assert found["nearest_features_pixels"] == pytest.approx(distance[:, 0].median().item())
    assert metric.picture is not None
    sheet = metric.picture[:, -3 * 72 - 8 :]
    for column, which in ((0, 3), (1, 4)):  # copies first
        cells = [sheet[8 + 72 * row : 72 + 72 * row, 8 + 72 * column : 72 + 72 * column] for row in range(3)]
        assert torch.equal(cells[0], images.grid(fake[which : which + 1], pad=0))
        assert torch.equal(cells[0], cells[1])
        assert torch.equal(cells[0], cells[2])


@pytest.mark.parametrize("make", [FrechetDistance, KID, PrecisionRecall, ClassCoverage])
def test_reset_forgets_the_samples_and_keeps_the_reference(make: Callable[..., FeatureMetric]) -> None:
    """Whether it was made of the real images before or not."""
    data = Digits()
    real, fake = (images.to_uint8(data.reference(split)[:]) for split in ("train", "val"))
    metric = make(DigitsNet(), **({"subset_size": 100, "subsets": 5} if make is KID else {}))
    metric.update(real, real=True)
    metric.update(real[:200], real=False)
    metric.reset()
    metric.update(fake, real=False)
    first = metric.compute()
    metric.reset()
    metric.update(fake, real=False)
    assert metric.compute() == first
    once = make(DigitsNet(), **({"subset_size": 100, "subsets": 5} if make is KID else {}))
    for x, is_real in ((real, True), (fake, False)):
        once.update(x, real=is_real)
    assert once.compute() == first


def test_float64_survives_a_cast_and_costs_a_checkpoint_nothing() -> None:
    metric = FrechetDistance(Pixels()).half()
    assert metric.real_sum.dtype == F64
    assert not metric.state_dict()


def test_what_makes_no_distance_is_refused() -> None:
    metric = FrechetDistance(Pixels())
    with pytest.raises(ValueError, match=r"torch.float32, but a metric takes bytes"):
        metric.update(torch.zeros(2, 1, 4, 4), real=True)
    metric.update(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), real=True)
    metric.update(torch.zeros(16, 1, 4, 4, dtype=torch.uint8), real=False)
    with pytest.raises(ValueError, match=r"16 features, but only 16 generated images were given.*: give at least 17"):
        metric.compute()
    with pytest.raises(ValueError, match="num_features"):
        FrechetDistance(nn.Identity())


def test_the_distance_carries_its_extractors_name() -> None:
    assert FrechetDistance(DigitsNet()).name == "fd_digits"
    assert FrechetDistance(Pixels()).name == "fd_pixels"


def test_the_shipped_classifier() -> None:
    data, net = Digits(), DigitsNet()
    x, y = data.read("val")
    guess = net.classify(images.to_uint8(data.scaled(x)))[1].argmax(1)
    assert (guess == y).double().mean() >= 0.97
    assert DigitsNet.weights().stat().st_size < 300_000
    with pytest.raises(ValueError, match=r"shape \[3, 32, 32\], but it takes bytes of shape \[1, 8, 8\]"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_the_shipped_classifier_of_mnist_reads_other_digits() -> None:
    """Those of scikit-learn, of other hands and pixels, enlarged and framed as MNIST's are; chance is 0.1."""
    x, y = Digits().read("train")
    large = torch.nn.functional.interpolate(x.float() / 16, size=(18, 18), mode="bicubic").clamp(0, 1)
    framed = (torch.nn.functional.pad(large, (5, 5, 5, 5)) * 255).round().to(torch.uint8)
    features, logits = MNISTNet().classify(framed)
    assert features.shape == (1500, MNISTNet.num_features)
    assert (logits.argmax(1) == y).double().mean() > 0.85
    with pytest.raises(ValueError, match=r"shape \[1, 8, 8\], but it takes bytes of shape \[1, 28, 28\]"):
        MNISTNet()(x)


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
