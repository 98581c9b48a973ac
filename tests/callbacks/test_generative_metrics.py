"""The callback: what it refuses before training, what it logs, what it says of its cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.callbacks import GenerativeMetrics
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import KID, ClassCoverage, FrechetDistance, InceptionScore, PrecisionRecall
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM, Ancestral

from ..conftest import small_config
from ..support.callbacks import Album, metric
from ..support.commands import fails
from ..support.rows import rows


def with_metrics(folder: Path, metrics: list[Any], **arguments: Any) -> Path:
    """The small config with other metrics, and nothing else that samples but the grid."""
    path = small_config(folder, **{"trainer.logger": False})
    config = yaml.safe_load(path.read_text())
    config["chain"] = config["trainer"]["callbacks"] = None
    config["metrics"].update(metrics=metrics, **arguments)
    path.write_text(yaml.safe_dump(config))
    return path


class Smaller(Digits):
    """Its reference is of another resolution than its images."""

    def reference(self, split: str = "train") -> Tensor:  # type: ignore[override]
        return super().reference(split)[:][:, :, :4, :4]


@pytest.mark.parametrize(
    ("metrics", "arguments", "says"),
    [
        ([metric("FrechetDistance")], {"n": 64}, "64 features, but only 64 generated images"),
        ([metric("KID")], {"n": 500}, "KID draws subsets of 1000 images, but there are 500 generated"),
        ([metric("KID", subset_size=1)], {}, "2 ≤ subset_size"),
        ([metric("PrecisionRecall")], {"n": 3}, "needs at least 4 images"),
        ([metric("FrechetDistance", reference="nowhere.npz")], {}, "nowhere.npz do not exist"),
        ([metric("FrechetDistance")], {"batch_size": 0}, "batch_size is 0"),
        ([metric("FrechetDistance", reference="OTHER")], {}, "of 3 features, but the extractor gives 64"),
        ([metric("FrechetDistance", reference="LARGE")], {}, "[1, 8, 8], but those of the file of statistics have"),
        ([metric("InceptionScore", extractor={"class_path": "torch.nn.Identity"})], {}, "num_features"),
    ],
)
def test_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: list[Any], arguments: dict[str, Any], says: str
) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "large.npz", mu=np.zeros(64), sigma=np.eye(64), shape=np.array([1, 16, 16]))
    given = metrics[0]["init_args"].get("reference")
    if given in ("OTHER", "LARGE"):
        metrics[0]["init_args"]["reference"] = str(tmp_path / f"{given.lower()}.npz")
    assert says in fails(capsys, "fit", "--config", str(with_metrics(tmp_path, metrics, **arguments)))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_reference_of_another_resolution_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_metrics(tmp_path, [metric("FrechetDistance")])
    said = fails(capsys, "fit", "--config", str(config), "--data", "tests.callbacks.test_generative_metrics.Smaller")
    assert "[1, 8, 8], but those of its reference('train') have [1, 4, 4]" in said


def test_a_test_with_too_few_samples_is_refused_when_it_starts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_metrics(tmp_path, [metric("FrechetDistance")], test_n=60)
    ckpt = str(run / "checkpoints/last.ckpt")
    said = fails(capsys, "test", "--config", str(config), "--ckpt_path", ckpt)
    assert "only 60 generated images were given" in said


def test_validation_is_fast_and_the_test_is_the_papers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N and the sampler of each; an uncertainty in the test; the value by hand, from the very samples."""
    asked: list[tuple[int, str]] = []
    generate = Diffusion.generate

    def noted(self: Diffusion, n: int, sampler: Any, **kwargs: Any) -> Tensor:
        asked.append((n, type(sampler).__name__))
        return generate(self, n, sampler, **kwargs)

    monkeypatch.setattr(Diffusion, "generate", noted)
    statistics = tmp_path / "train.npz"
    features = DigitsNet()(images.to_uint8(Digits().reference()[:])).double()
    np.savez(statistics, mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    config = with_metrics(tmp_path, [metric("FrechetDistance", reference=str(statistics))], test_n=100)
    ckpt = str(run / "checkpoints/last.ckpt")
    words = ["--config", str(config), "--ckpt_path", ckpt]
    main(["validate", *words])
    validated = rows(tmp_path / "run/validate.csv")[-1]
    assert [a for a in asked if a[0] != 4] == [(33, "DDIM")] * 2
    assert "val/fd_digits_error" not in validated
    asked.clear()
    main(["test", *words])
    tested = rows(tmp_path / "run/test.csv")[-1]
    assert [a for a in asked if a[0] != 4] == [(33, "Ancestral")] * 3 + [(1, "Ancestral")]
    assert float(tested["test/fd_digits_samples"]) == 100
    assert 0 < float(tested["test/fd_digits_error"]) < float(tested["test/fd_digits"])

    model = diffusion_lightning.load(ckpt)
    for n, sampler, found in ((66, DDIM(2), validated["val/fd_digits"]), (100, Ancestral(), tested["test/fd_digits"])):
        by_hand = FrechetDistance(DigitsNet())
        by_hand.update(images.to_uint8(Digits().reference()[:]), real=True)
        by_hand.update(images.to_uint8(model.generate(n, sampler, batch_size=33)), real=False)
        assert float(found) == pytest.approx(float(by_hand.compute()), rel=1e-6)


@pytest.mark.slow
def test_it_says_what_it_costs_and_shows_the_closest_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_metrics(tmp_path, [metric("FrechetDistance"), metric("NearestNeighbours")])
    main(["fit", "--config", str(config), "--trainer.logger", "tests.support.callbacks.Album"])
    shown = [(key, step) for key, step, _ in Album.pictures if key == "closest_pairs"]
    assert shown == [("closest_pairs", 3), ("closest_pairs", 6)]
    said = [line for line in capsys.readouterr().err.splitlines() if "evaluation of 66 samples" in line]
    assert len(said) == 1
    for part in ("s sampling", "s scoring", "s of training before each", "% of the run's time"):
        assert part in said[0]
    found = rows(tmp_path / "run/metrics.csv")[-1]
    assert float(found["cost/sampling_seconds"]) > 0
    assert float(found["cost/scoring_seconds"]) > 0
    assert 0 <= float(found["val/copies_pixels"]) <= 1
    assert min(Image.open(tmp_path / "run/closest_pairs.png").size) > 200


def test_metrics_without_an_extractor_have_the_first_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = [FrechetDistance(DigitsNet()), PrecisionRecall(), ClassCoverage(), InceptionScore(), KID()]
    GenerativeMetrics([first, *others])
    assert {metric.suffix for metric in others} == {"_digits"}
    assert len({id(metric.extractor) for metric in (first, *others)}) == 1
    config = with_metrics(tmp_path, [{"class_path": "diffusion_lightning.metrics.FrechetDistance"}])
    assert "FrechetDistance is the first of the metrics and has no extractor" in fails(
        capsys, "fit", "--config", str(config)
    )
