"""A run over latents at the terminal: trained, watched, evaluated, drawn, gone on with, and refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.samplers import DDIM, Ancestral

from ..conftest import DIGITS_DISTANCE
from ..support.callbacks import Album
from ..support.commands import fails
from ..support.first_stages import autoencoder, with_stage
from ..support.rows import rows

FREE = {"class_path": "DDIM", "init_args": {"steps": 3, "clip": None}}
CLIPS = {"class_path": "DDIM", "init_args": {"steps": 3}}
METRICS = {"metrics": [DIGITS_DISTANCE], "n": 66, "test_n": 66, "batch_size": 33}
TABLE = {"metrics": [DIGITS_DISTANCE], "samplers": [FREE], "steps": [2, 4], "n": 66, "batch_size": 33}
WATCHED: list[tuple[str, dict[str, Any]]] = [
    ("sample_grid.SampleGrid", {"n": 4, "seed": 5}),
    ("reverse_chain.ReverseChain", {"n": 2, "frames": 3, "seed": 5}),
    ("generative_metrics.GenerativeMetrics", METRICS),
    ("sampler_table.SamplerTable", TABLE),
]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over measured latents, whose autoencoder is gone from where it was."""
    folder = tmp_path_factory.mktemp("latent")
    autoencoder(folder / "vae")
    main(["fit", "--config", str(with_stage(folder, folder / "vae", *WATCHED, scale="measure"))])
    (folder / "logged").write_text(repr([(key, step) for key, step, _ in Album.pictures]))
    (folder / "vae").rename(folder / "gone")
    return folder


def last(folder: Path) -> Path:
    return folder / "run/checkpoints/last.ckpt"


def test_pictures_and_metrics_are_of_pixels(latent: Path) -> None:
    assert (latent / "logged").read_text() == repr([(k, s) for s in (3, 6) for k in ("samples", "reverse_chain")])
    model = diffusion_lightning.load(last(latent))
    grid = np.asarray(Image.open(latent / "run/samples/step=6.png"))
    final = model.generate(4, Ancestral(clip=None), seed=5)
    assert list(final.shape) == [4, 1, 8, 8]
    assert final.abs().max() <= 1
    assert np.array_equal(grid, images.grid(images.to_uint8(final)).squeeze(-1).numpy())
    chain = np.asarray(Image.open(latent / "run/chains/step=6.png"))
    column = images.grid(images.to_uint8(model.generate(2, seed=5)), columns=1).squeeze(-1).numpy()
    assert np.array_equal(chain[:, -column.shape[1] :], column)
    logged = [row["val/fd_digits"] for row in rows(latent / "run/metrics.csv") if row.get("val/fd_digits")]
    assert len(logged) == 2
    assert all(float(x) > 0 for x in logged)


