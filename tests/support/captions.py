"""A small set of captioned images, and the config of a small model of them."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diffusion_lightning.conditioning import TextEncoder
from diffusion_lightning.data.base import Images
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Linear

from ..conftest import small_config

SAID = [f"a {name} image, lighter {where}" for name in ("dark", "grey", "light") for where in ("above", "below")]


class Shades(Images):
    """Plain images of three shades, with noise; the caption says which, and where it is lighter."""

    shape = (1, 8, 8)
    captions: list[str] | None = SAID

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        n = 96 if split == "train" else 12
        y = torch.arange(n) % 6
        noise = torch.randint(0, 30, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n))
        above = torch.arange(8)[None, None, :, None] < 4
        lighter = above == (y % 2 == 0)[:, None, None, None]
        return ((y // 2 * 90)[:, None, None, None] + noise + 40 * lighter).to(torch.uint8), y


def with_captions(folder: Path, **changes: Any) -> Path:
    """A run's config: a small U-Net over tokens, `Shades`, and words learned of its captions."""
    config = yaml.safe_load(small_config(folder, **changes).read_text())
    arguments = config["model"]["init_args"]
    arguments["network"]["init_args"] |= {"token_width": 16, "cross_attention": [4]}
    arguments["conditioner"] = {"class_path": "TextEncoder", "init_args": {"words": 20, "length": 8, "layers": 1}}
    config["data"] = {"class_path": "tests.support.captions.Shades", "init_args": {"batch_size": 8}}
    (folder / "captions.yaml").write_text(yaml.safe_dump(config))
    return folder / "captions.yaml"


def text_model(shape: tuple[int, int, int]) -> Diffusion:
    """A small untrained U-Net that attends to words."""
    network = UNet(
        shape[0], shape[1], channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, dropout=0.0,
        token_width=16, cross_attention=(shape[1] // 2,)
    )  # fmt: skip
    made = Diffusion(network, Linear(20), conditioner=TextEncoder(words=20, length=10, layers=1))
    made.conditioner.learn(SAID)
    return made.eval()
