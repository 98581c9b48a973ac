"""A small class-conditional model and its config."""

from pathlib import Path
from typing import Any

import torch
import yaml

from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.schedules import Linear

from ..conftest import small_config, tiny_unet


def conditional(dropout: float = 0.1) -> Diffusion:
    model = Diffusion(tiny_unet(), Linear(20), (1, 8, 8), conditioner=ClassLabels(3, 32, dropout, std=1.0))
    for p in model.denoiser.network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def with_classes(folder: Path, **changes: Any) -> Path:
    config = yaml.safe_load(small_config(folder, **changes).read_text())
    config["model"]["init_args"]["conditioner"] = {
        "class_path": "ClassLabels",
        "init_args": {"classes": 10, "width": 32},
    }
    (folder / "classes.yaml").write_text(yaml.safe_dump(config))
    return folder / "classes.yaml"
