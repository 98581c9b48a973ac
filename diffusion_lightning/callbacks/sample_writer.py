"""Samples as picture files, one a number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from .. import images


class SampleWriter(BasePredictionWriter):
    """Writes the samples of `predict` as `000000.png`, `000001.png`, …, named by their numbers.

    Args:
        out: folder, made where it is missing.
    """

    def __init__(self, out: str | Path) -> None:
        super().__init__(write_interval="batch")
        self.out = Path(out)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for number, image in enumerate(images.to_uint8(prediction).cpu(), start=batch["first"]):
            Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(self.out / f"{number:06d}.png")
