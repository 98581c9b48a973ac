"""Samples as picture files, one a number."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from .. import images
from ..files import write_text
from ..images import write_grid, write_npz, write_png


class SampleWriter(BasePredictionWriter):
    """Writes the samples of `predict` as `000000.png`, `000001.png`, …, named by their numbers, whole or not at all.

    Pictures that are there already stay as they are.

    Args:
        out: folder, made if it is missing.
        origin: how the samples are made, written into every picture.
        archive: one file for all pictures of the folder, which go into it at the end: an `.npz`, or a picture of them
            side by side; None is none.
        prompt: of each number, the caption that the sample was made for, or None. It is written into the picture, and
            into `captions.jsonl`, a line `{"file_name": …, "text": …}` for each picture of the folder.
    """

    def __init__(
        self,
        out: str | Path,
        origin: dict[str, Any] | None = None,
        archive: Path | None = None,
        prompt: Callable[[int], str | None] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.out, self.origin, self.archive, self.prompt = Path(out), origin or {}, archive, prompt or (lambda i: None)

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
            path = self.out / f"{number:06d}.png"
            if not path.exists():
                prompt = self.prompt(number)
                write_png(image, path, self.origin if prompt is None else self.origin | {"prompt": prompt})

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.strategy.barrier()  # all processes have written
        if trainer.is_global_zero:
            self.finish()

    def finish(self) -> None:
        """Puts the folder's pictures into the archive, or writes their index."""
        if self.archive is not None:
            self.pack()
        else:
            self.index()

    def index(self) -> None:
        """Writes `captions.jsonl`, if the folder's samples have captions."""
        numbered = sorted((int(file.stem), file.name) for file in self.out.glob("*.png") if file.stem.isdigit())
        lines = [{"file_name": name, "text": self.prompt(number)} for number, name in numbered]
        if lines and lines[0]["text"] is not None:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(self.out / "captions.jsonl", text)

    def pack(self) -> None:
        """Moves the folder's pictures into the archive."""
        assert self.archive is not None
        write = write_npz if self.archive.suffix == ".npz" else write_grid
        write(self.out, self.archive, self.origin)
        self.clear()

    def clear(self) -> None:
        """Removes the pictures that the archive holds, and their folder if there is nothing else in it."""
        for file in self.out.glob("*.png"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()
