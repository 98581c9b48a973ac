"""The command `score`, in-process: folders, archives and statistics; equality with torch-fidelity."""

import json
import pydoc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import Tensor

from diffusion_lightning import images
from diffusion_lightning.cli import main, score
from diffusion_lightning.cli.commands import EXTRACTORS
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet, InceptionV3, MNISTNet
from diffusion_lightning.metrics import frechet_distance

from ..support.commands import fails


def save(pictures: Tensor, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(pictures):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and held-out digits as folders and archives."""
    folder, data = tmp_path_factory.mktemp("digits"), Digits()
    for split in ("train", "val"):
        pictures = images.to_uint8(data.reference(split)[:])
        save(pictures, folder / split)
        np.savez(folder / f"{split}.npz", pictures.permute(0, 2, 3, 1).numpy())
    return folder


def found(tmp_path: Path, *words: str | Path) -> dict[str, float]:
    main(["score", *map(str, words), "--json", str(tmp_path / "found.json")])
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.slow
def test_folders_archives_and_statistics_agree(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extractor = ("--extractor", "digits")
    first = found(tmp_path, digits / "val", digits / "train", *extractor, "--save", tmp_path / "train.npz",
                  "--pairs", tmp_path / "pairs.png")  # fmt: skip
    assert next(iter(first)) == "fd_digits"
    assert all(isinstance(value, float | str) for value in first.values())
    assert first["fd_digits"] == pytest.approx(0.270, abs=5e-4)
    assert 0 < first["fd_digits_error"] < 0.2
    assert first["fd_digits_samples"] == 297
    assert {"kid_digits_mean", "kid_digits_std", "precision_digits", "recall_digits", "is_digits_mean",
            "class_coverage_digits", "copies_pixels", "extractor"} <= set(first)  # fmt: skip
    assert min(Image.open(tmp_path / "pairs.png").size) > 200
    said = capsys.readouterr().out
    assert f"fd_digits                  {first['fd_digits']:.5g}" in said
    assert "(297 samples)" in said
    assert found(tmp_path, digits / "val.npz", digits / "train.npz", *extractor) == first
    by_statistics = found(tmp_path, digits / "val", tmp_path / "train.npz", *extractor)
    for key in ("fd_digits", "fd_digits_error", "is_digits_mean"):
        assert by_statistics[key] == pytest.approx(first[key], rel=1e-12)
    assert "kid_digits_mean" not in by_statistics
    found(tmp_path, digits / "train", digits / "val", *extractor, "--save", tmp_path / "val.npz")
    both = found(tmp_path, tmp_path / "val.npz", tmp_path / "train.npz", *extractor)
    assert both["fd_digits"] == pytest.approx(first["fd_digits"], rel=1e-12)
    with np.load(tmp_path / "train.npz") as file:  # what pytorch-fid and guided-diffusion's evaluator read
        features = DigitsNet()(images.to_uint8(Digits().reference("train")[:])).double().numpy()
        np.testing.assert_allclose(file["mu"], features.mean(0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), rtol=1e-6, atol=1e-9)


def test_a_reference_batch_of_guided_diffusion(digits: Path, tmp_path: Path) -> None:
    """Statistics of the whole set beside some of its images: the distance is to the ones, the rest to the others."""
    train = images.to_uint8(Digits().reference("train")[:])
    features = DigitsNet()(train).double().numpy()
    some = train[:500].permute(0, 2, 3, 1).numpy()
    spatial: dict[str, Any] = {"mu_s": np.zeros(7), "sigma_s": np.eye(7)}
    np.savez(tmp_path / "batch.npz", some, mu=features.mean(0), sigma=np.cov(features, rowvar=False), **spatial)
    np.savez(tmp_path / "some.npz", some)
    extractor = ("--extractor", "digits")
    batch, whole, part = (
        found(tmp_path, digits / "val", path, *extractor)
        for path in (tmp_path / "batch.npz", digits / "train", tmp_path / "some.npz")
    )
    assert batch["fd_digits"] == pytest.approx(whole["fd_digits"], rel=1e-6)
    assert batch["fd_digits"] != pytest.approx(part["fd_digits"], rel=1e-2)
    assert batch["recall_digits"] == part["recall_digits"]


class Corners(torch.nn.Module):
    """An extractor of one's own: four pixels."""

    name = "corners"
    num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, ::7, ::7].flatten(1).float()


def test_an_extractor_of_ones_own(digits: Path, tmp_path: Path) -> None:
    values = found(tmp_path, digits / "val", digits / "train", "--extractor", "tests.cli.test_score.Corners")
    assert next(iter(values)) == "fd_corners"
    assert "is_corners_mean" not in values
    features = [Corners()(images.to_uint8(Digits().reference(split)[:])).double() for split in ("val", "train")]
    expected = frechet_distance(*(moment for f in features for moment in (f.mean(0), f.T.cov())))
    assert values["fd_corners"] == pytest.approx(expected.item(), rel=1e-9)


