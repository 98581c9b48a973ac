"""The recipes of scenes of digits with captions: what they are made of, and two steps of each."""

from pathlib import Path
from typing import Any

import pytest

import diffusion_lightning
from diffusion_lightning.cli import main
from diffusion_lightning.networks import DiT, UNet
from diffusion_lightning.networks.base import CrossAttention

from ..conftest import ROOT
from ..support.rows import rows

PARAMETERS = {"scenes": 5_539_396, "scenes_dit": 5_336_336}
TWO_STEPS = [
    "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1",
    "--trainer.logger", "false", "--data.init_args.n", "40", "--data.init_args.held_out", "8",
    "--data.init_args.batch_size", "4", "--grid.n", "2", "--grid.sampler.init_args.steps", "2", "--chain", "null",
    "--metrics.n", "4", "--metrics.batch_size", "4", "--metrics.sampler.init_args.steps", "2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_of_scenes(name: str, tmp_path: Path, two_threads: None) -> None:
    main(["fit", "--config", str(ROOT / f"configs/{name}.yaml"), "--trainer.default_root_dir", str(tmp_path),
          *TWO_STEPS])  # fmt: skip
    row = rows(tmp_path / "metrics.csv")[-1]
    assert {"val/loss", "val/caption_match", "val/caption_match_seen"} <= row.keys()
    model: Any = diffusion_lightning.load(tmp_path)
    network, conditioner = model.denoiser.network, model.conditioner
    assert isinstance(network, UNet if name == "scenes" else DiT)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert sum(isinstance(module, CrossAttention) for module in network.modules()) >= 4
    assert (type(model.schedule).__name__, model.schedule.T) == ("Cosine", 1000)
    assert (model.shape, conditioner.words, conditioner.length, conditioner.dropout) == ((1, 32, 32), 32, 10, 0.1)
    said = "a seven to the left of a three"
    assert conditioner.texts(conditioner.raw(said, 1)) == [said]  # all words of the captions are known


@pytest.mark.slow
def test_scenes_in_latents_after_their_first_stage(tmp_path: Path, two_threads: None) -> None:
    stage, sizes = tmp_path / "stage", ["--data.init_args.n", "40", "--data.init_args.held_out", "12"]
    main(["fit", "--config", str(ROOT / "configs/latent_scenes_stage.yaml"), "--trainer.default_root_dir", str(stage),
          *TWO_STEPS[:8], *sizes, "--data.init_args.batch_size", "4"])  # fmt: skip
    assert {"val/psnr", "val/ssim", "val/latent_std_3"} <= rows(stage / "metrics.csv")[-1].keys()
    words = [word.replace("data.init_args", "data.init_args.source.init_args") for word in TWO_STEPS]
    main(["fit", "--config", str(ROOT / "configs/latent_scenes.yaml"), *words,
          "--trainer.default_root_dir", str(tmp_path / "run"),
          "--model.init_args.first_stage.init_args.model", str(stage)])  # fmt: skip
    assert {"val/loss", "val/caption_match"} <= rows(tmp_path / "run/metrics.csv")[-1].keys()
    model: Any = diffusion_lightning.load(tmp_path / "run")
    assert (model.shape, model.latent_shape) == ((1, 32, 32), (4, 8, 8))
    assert not model.first_stage.measures
    main(["predict", "--ckpt_path", str(tmp_path / "run"), "--prompt", "a six above a two", "--guidance", "3",
          "--n", "2", "--out", str(tmp_path / "drawn")])  # fmt: skip
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
