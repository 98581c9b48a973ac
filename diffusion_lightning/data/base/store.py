"""A file of bytes in the user's cache, made once, which every process and later run maps."""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ...files import cache_folder

Write = Callable[[IO[bytes]], dict[str, Any]]


def cached(key: str, shape: tuple[int, int, int], write: Write, memory: float) -> tuple[Tensor, dict[str, Any]]:
    """Bytes (N, C, H, W), and what was noted when they were made.

    The file is written beside its place and renamed, so that it is whole or not there, whoever else makes it meanwhile.
    Where it cannot be written the bytes are made in memory, with a warning.

    Args:
        key: the file's name, a hash of all that the bytes follow from.
        shape: (C, H, W).
        write: writes the bytes and returns notes (JSON).
        memory: up to how many GiB the file is read into memory; a larger one stays mapped.
    """
    file = cache_folder() / "pictures" / f"{key}.bytes"
    if not file.exists():
        try:
            _make(file, write)
        except OSError as error:
            rank_zero_warn(
                f"the decoded pictures are held in memory and not kept for later runs: {file}: {error.strerror}"
            )
            stream = io.BytesIO()
            notes = write(stream)
            return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).view(-1, *shape), notes
    # Mapped so that a write would stay in this process: torch asks for a writable array.
    images = torch.from_numpy(np.memmap(file, np.uint8, mode="c")).view(-1, *shape)
    in_memory = file.stat().st_size <= memory * 2**30
    return images.clone() if in_memory else images, json.loads(_notes(file).read_text())


def _make(file: Path, write: Write) -> None:
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            notes = write(stream)
        part_of_notes = part.with_suffix(".notes")
        part_of_notes.write_text(json.dumps(notes))
        os.replace(part_of_notes, _notes(file))  # first, since the other file says that both are there
        os.replace(part, file)
    finally:
        for left in (part, part.with_suffix(".notes")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _notes(file: Path) -> Path:
    return file.with_suffix(".json")
