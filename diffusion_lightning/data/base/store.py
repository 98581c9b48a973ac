"""A file of bytes in the user's cache, made once, which every process and later run maps."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ...files import Hashing, cache_folder, digest_of_pieces, sweep, write_text, written

Write = Callable[[IO[bytes]], dict[str, Any]]


def cached(key: str, shape: tuple[int, int, int], write: Write, max_memory_gib: float) -> tuple[Tensor, dict[str, Any]]:
    """Bytes (N, C, H, W), and what was noted when they were made.

    The file is whole or not there, whoever else makes it meanwhile. Beside it lie its notes, with its size, shape and
    hash, all of which are checked by every process at every start, a mapped file's too: bytes that a disk lost would be
    trained on as images. What does not agree is made again, with a warning. A file of an earlier version, which has no
    hash, is made again without one. If the file cannot be written, the bytes are made in memory, with a warning.

    Args:
        key: the file's name, a hash of all that the bytes follow from.
        shape: (C, H, W).
        write: writes the bytes and returns notes (JSON).
        max_memory_gib: up to how many GiB the file is read into memory; a larger one stays mapped.
    """
    file = cache_folder() / "pictures" / f"{key}.bytes"
    sweep(file.parent, ".*.notes")
    try:
        notes = _checked(file, shape)
        if notes is None:
            notes = _make(file, shape, write)
    except OSError as error:
        rank_zero_warn(f"the decoded pictures are held in memory and not kept for later runs: {file}: {error.strerror}")
        stream = io.BytesIO()
        notes = write(stream)
        return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).view(-1, *shape), notes
    # Mapped so that a write would stay in this process: torch asks for a writable array.
    images = torch.from_numpy(np.memmap(file, np.uint8, mode="c")).view(-1, *shape)
    in_memory = file.stat().st_size <= max_memory_gib * 2**30
    return images.clone() if in_memory else images, notes


def _checked(file: Path, shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """The notes of a file that is as it was written; None if there is none, or it has to be made again."""
    if not file.exists():
        return None
    try:
        kept = json.loads(_notes(file).read_text(encoding="utf-8"))
        if isinstance(kept, dict) and "hash" not in kept:  # of an earlier version
            return None
        wrong = _wrong(file, shape, kept)
    except FileNotFoundError:
        wrong = "their notes are missing"
    except (ValueError, KeyError, TypeError):
        wrong = "their notes are damaged"
    if wrong is None:
        return kept["notes"]
    rank_zero_warn(f"the decoded pictures in {file} are made again: {wrong}")
    return None


def _wrong(file: Path, shape: tuple[int, int, int], kept: dict[str, Any]) -> str | None:
    size = file.stat().st_size
    if size != kept["bytes"]:
        return f"there are {size} bytes, but {kept['bytes']} were written"
    if kept["shape"] != list(shape):
        return f"their shape is {kept['shape']}, but {list(shape)} is needed"
    if kept["hash"] != _hash(digest_of_pieces(file), kept["notes"]):
        return "their hash is not that of what was written"
    return None


def _make(file: Path, shape: tuple[int, int, int], write: Write) -> dict[str, Any]:
    with written(file) as stream:
        hashing = Hashing(stream)
        notes = write(cast(IO[bytes], hashing))
        kept = {"bytes": hashing.size, "shape": shape, "hash": _hash(hashing.digest(), notes), "notes": notes}
        write_text(_notes(file), json.dumps(kept))  # first: the other file marks that both are there
    return json.loads(json.dumps(notes))


def _hash(of_bytes: str, notes: dict[str, Any]) -> str:
    return hashlib.blake2b(f"{of_bytes} {json.dumps(notes, sort_keys=True)}".encode(), digest_size=16).hexdigest()


def _notes(file: Path) -> Path:
    return file.with_suffix(".json")
