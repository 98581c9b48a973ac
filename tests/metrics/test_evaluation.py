"""The loop that scores images: the cache of references, other people's metrics, what is held in memory, processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import (
    KID,
    ClassCoverage,
    FrechetDistance,
    InceptionScore,
    NearestNeighbours,
    PrecisionRecall,
)
from diffusion_lightning.metrics.evaluation import Evaluation, fingerprint

from ..support.rows import rows


class Counting(DigitsNet):
    """Counts the images that it sees."""

    seen = 0

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        type(self).seen += len(images)
        return super().classify(images)


def digits(split: str) -> Tensor:
    return images.to_uint8(Digits().reference(split)[:])


def values(metrics: list[Metric], fake: Tensor, real: Tensor | None, cache: Path | None = None) -> dict[str, float]:
    found = Evaluation(metrics, real, batch_size=64, cache=cache).score(fake)
    return {key: float(value) for key, value in found.items()}


def test_a_network_is_asked_once_and_the_real_images_once_for_all_runs(tmp_path: Path) -> None:
    """However many metrics, one pass; and none of the real images where the cache has what was made of them."""

    def metrics() -> list[Metric]:
        return [FrechetDistance(Counting()), PrecisionRecall(Counting()), KID(Counting(), subsets=3, subset_size=99),
                ClassCoverage(Counting()), InceptionScore(Counting())]  # fmt: skip

    held, train = digits("val"), digits("train")
    Counting.seen = 0
    first = values(metrics(), held, train, tmp_path)
    assert Counting.seen == 297 + 1500
    assert [p.name.split("-")[:3] for p in sorted(tmp_path.iterdir())] == [
        [kind, "digits", "1x8x8"] for kind in ("classes", "features", "moments")
    ]
    Counting.seen = 0
    assert values(metrics(), held, train, tmp_path) == first
    assert Counting.seen == 297
    Counting.seen = 0
    other = values(metrics(), held, train[:-1], tmp_path)  # another set
    assert Counting.seen == 297 + 1499
    assert other != first
    changed = Counting()
    changed.conv1.weight.data[0, 0, 0, 0] += 1e-3
    assert fingerprint(changed) != fingerprint(Counting())  # another network
    Counting.seen = 0
    values([FrechetDistance(changed)], held, train, tmp_path)
    assert Counting.seen == 297 + 1500


def test_a_cache_that_cannot_be_written_costs_no_value(tmp_path: Path) -> None:
    held, train = digits("val"), digits("train")
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="the reference is not kept for later runs: .*file"):
        found = values([FrechetDistance(DigitsNet())], held, train, tmp_path / "file/references")
    assert found == values([FrechetDistance(DigitsNet())], held, train)


def test_too_few_real_images_are_refused_with_and_without_a_cache(tmp_path: Path) -> None:
    """At the start, where what is made of them was kept by another metric too."""
    held = digits("val")
    values([PrecisionRecall(DigitsNet())], held, held, tmp_path)
    with pytest.raises(ValueError, match="subsets of 400 images, but there are 297 real"):
        Evaluation([KID(DigitsNet(), subset_size=400)], held, cache=tmp_path).expect(500)


def test_a_reference_goes_with_its_metric() -> None:
    metric = FrechetDistance(DigitsNet())
    metric.reference = {"mu": torch.zeros(64), "sigma": torch.eye(64)}
    metric.to("meta")
    assert metric.reference["mu"].device.type == "meta"


@pytest.mark.parametrize("make", [FrechetDistance, KID, PrecisionRecall, ClassCoverage, NearestNeighbours])
def test_nothing_to_compare_with(make: type) -> None:
    metric = make(DigitsNet())
    for batch in digits("train").split(500):
        metric.update(batch, real=False)
    with pytest.raises(ValueError, match="real"):
        metric.compute()


def test_rounds_do_not_depend_on_the_rounds_before(tmp_path: Path) -> None:
    held, train = digits("val"), digits("train")
    make: list[Metric] = [
        FrechetDistance(DigitsNet()), PrecisionRecall(DigitsNet()), NearestNeighbours(DigitsNet()),
        ClassCoverage(DigitsNet()), KID(DigitsNet(), subsets=2, subset_size=99),
    ]  # fmt: skip
    evaluation = Evaluation(make, train, batch_size=64)
    found = []
    for fake in (held, train[:200], held):
        found.append({key: float(value) for key, value in evaluation.score(fake).items()})
    assert found[0] == found[2] != found[1]
    assert found[1]["copies_pixels"] == 1


class Brightness(Metric):
    """Of the generated images alone."""

    total: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        self.total += images.double().sum()
        self.n += images.numel()

    def compute(self) -> Tensor:
        return self.total / self.n


class Contrast(Brightness):
    """Of generated and real images; a pair of values."""

    def update(self, images: Tensor, real: bool) -> None:  # type: ignore[override]
        if real:
            self.n += images.numel()
        else:
            self.total += images.double().sum()

    def compute(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.total, self.n


def test_metrics_of_torchmetrics_kind() -> None:
    held, train = digits("val"), digits("train")
    found = values([Brightness(), Contrast()], held, train)
    assert found == {
        "brightness": pytest.approx(held.double().mean().item()),
        "contrast_mean": held.double().sum().item(),
        "contrast_std": train.numel(),
    }
    assert values([Brightness()], held, None) == {"brightness": found["brightness"]}


@pytest.mark.parametrize("again", [True, False])
def test_the_distance_of_torchmetrics(again: bool) -> None:
    """Over the same features, in two rounds, whether it forgets the real images in between or not."""
    held, train = digits("val"), digits("train")
    theirs = FrechetInceptionDistance(DigitsNet(), input_img_size=(1, 8, 8), reset_real_features=again)
    evaluation = Evaluation([theirs, FrechetDistance(DigitsNet()), Contrast()], train, batch_size=64)
    for fake in (train[::5], held):
        found = evaluation.score(fake)
        expected = found["frechet_inception_distance"].item()
        assert found["fd_digits"].item() == pytest.approx(expected, rel=1e-4)
        assert theirs.real_features_num_samples == 1500
        assert found["contrast_std"] == train.numel()


def held_bytes(metric: nn.Module) -> int:
    """Of all tensors that a metric holds, its network aside."""
    seen: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            seen[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            for v in value.values():
                visit(v)
        elif isinstance(value, list | tuple):
            for v in value:
                visit(v)

    visit({k: v for k, v in vars(metric).items() if k != "_modules"})
    return sum(seen.values())


@pytest.mark.slow
def test_what_metrics_hold_does_not_grow_with_the_images() -> None:
    """Sums of the one, a stated number of features of the other, whatever the number of images."""
    x = torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8)
    for make in (
        lambda: FrechetDistance(DigitsNet()),
        lambda: InceptionScore(DigitsNet()),
        lambda: ClassCoverage(DigitsNet()),
        lambda: KID(DigitsNet(), subset_size=50, kept=300),
        lambda: PrecisionRecall(DigitsNet(), kept=300),
        lambda: NearestNeighbours(DigitsNet(), kept=300),
    ):
        found = []
        for n in (2000, 8000):
            metric = make()
            metric.expect(n, n)
            for k in range(n // 500):
                metric.update(x, real=False, index=torch.arange(500 * k, 500 * k + 500))
            if isinstance(metric, NearestNeighbours):
                metric.exchange()
            for k in range(n // 500 if metric.compares else 0):
                metric.update(x, real=True, index=torch.arange(500 * k, 500 * k + 500))
            found.append(held_bytes(metric))
        assert found[1] <= 1.02 * found[0], metric
        assert found[0] > 0


@pytest.mark.slow
def test_fifty_thousand_features_never_exist_at_once() -> None:
    """The distance of 50,000 images in 2,048 features adds less to the process than these features would."""
    code = """