def test_what_is_frozen_lies_once_beside_the_checkpoints(latent: Path) -> None:
    (file,) = (latent / "run/checkpoints/frozen").iterdir()
    stage = Pretrained(str(latent / "gone"), "measure")
    assert file.stem == stage.frozen.hash
    data = Digits(batch_size=32)
    data.setup("fit")
    stage.measure(data.reference("train")[:].split(100), lambda sums: sums)
    for path in (latent / "run/checkpoints").glob("*.ckpt"):
        kept = read(path)
        assert kept["frozen"] == {"first_stage": file.stem}
        names = {name for name in kept["state_dict"] if name.startswith("first_stage")}
        assert names == {"first_stage.scale", "first_stage.shift"}
        torch.testing.assert_close(kept["state_dict"]["first_stage.scale"], stage.scale, rtol=1e-6, atol=0)
        assert not [name for name in kept["callbacks"]["EMA"]["average"] if "first_stage" in name]
        trained = {name for name in kept["state_dict"] if name.startswith("denoiser.network")}
        assert len(kept["optimizer_states"][0]["state"]) == len(trained)
        assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_needs_the_run_alone(latent: Path, tmp_path: Path, command: str, capsys: Any) -> None:
    main([command, "--ckpt_path", str(last(latent)), "--trainer.default_root_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "bits_per_dim" not in said
    assert not list(tmp_path.rglob("bound.*"))
    found = rows(tmp_path / f"{command}.csv")[-1]
    short = {"validate": "val", "test": "test"}[command]
    assert float(found[f"{short}/fd_digits"]) > 0
    assert float(found[f"{short}/loss"]) > 0
    assert not [name for name in found if "bits" in name]
    if command == "test":
        table = rows(tmp_path / "samplers.csv")
        assert [(row["sampler"], row["steps"]) for row in table] == [("DDIM", "2"), ("DDIM", "4")]


def test_predict_needs_the_run_alone(latent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(latent / "run/checkpoints", moved)
    words = ["predict", "--ckpt_path", str(moved / "last.ckpt"), "--n", "3"]
    main([*words, "--out", str(tmp_path / "own")])
    assert "sampler DDIM, 12 steps" in capsys.readouterr().out
    expected = diffusion_lightning.load(last(latent)).generate(3, DDIM(12, clip=None), batch_size=3)
    for i, image in enumerate(images.to_uint8(expected)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"own/{i:06d}.png")), image.squeeze().numpy())
    asked = ["--sampler", "DDIM", "--sampler.steps", "3"]
    assert "set the sampler's clip to null" in fails(capsys, *words, "--out", str(tmp_path / "x"), *asked)
    main([*words, "--out", str(tmp_path / "x"), *asked, "--sampler.clip", "null"])
    shutil.rmtree(moved / "frozen")
    said = fails(capsys, *words, "--out", str(tmp_path / "y"))
    assert "needs the frozen part of first_stage, but" in said
    assert "is missing: copy it there from the run's checkpoints/frozen" in said


def test_a_changed_file_is_refused(latent: Path, tmp_path: Path) -> None:
    shutil.copytree(latent / "run/checkpoints", tmp_path / "moved")
    (file,) = (tmp_path / "moved/frozen").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not the frozen part that its name says"):
        diffusion_lightning.load(tmp_path / "moved/last.ckpt")


QUIET = {
    "trainer__logger": False, "trainer__limit_val_batches": 0, "trainer__enable_progress_bar": False,
    "trainer__callbacks": None, "trainer__log_every_n_steps": 1,
}  # fmt: skip


def test_a_run_that_went_on_is_the_one_that_never_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, with a measured scale; a stage that changed in between is refused."""
    autoencoder(tmp_path / "vae")
    config = str(with_stage(tmp_path, tmp_path / "vae", scale="measure", **QUIET))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    main(["fit", "--config", config, "--trainer.default_root_dir", str(whole), "--trainer.max_steps", "4"])
    words = ["fit", "--config", config, "--trainer.default_root_dir", str(halves), "--trainer.max_steps"]
    main([*words, "2"])
    autoencoder(tmp_path / "vae", seed=1)
    said = fails(capsys, *words, "4", "--ckpt_path", "last")
    assert "the frozen part of first_stage is" in said
    assert "give the same source in the same precision" in said
    (file,) = (halves / "checkpoints/frozen").iterdir()
    main([*words, "4", "--ckpt_path", "last", "--model.init_args.first_stage.init_args.model", str(file)])
    one, other = (read(root / "checkpoints/last.ckpt") for root in (whole, halves))
    assert one["frozen"] == other["frozen"]
    for key in ("state_dict", "callbacks"):
        a, b = (x[key] if key == "state_dict" else x[key]["EMA"]["average"] for x in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(x, b[name]) for name, x in a.items())
    a, b = (x["optimizer_states"][0]["state"] for x in (one, other))
    assert all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])


def test_weights_are_taken_over_with_the_scale_they_were_trained_for(
    latent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the new images' own would be: it is not measured again."""
    monkeypatch.delattr(Pretrained, "measure")
    (file,) = (latent / "run/checkpoints/frozen").iterdir()
    config = str(with_stage(tmp_path, file, scale="measure", **QUIET, trainer__max_steps=1))
    main(["fit", "--config", config, "--init_from", str(last(latent))])
    found, kept = (read(x)["state_dict"]["first_stage.scale"] for x in (last(tmp_path), last(latent)))
    assert torch.equal(found, kept)
    own = yaml.safe_load(Path(config).read_text())
    stage = own["model"]["init_args"]["first_stage"]["init_args"]
    stage.update(scale=[0.1, 0.2, 0.3, 0.4], shift=[0.0, 0.0, 0.0, 0.0])
    Path(config).write_text(yaml.safe_dump(own))
    words = ["fit", "--config", config, "--init_from", str(last(latent)), "--trainer.default_root_dir"]
    said = fails(capsys, *words, str(tmp_path / "other"))
    assert "are for latents of" in said


REFUSED: dict[str, tuple[list[tuple[str, dict[str, Any]]], dict[str, Any], str]] = {
    "a grid": ([("sample_grid.SampleGrid", {"sampler": CLIPS})], {}, "set the sampler's clip to null"),
    "a chain": ([("reverse_chain.ReverseChain", {"sampler": CLIPS})], {}, "set the sampler's clip to null"),
    "metrics": (
        [("generative_metrics.GenerativeMetrics", {**METRICS, "sampler": CLIPS})], {}, "set the sampler's clip to null",
    ),
    "bits/dim": ([], {"model__init_args__vlb": "VLB"}, "leave vlb out"),
    "a scale": ([], {"scale": 0.13025}, "was published with 0.18215: leave scale out"),
    "a size": (
        [], {"model__init_args__network__init_args__size": 8}, "set the model's shape, and the network's channels",
    ),
}  # fmt: skip


BY_THE_SAMPLER_OR_THE_SCALE = ["metrics", "a scale"]  # one of either kind here, and the others slow


@pytest.mark.parametrize(
    "fault", [pytest.param(x, marks=[] if x in BY_THE_SAMPLER_OR_THE_SCALE else pytest.mark.slow) for x in REFUSED]
)
def test_what_latents_do_not_have_is_refused_before_training(fault: str, tmp_path: Path, capsys: Any) -> None:
    callbacks, given, says = REFUSED[fault]
    autoencoder(tmp_path / "vae")
    said = fails(capsys, "fit", "--config", str(with_stage(tmp_path, tmp_path / "vae", *callbacks, **given)))
    assert says in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("run/checkpoints/*.ckpt"))
