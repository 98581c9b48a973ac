"""Where the callbacks of one run meet."""

from pathlib import Path

from lightning.pytorch import Trainer


def checkpoints_folder(trainer: Trainer) -> Path:
    """`checkpoints/` in the run's folder."""
    return Path(trainer.default_root_dir) / "checkpoints"