import resource, torch
from diffusion_lightning.metrics import FrechetDistance
class Features(torch.nn.Module):
    num_features = 2048
    def forward(self, x):
        return torch.randn(len(x), 2048)
metric = FrechetDistance(Features())
metric.reference = {"mu": torch.zeros(2048).double(), "sigma": torch.eye(2048).double()}
metric.expect(50_000, None)
x = torch.zeros(250, 1, 1, 1, dtype=torch.uint8)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
metric.update(x, real=False)
before = peak()
for _ in range(199):
    metric.update(x, real=False)
print(peak() - before, float(metric.compute()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    growth, distance = map(float, done.stdout.split())
    assert growth < 0.25 * 50_000 * 2048 * 4
    assert distance == pytest.approx((2048**2 + 4 * 2048) / 4 / 50_000, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test"])
def test_one_two_and_four_processes_give_the_same_values(run: Path, tmp_path: Path, command: str) -> None:
    """All metrics of the digits config, KID and the Inception Score; with fewer blocks than processes in validation."""
    ckpt = str(run / "checkpoints/last.ckpt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["metrics"]["init_args"]["metrics"] += [
        {"class_path": "diffusion_lightning.metrics.KID", "init_args": {"subsets": 5, "subset_size": 50}},
        {"class_path": "diffusion_lightning.metrics.InceptionScore", "init_args": {"splits": 3}},
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    found = {}
    for n in (1, 2, 4):
        root = tmp_path / str(n)
        words = [command, "--config", str(tmp_path / "config.yaml"), "--ckpt_path", ckpt, "--trainer.logger", "false",
                 "--trainer.default_root_dir", str(root), "--trainer.devices", str(n),
                 *(["--trainer.strategy", "ddp"] if n > 1 else [])]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIFFUSION_LIGHTNING_CACHE": str(root / "cache")}
        subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *words], check=True, capture_output=True, env=environment
        )
        found[n] = rows(root / f"{command}.csv")[-1]
    keys = [key for key in found[1] if key != "step" and not key.startswith("cost/")]
    expected = {
        "loss", "fd_digits", "kid_digits_mean", "kid_digits_std", "is_digits_mean", "is_digits_std",
        "precision_digits", "recall_digits", "class_coverage_digits", "class_evenness_digits", "class_overlap_digits",
        "copies_features_digits", "copies_pixels", "nearest_features_digits", "nearest_pixels",
    }  # fmt: skip
    if command == "test":
        expected |= {"fd_digits_error", "fd_digits_infinity", "kid_digits_error"}
    assert expected <= {key.split("/")[1] for key in keys}
    for n in (2, 4):
        for key in keys:
            tolerance = 1e-9 if key.split("/")[0] in ("val", "test") and not key.endswith("/loss") else 1e-6
            assert float(found[n][key]) == pytest.approx(float(found[1][key]), rel=tolerance), (n, key)