def test_what_is_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = save(images.to_uint8(Digits().reference("val")[:])[:40], tmp_path / "small")
    large = save(torch.randint(0, 256, (80, 1, 16, 16), dtype=torch.uint8), tmp_path / "large")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    train, val, digits_net = str(digits / "train"), str(digits / "val"), ("--extractor", "digits")
    for words, *says in (
        ((val, str(large), *digits_net), f"{val} have shape [1, 8, 8]", f"{large} [1, 16, 16]"),
        ((str(small), train, *digits_net), "64 features, but only 40 generated images", "at least 65", "few"),
        ((val, str(small), *digits_net), "64 features, but only 40 real images"),
        ((val, str(tmp_path / "other.npz"), *digits_net), "of 3 features, but the extractor gives 64"),
        ((val, "nowhere", *digits_net), "nowhere does not exist"),
        ((val, train, "--extractor", "resnet"), "there is no extractor resnet: give inception, digits"),
        ((val, train, "--extractor", "no.such.Net"), "there is no extractor no.such.Net"),
        ((val, train, *digits_net, "--weights", "x.pth"), "leave --weights out"),
        ((val, train, *digits_net, "--precision", "bfloat16"), "leave --precision out"),
        ((val, train, "--weights", "x.pth"), "x.pth do not exist"),
        ((val, train, "--extractor", "torch.nn.Linear"), "torch.nn.Linear cannot be made without arguments"),
        ((val, train, "--extractor", "torch.float32"), "torch.float32 cannot be made"),
        ((val, train, *digits_net, "--device", "gpu"), "there is no device gpu", "--device cpu"),
        ((val, train, *digits_net, "--json", "/dev/null/x.json"), "/dev/null", "choose another place"),
        ((val,), "REFERENCE"),
        ((val, train, "--extracter", "digits"), "--extracter"),
    ):
        said = fails(capsys, "score", *words)
        for part in says:
            assert part in said, (said, part)
    marked = found(tmp_path, small, train, *digits_net, "--few")
    assert marked["fd_digits_few"] == 1
    assert "FEW" in capsys.readouterr().out


def test_short_names_are_the_metrics_own() -> None:
    kinds = {"inception": InceptionV3, "digits": DigitsNet, "mnist": MNISTNet}
    assert {name: pydoc.locate(path) for name, path in EXTRACTORS.items()} == kinds


@pytest.mark.slow
def test_two_folders_have_torch_fidelitys_values(
    tmp_path: Path,
    weights: Path,
) -> None:
    """200 colour images a side, random weights: FID, KID and IS to 1e-6, precision and recall exactly."""
    generator = torch.Generator().manual_seed(1)

    def pictures(n: int, strength: float) -> Tensor:
        """Coloured blobs on a ground, with noise."""
        y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
        place, width = torch.rand(n, 1, 1, 2, generator=generator) - 0.5, 0.1 + torch.rand(n, 1, 1, generator=generator)
        blob = (-((x - place[..., 0]) ** 2 + (y - place[..., 1]) ** 2) / width**2).exp()[:, None]
        colour, ground = (torch.rand(n, 3, 1, 1, generator=generator) for _ in range(2))
        noise = strength * torch.randn(n, 3, 32, 32, generator=generator)
        return images.to_uint8(2 * (ground + (colour - ground) * blob + noise) - 1)

    fake, real = save(pictures(200, 0.1), tmp_path / "fake"), save(pictures(200, 0.02), tmp_path / "real")
    options = ("--weights", weights, "--few", "--kid_subsets", "1", "--kid_subset_size", "200")
    ours = found(tmp_path, fake, real, *options)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(fake), input2=str(real), fid=True, kid=True, isc=True, kid_subsets=1, kid_subset_size=200,
        samples_shuffle=False, feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        cuda=False, cache=False, verbose=False,
    )  # fmt: skip
    assert theirs["frechet_inception_distance"] > 0.01
    for own, other in (
        ("fid", "frechet_inception_distance"),
        ("kid_mean", "kernel_inception_distance_mean"),
        ("is_mean", "inception_score_mean"),
        ("is_std", "inception_score_std"),
    ):
        print(own, ours[own], theirs[other])
        assert ours[own] == pytest.approx(theirs[other], rel=1e-6)
    assert ours["fid_few"] == 1

    # Precision and recall once more, in numpy, from the same network's features.
    network = InceptionV3(str(weights))
    f, g = (
        np.concatenate([network(x).double().numpy() for x in score.Folder(path)[0:200].split(64)])
        for path in (fake, real)
    )

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.stack([np.sqrt(((row - b) ** 2).sum(1)) for row in a])

    reach_f, reach_g = (np.sort(distances(x, x), axis=1)[:, 3] for x in (f, g))
    assert ours["precision"] == (distances(f, g) <= reach_g).any(1).mean()
    assert ours["recall"] == (distances(g, f) <= reach_f).any(1).mean()
