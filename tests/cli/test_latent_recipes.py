"""The recipe of DiT over an autoencoder's latents: what it is made of, and two steps of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

import diffusion_lightning
from benchmarks import recipes
from diffusion_lightning.cli import fit, main
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.records import read
from diffusion_lightning.samplers import Ancestral
from diffusion_lightning.schedules import Schedule

from ..conftest import ROOT
from ..support.rows import rows

CONFIG = ROOT / "configs/imagenet256_dit_xl2.yaml"
STAGE = "stabilityai/sd-vae-ft-ema"
TINY = {"size": 4, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """An autoencoder of Stable Diffusion's layout, eight pixels a latent's one, with hardly any weights."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
    ).save_pretrained(tmp_path / "stage")  # fmt: skip
    return tmp_path / "stage"


def test_the_recipe_of_dit_is_its_papers(stage: Path) -> None:
    config = yaml.safe_load(fit.described(["--config", str(CONFIG)]))
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model["first_stage"]["init_args"]["model"] == STAGE
    assert model["first_stage"]["init_args"]["scale"] == 0.18215
    with torch.device("meta"):
        made = {name: read(model[name], nn.Module, name).make() for name in ("network", "conditioner")}
        made["conditioner"].join(made["network"])
    total = sum(p.numel() for module in made.values() for p in module.parameters())
    assert total == 675_129_632 - 256 * 1152  # the released code counts its fixed positions
    assert (made["conditioner"].classes, made["conditioner"].dropout) == (1000, 0.1)
    assert model["network"]["init_args"]["out_channels"] == 8
    schedule = read(model["schedule"], Schedule, "schedule").make()
    beta = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    torch.testing.assert_close(beta, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    optimizer = model["optimizer"]
    assert optimizer["class_path"].endswith("AdamW")
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (1e-4, 0.0)
    assert (model["lr_scheduler"], model["parameterization"], model["vlb_weight"]) == (None, None, 0.001)
    assert (data["batch_size"], data["flip"], data["size"], data["classes"]) == (256, True, 256, True)
    ema = config["ema"].get("init_args", config["ema"])
    assert (ema["decay"], ema["warmup"]) == (0.9999, False)
    assert (trainer["max_steps"], trainer["gradient_clip_val"]) == (7_000_000, None)
    metrics = config["metrics"]["init_args"]
    assert metrics["test_n"] == 50_000
    sampler = read(metrics["test_sampler"], Ancestral, "sampler").make()
    times = sampler.times(schedule)
    assert (len(times), times[0], times[-2:], sampler.variance) == (251, 1000, [1, 0], None)
    for part in ("metrics", "grid", "chain"):
        guidance = config[part]["init_args"]["guidance"]["init_args"]
        assert (guidance["scale"], guidance["channels"]) == (1.5, 3)
        assert config[part]["init_args"]["sampler"]["init_args"]["clip"] is None
    assert sampler.clip is None


@pytest.mark.slow
def test_two_steps_of_the_recipe_of_dit(stage: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, n in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / f"data/{split}/{name}").mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 256, (40, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{split}/{name}/{i}.png")
    network = [f"--model.init_args.network.init_args.{key}={value}" for key, value in TINY.items()]
    main(
        ["fit", "--config", str(CONFIG), *network, f"--model.init_args.first_stage.init_args.model={stage}",
         "--model.init_args.conditioner.init_args.classes=2", "--model.init_args.compile=false",
         f"--data.init_args.path={tmp_path / 'data'}", "--data.init_args.size=32", "--data.init_args.batch_size=4",
         "--data.init_args.num_workers=0", "--metrics=null", "--checkpoint.monitor=val/loss", "--grid.n=2",
         "--grid.sampler.init_args.steps=2", "--chain.n=1", "--chain.sampler.init_args.steps=2",
         f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
         "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.logger=false",
         "--trainer.num_sanity_val_steps=0"]
    )  # fmt: skip
    assert float(rows(tmp_path / "run/metrics.csv")[-1]["val/loss"]) > 0
    assert (tmp_path / "run/samples/step=2.png").exists()
    model: Any = diffusion_lightning.load(tmp_path / "run")
    assert (model.shape, model.latent_shape, model.predicts_variance) == ((3, 32, 32), (4, 4, 4), True)
    assert model.class_names == ["n01440764", "n01443537"]
    images = model.generate(2, Ancestral(2, clip=None), guidance=ClassifierFree(1.5, channels=3))
    assert images.shape == (2, 3, 32, 32)


@pytest.mark.slow
def test_its_cost_is_that_of_its_head() -> None:
    """Without its first stage, of which nothing is fetched."""
    *_, training, samples, bound, _ = [cell.strip() for cell in recipes.row(CONFIG).split("|")]
    head = CONFIG.read_text(encoding="utf-8")
    assert f"It is {float(training.replace(',', '')) / 1000:,.0f} EFLOP" in head
    assert f"the samples of `test` {float(samples.replace(',', '')) / 1000:,.0f}." in head
    assert bound == "0.0"
