"""Where in a run's folder the callbacks write, and how a picture gets there and to the loggers."""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from ...files import write_text, written

_warned: set[Path] = set()  # folders that a warning has named


def checkpoints_folder(trainer: Trainer) -> Path:
    """`checkpoints/` in the run's folder."""
    return Path(trainer.default_root_dir) / "checkpoints"


@contextlib.contextmanager
def dispensable(file: Path) -> Iterator[None]:
    """For what is written beside the checkpoints: a full disk costs the file and a warning, once, not the training."""
    try:
        yield
    except OSError as error:
        if file.parent not in _warned:
            _warned.add(file.parent)
            rank_zero_warn(
                f"{error.filename or file}: {error.strerror or error}: it is left out and the work goes on; make room "
                "there, or allow writing there, for those to come"
            )


def save_picture(
    trainer: Trainer,
    path: str,
    sheet: Tensor,
    key: str,
    step: int,
    images: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Writes bytes (H, W, C) to `path` in the run's folder, and logs them at `step` where a logger takes pictures.

    Loggers get the `images` (B, C, H, W) of the sheet one by one where these have captions, each with its own.
    """
    picture = Image.fromarray(sheet.squeeze(-1).numpy())
    file = Path(trainer.default_root_dir) / path
    with dispensable(file), written(file) as stream:
        picture.save(stream, "PNG")
    pictures, below = [picture], [f"step {step}"]
    if captions is not None and images is not None:
        pictures = [Image.fromarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in images]
        below = list(captions)
    logger: Any
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            with dispensable(file):
                logger.log_image(key, pictures, step=step, caption=below)


def save_table(file: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV file, its head the first row, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    with dispensable(file):
        write_text(file, text.getvalue())
