"""Where in a run's folder the callbacks write, and how a picture gets there and to the loggers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor


def checkpoints_folder(trainer: Trainer) -> Path:
    """`checkpoints/` in the run's folder."""
    return Path(trainer.default_root_dir) / "checkpoints"


def save_picture(trainer: Trainer, path: str, sheet: Tensor, key: str, step: int) -> None:
    """Writes bytes (H, W, C) to `path` in the run's folder, and logs them at `step` where a logger takes pictures."""
    file = Path(trainer.default_root_dir) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(sheet.squeeze(-1).numpy())
    picture.save(file)
    logger: Any
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key, [picture], step=step, caption=[f"step {step}"])
