"""What several tests need: the exact denoiser of Gaussian data, and a small model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_lightning.denoising import Prediction
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Schedule

CONFIG = Path(__file__).parent.parent / "configs/digits.yaml"


@pytest.fixture(autouse=True)
def two_threads() -> None:
    """Workers of pytest-xdist share two cores."""
    torch.set_num_threads(2)
    torch.manual_seed(0)


def gaussian(schedule: Schedule, std: float, mean: float = 0.0):  # type: ignore[no-untyped-def]
    """The optimal denoiser of data N(mean, std²): x_0 = E[x_0 | x_t] in closed form."""

    def denoise(x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        x_0 = mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    return denoise


def tiny_unet() -> UNet:
    """A U-Net of 8×8 digits that takes milliseconds."""
    return UNet(in_channels=1, size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4, dropout=0.1)
