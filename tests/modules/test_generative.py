"""A module that makes images in another way than by diffusion is looked at by the same callbacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from diffusion_lightning import random
from diffusion_lightning.callbacks import (
    EMA,
    Checkpoint,
    GenerativeMetrics,
    LossByTimestep,
    ReverseChain,
    SampleGrid,
    SamplerTable,
    Throughput,
)
from diffusion_lightning.conditioning import Unconditional
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.loggers import MetricsFile
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.modules import Generative
from diffusion_lightning.samplers import DDIM


class Moments(Generative):
    """Images of independent pixels with the data's mean and deviation: no sampler, no times, no schedule."""

    shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conditioner = Unconditional()
        self.mean, self.log_std = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(64))

    def draw(self, seeds: Tensor, *given: Any) -> Tensor:
        z = random.normal((64,), seeds, "z", 0, torch.zeros_like(seeds))
        return (self.mean + self.log_std.exp() * z.float()).view(-1, *self.shape)

    def check(self, sampler: Any, guidance: Any = None) -> None: ...

    def angles(self, sampler: Any) -> dict[int, float]:
        raise ValueError("Moments has no way from noise to image: leave the chain out")

    def operations(self) -> int:
        return 2 * 64

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = (batch[0].flatten(1) - self.mean) / self.log_std.exp()
        return (z.square() / 2 + self.log_std).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.1)


def trainer(folder: Path, *callbacks: Any) -> Trainer:
    return Trainer(
        max_steps=12, default_root_dir=folder, callbacks=list(callbacks), logger=MetricsFile(folder / "metrics.csv"),
        accelerator="cpu", val_check_interval=6, check_val_every_n_epoch=None, log_every_n_steps=3,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def test_it_trains_with_averages_checkpoints_pictures_metrics_and_throughput(tmp_path: Path) -> None:
    metrics = GenerativeMetrics([FrechetDistance(DigitsNet())], n=128, batch_size=64)
    chosen = [EMA(0.9), SampleGrid(9), metrics, Throughput(1e9), Checkpoint(4, monitor="val/fd_digits")]
    module = Moments()
    trainer(tmp_path, *chosen).fit(module, datamodule=Digits(batch_size=256))
    assert module.steps_done == 12
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"step=6.png", "step=12.png"}
    assert {"last.ckpt", "best.ckpt"} <= {p.name for p in (tmp_path / "checkpoints").iterdir()}
    text = (tmp_path / "metrics.csv").read_text(encoding="utf-8")
    for key in ("val/loss", "val/fd_digits", "throughput/images_per_sec", "throughput/mfu"):
        assert key in text.splitlines()[0]
    # Sample number i does not depend on how many are asked for.
    assert torch.equal(module.generate(9, first=4), module.generate(20)[4:13])


CHAIN = ReverseChain(sampler=DDIM(4))
TABLE = SamplerTable([FrechetDistance(DigitsNet())], [DDIM()], [2])


@pytest.mark.parametrize(
    ("callback", "says"),
    [(CHAIN, "Moments has no way from noise to image"), (LossByTimestep(), "those of Moments have none: leave")],
    ids=["ReverseChain", "LossByTimestep"],
)
def test_what_it_has_not_is_said_before_training(callback: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path, callback).fit(Moments(), datamodule=Digits())


class Classifier(LightningModule):
    """Makes no images."""


@pytest.mark.parametrize("callback", [SampleGrid(), CHAIN, LossByTimestep(), TABLE], ids=lambda x: type(x).__name__)
def test_a_module_that_makes_no_images_is_named(callback: Any) -> None:
    name = type(callback).__name__
    says = f"{name} needs a module that makes images, but Classifier makes none: leave {name} out"
    with pytest.raises(ValueError, match=says):
        callback.setup(None, Classifier(), "test")
