"""The two recipes of latent diffusion on a folder of pictures: what they are made of, their cost, two steps of each."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import diffusion_lightning
from benchmarks import recipes
from diffusion_lightning.cli import fit, main
from diffusion_lightning.modules import Autoencoder
from diffusion_lightning.records import read
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Schedule

from ..conftest import ROOT
from ..support.pictures import noise
from ..support.rows import rows

STAGE, CONFIG = ROOT / "configs/folder_ldm_stage.yaml", ROOT / "configs/folder_ldm.yaml"
TWO_STEPS = [
    "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2",
    "--trainer.log_every_n_steps", "1", "--trainer.logger", "false", "--trainer.num_sanity_val_steps", "0",
]  # fmt: skip


def described(config: Path) -> Any:
    return yaml.safe_load(fit.described(["--config", str(config)]))


def test_the_stage_is_latent_diffusions_kl_f4() -> None:
    """Of `models/first_stage_models/kl-f4/config.yaml`: 55.3 million weights, and the weights of its loss."""
    config = described(STAGE)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    with torch.device("meta"):
        network: Any = read(model["network"], nn.Module, "network").make()
    total = sum(p.numel() for p in network.parameters())
    assert (network.factor, network.latent_channels, network.size) == (4, 3, data["size"])
    assert f"# {total:,} parameters" in STAGE.read_text(encoding="utf-8")
    given = {
        key: model[key] for key in ("kl_weight", "adversarial_weight", "features", "learn_log_var", "lr_scheduler")
    }
    assert given == {"kl_weight": 1e-6, "adversarial_weight": 0.5, "features": None, "learn_log_var": False,
                     "lr_scheduler": None}  # fmt: skip
    assert model["adversarial_from"] < config["trainer"]["max_steps"]
    optimizer = model["optimizer"]["init_args"]
    assert optimizer["betas"] == [0.5, 0.9]
    assert optimizer["lr"] == pytest.approx(4.5e-6 * data["batch_size"])


def test_the_model_fits_the_stage() -> None:
    stage, config = described(STAGE), described(CONFIG)
    model, source = config["model"]["init_args"], config["data"]["init_args"]["source"]["init_args"]
    assert model["first_stage"]["init_args"]["model"] == stage["trainer"]["default_root_dir"]
    network, encoder = model["network"]["init_args"], stage["model"]["init_args"]["network"]["init_args"]
    assert network["in_channels"] == encoder["latent_channels"]
    assert network["size"] * 2 ** (len(encoder["multipliers"]) - 1) == source["size"] == encoder["size"]
    schedule = read(model["schedule"], Schedule, "schedule").make()
    root = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64)
    torch.testing.assert_close(1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1], root**2)
    for part in ("grid", "chain"):
        assert config[part]["init_args"]["sampler"]["init_args"]["clip"] is None


def stated(config: Path) -> list[float]:
    """PFLOP of a recipe's head, and the hours that they are."""
    head = " ".join(line.removeprefix("# ") for line in config.read_text(encoding="utf-8").splitlines())
    found = re.search(r"It is (\d+) PFLOP, ([\d.]+) hours at 10 TFLOP/s", head)
    assert found
    return [float(number) for number in found.groups()]


@pytest.mark.slow
def test_their_costs_are_those_of_their_heads() -> None:
    """Hours of 36 PFLOP each; the stage's discriminator is left out, as its head says."""
    _, _, parameters, _, training, *_ = (cell.strip() for cell in recipes.row(CONFIG).split("|"))
    assert f"# {parameters} parameters" in CONFIG.read_text(encoding="utf-8")
    config = described(STAGE)
    model: Any = read(config["model"], Autoencoder, "model").make()
    work = 3 * model.operations() * config["data"]["init_args"]["batch_size"] * config["trainer"]["max_steps"] / 1e15
    for recipe, pflop in ((CONFIG, float(training)), (STAGE, work)):
        assert stated(recipe) == pytest.approx([pflop, pflop / 36], rel=0.01)


@pytest.mark.slow
def test_two_steps_of_the_stage_then_two_on_its_latents(tmp_path: Path, two_threads: None) -> None:
    """Of pictures of several sizes, one of them cut short; the discriminator takes part in the second step."""
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(noise(20 + i, 18, 3, seed=i)).save(tmp_path / f"pictures/{i}.png")
    cut = (tmp_path / "pictures/3.png").read_bytes()
    (tmp_path / "pictures/broken.png").write_bytes(cut[: len(cut) // 2])
    stage, network, data = tmp_path / "stage", "--model.init_args.network.init_args.", "--data.init_args."
    main(["fit", "--config", str(STAGE), *TWO_STEPS, "--trainer.default_root_dir", str(stage),
          f"{network}size", "16", f"{network}channels", "4", f"{network}blocks", "1", f"{network}groups", "2",
          "--model.init_args.discriminator.init_args.layers", "1", "--model.init_args.adversarial_from", "1",
          "--model.init_args.discriminator.init_args.channels", "8", f"{data}path", str(tmp_path / "pictures"),
          f"{data}size", "16", f"{data}batch_size", "4", f"{data}held_out", "3"])  # fmt: skip
    found = rows(stage / "metrics.csv")
    assert {"val/loss", "val/psnr", "val/latent_std_2"} <= found[-1].keys()
    assert any(row.get("train/adaptive_weight") for row in found)
    main(["fit", "--config", str(CONFIG), *TWO_STEPS, "--trainer.default_root_dir", str(tmp_path / "run"),
          "--model.init_args.first_stage.init_args.model", str(stage), f"{network}size", "4",
          f"{network}channels", "8", f"{network}groups", "4", f"{network}multipliers", "[1, 2]",
          f"{network}attention", "[2]", f"{network}head_channels", "8", "--grid.n", "2",
          "--grid.sampler.init_args.steps", "2", "--chain.n", "1", "--chain.sampler.init_args.steps", "2",
          *(word.replace(data, f"{data}source.init_args.") for word in
            (f"{data}path", str(tmp_path / "pictures"), f"{data}size", "16", f"{data}batch_size", "4",
             f"{data}held_out", "3"))])  # fmt: skip
    assert float(rows(tmp_path / "run/metrics.csv")[-1]["val/loss"]) > 0
    assert (tmp_path / "run/samples/step=2.png").exists()
    model: Any = diffusion_lightning.load(tmp_path / "run")
    assert (model.shape, model.latent_shape, model.first_stage.measures) == ((3, 16, 16), (3, 4, 4), False)
    assert model.generate(2, DDIM(2, clip=None)).shape == (2, 3, 16, 16)
