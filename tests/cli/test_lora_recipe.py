"""The recipe that fine-tunes Stable Diffusion by LoRA: what it is made of, and from a pipeline to a pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn

from diffusion_lightning import checkpoints, load, random
from diffusion_lightning.cli import fit, main
from diffusion_lightning.modules import LoRA
from diffusion_lightning.records import read
from diffusion_lightning.samplers import DDIM, Leading
from diffusion_lightning.schedules import ScaledLinear

from ..conftest import ROOT
from ..support.pipelines import LENGTH, UNET, stable_diffusion

CONFIG = ROOT / "configs/stable_diffusion_lora.yaml"


@pytest.mark.slow
def test_the_recipe_is_of_stable_diffusion() -> None:
    """Of its full size, without memory: the parameters that are published, and those of diffusers' own recipe."""
    config = yaml.safe_load(fit.described(["--config", str(CONFIG)]))
    model = config["model"]["init_args"]
    with torch.device("meta"):
        network = read(model["network"], nn.Module, "network").make()
        assert sum(p.numel() for p in network.parameters()) == 859_520_964
        lora = read(config["lora"], LoRA, "lora").make()
        lora.alpha = torch.tensor(4.0, device="cpu")
        lora.join(network, network)
    assert model["lora"] == config["lora"]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert f"{trained:,} numbers are trained" in CONFIG.read_text(encoding="utf-8")
    assert {name.rpartition(".lora_")[0].partition("attn")[2][2:] for name, p in network.named_parameters()
            if p.requires_grad} == {"to_q", "to_k", "to_v", "to_out.0"}  # fmt: skip
    optimizer = model["optimizer"]
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (1e-4, 0.01)
    schedule = read(model["schedule"], ScaledLinear, "schedule").make()
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    torch.testing.assert_close(1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1], root**2)
    assert config["trainer"]["gradient_clip_val"] == 1.0


@pytest.mark.slow
def test_from_a_pipeline_by_two_steps_to_a_pipeline(tmp_path: Path) -> None:
    """Imported, trained, exported, and loaded by diffusers: the same images to one grey level."""
    source = tmp_path / "sd"
    published: Any = stable_diffusion(source)
    main(["import", str(source), str(tmp_path / "sd.ckpt")])
    draw = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 18, 3), np.uint8)).save(tmp_path / f"data/{i}.png")
        (tmp_path / f"data/{i}.txt").write_text("a grey cat", encoding="utf-8")
    main(
        ["fit", "--config", str(CONFIG), "--init_from", str(tmp_path / "sd.ckpt"),
         f"--model.init_args.network.init_args.config={json.dumps(UNET)}",
         f"--model.init_args.first_stage.init_args.model={source}",
         f"--model.init_args.conditioner.init_args.model={source}",
         f"--model.init_args.conditioner.init_args.length={LENGTH}", "--model.init_args.optimizer.init_args.lr=0.1",
         "--lora.alpha=10", f"--data.init_args.path={tmp_path / 'data'}", "--data.init_args.size=16",
         "--data.init_args.num_workers=0", "--grid.n=2", "--grid.sampler.init_args.steps=2",
         f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
         "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.logger=false",
         "--trainer.num_sanity_val_steps=0"]
    )  # fmt: skip
    held = checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")
    assert sorted(held["frozen"]) == ["conditioner", "first_stage", "lora"]
    assert not any("base_layer" in name or "conv_in" in name for name in held["state_dict"])
    main(["export", str(tmp_path / "run"), str(tmp_path / "adapters"), "--format", "lora"])
    main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--format", "pipeline"])

    model = load(tmp_path / "run")
    sampler = DDIM(20, clip=None, spacing=Leading(1, 1))
    seeds = random.seeds(0, "sample", torch.arange(2))
    x_T = random.normal(model.latent_shape, seeds, "x_T", model.schedule.T, torch.zeros_like(seeds))
    captions = ["a grey cat", "dog"]
    ours = (model.generate(2, sampler, captions, 7.5) + 1) / 2

    def theirs(pipeline: Any) -> torch.Tensor:
        return pipeline(captions, latents=x_T, num_inference_steps=20, guidance_scale=7.5, output_type="pt").images

    before = theirs(published)
    published.load_lora_weights(tmp_path / "adapters")
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", safety_checker=None)
    for pipeline in (published, merged):
        assert (theirs(pipeline) - ours).abs().max() * 255 < 1
    assert (before - ours).abs().max() * 255 > 3
