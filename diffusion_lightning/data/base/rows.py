"""A file of the user's cache that all ranks of a run fill together, block by block, once for all later runs.

    KEY.rows, KEY.json       the rows (N, *shape), and their notes: number, shape, type, and a hash of each block
    .KEY.part, .KEY.*.done   unfinished: the rows, in place, and the hashes of the blocks that are done

It is whole or not there. A run that is killed has lost the blocks that were in work; the next one goes on. A block is
trusted by its hash alone, in an unfinished file as in a finished one, which every process checks at every start: what a
disk lost is computed again, and nothing else. So nobody waits for the disk (fsync): a loss of power costs blocks.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from ...distributed.ranks import rank, together
from ...files import cache_folder, check_writable, hashes_of_pieces, locked, sweep, write_text

FOLDER = "latents"
TYPES = {"float32": torch.float32, "float16": torch.float16}
PAGE, BLOCK, ROWS = 4096, 2**24, 512  # a block is whole pages, of at most so many bytes and rows, if that is possible
FORGOTTEN = 30 * 24 * 3600  # seconds after which an unfinished file is removed


class Rows(NamedTuple):
    """N rows, the shape of each, and the type of their numbers."""

    n: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * TYPES[self.dtype].itemsize

    @property
    def block(self) -> int:
        """Rows of a block: whole pages, since machines that share a disk write neighbouring blocks at once."""
        least = PAGE // math.gcd(PAGE, self.row)
        return max(1, min(BLOCK // self.row, ROWS) // least) * least

    @property
    def blocks(self) -> int:
        return -(-self.n // self.block)


def filled(
    key: str,
    n: int,
    layout: Callable[[], Rows],
    compute: Callable[[int, int], Tensor],
    what: str,
    max_memory_gib: float,
) -> Tensor:
    """Rows (N, *shape) of the cache, computed first if they are not there; a collective call where ranks are several.

    Args:
        key: the file's name, a hash of all that the rows follow from, the same on all ranks.
        n: how many.
        layout: their shape and type; called if they are to be computed.
        compute: rows number `start` … `stop - 1`, on any rank.
        what: they are, such as "latents of the train images".
        max_memory_gib: up to how many GiB the file is read into memory; a larger one stays mapped.

    Raises:
        ValueError: if another process computes them now, or there is no room; or on another rank something went wrong.
        OSError: if the file cannot be written.
    """
    file = cache_folder() / FOLDER / f"{key}.rows"
    found = together(lambda: _checked(file, n, what))
    if None in found:
        made = together(layout)[rank()]
        _Filling(file, made, compute, what).run([x is not None for x in found])
        found = together(lambda: _checked(file, n, what))
        if None in found:
            raise ValueError(f"{file} is not what was written there just now: choose another place for the cache")
    rows = found[rank()]
    assert rows is not None
    held = torch.from_numpy(np.memmap(file, np.uint8, mode="c")).view(TYPES[rows.dtype]).view(n, *rows.shape)
    return held.clone() if held.nbytes <= max_memory_gib * 2**30 else held


class _Filling:
    """The computation of a file that is not there, or not whole."""

    def __init__(self, file: Path, rows: Rows, compute: Callable[[int, int], Tensor], what: str) -> None:
        self.file, self.rows, self.compute, self.what = file, rows, compute, what
        self.part = file.with_name(f".{file.stem}.part")
        self.notes = file.with_suffix(".json")
        self.done = file.with_name(f".{file.stem}.{secrets.token_hex(4)}.done")
        self.hashes: dict[int, str] = {}  # of the blocks that this rank knows to be whole

    def run(self, there: list[bool]) -> None:
        """Computes what is missing; `there` says of each rank whether it found the file."""
        group = _neighbours(self.file.parent)
        leads, whole = rank() == group[0], all(there[k] for k in group)
        with ExitStack() as stack:
            said = together(lambda: self._begun(stack) if leads and not whole else {})[group[0]]
            found = together(lambda: self._trusted(said, sorted(said)[group.index(rank()) :: len(group)]))
            known = _merged([found[k] for k in group])
            todo = [] if whole else [k for k in range(self.rows.blocks) if k not in known]
            own = todo[group.index(rank()) :: len(group)]
            rounds = max(together(lambda: len(own)))
            with self._bar(self.rows.n if whole else sum(map(self._size, known))) as bar:
                for i in range(rounds):  # in step, so that no rank waits longer for another than a block takes
                    made = together(partial(self._block, own[i : i + 1]))
                    bar.update(sum(made[k] for k in group))
            every = together(lambda: self.hashes)
            if leads and not whole:
                self.hashes = {k: x for k, x in sorted({**known, **_merged([every[r] for r in group])}.items())}
            together(lambda: self._finish() if leads and not whole else None)

    def _begun(self, stack: ExitStack) -> dict[int, str]:
        """The hashes of the blocks that are said to be done; makes place in the file for all."""
        folder, fix = self.file.parent, f"it computes the {self.what}: wait for it to end, and start again"
        stack.enter_context(locked(folder, fix, f".{self.file.stem}.lock"))
        sweep(folder, ".*.part", ".*.done", age=FORGOTTEN)
        said = dict(enumerate(_hashes(self.notes)))
        if self.file.exists():  # damaged: what is whole of it stays
            os.replace(self.file, self.part)
        for journal in folder.glob(f".{self.file.stem}.*.done"):
            said |= _said(journal)
        size = self.rows.n * self.rows.row
        self._check_room(size)
        try:
            self.part.touch()
            os.truncate(self.part, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from error
        return {k: x for k, x in said.items() if k < self.rows.blocks}

    def _trusted(self, said: dict[int, str], numbers: list[int]) -> dict[int, str]:
        """Those of the blocks with these numbers whose hash is what is said; each rank looks at some of them."""
        size = self.rows.block * self.rows.row

        def trusted(k: int) -> bool:
            with self.part.open("rb") as stream:
                stream.seek(k * size)
                return hashlib.blake2b(stream.read(size), digest_size=16).hexdigest() == said[k]

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            whole = {k: said[k] for k, holds in zip(numbers, pool.map(trusted, numbers), strict=True) if holds}
        self._note(whole)
        return whole

    def _check_room(self, size: int) -> None:
        taken = getattr(self.part.stat(), "st_blocks", 0) * 512 if self.part.exists() else 0
        if (free := shutil.disk_usage(self.file.parent).free) < size - taken:
            raise ValueError(
                f"the {self.what} take {size / 2**30:.3g} GiB, but there are {free / 2**30:.3g} GiB in "
                f"{self.file.parent}: make room there, set DIFFUSION_LIGHTNING_CACHE to another place, or give the "
                "data precision: float16"
            )

    def _size(self, k: int) -> int:
        return min(self.rows.block, self.rows.n - k * self.rows.block)

    def _block(self, numbers: list[int]) -> int:
        """Computes and keeps blocks; the number of their rows."""
        for k in numbers:
            start = k * self.rows.block
            made = self.compute(start, start + self._size(k)).contiguous()
            assert (made.shape[1:], made.dtype) == (self.rows.shape, TYPES[self.rows.dtype])
            data = made.view(torch.uint8).numpy().data
            try:
                with self.part.open("r+b") as stream:
                    stream.seek(start * self.rows.row)
                    stream.write(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.file)) from error
            self._note({k: hashlib.blake2b(data, digest_size=16).hexdigest()})
        return sum(map(self._size, numbers))

    def _note(self, whole: dict[int, str]) -> None:
        if not whole:
            return
        self.hashes |= whole
        try:
            with self.done.open("a", encoding="ascii") as stream:
                stream.writelines(f"{k} {x}\n" for k, x in whole.items())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from error

    def _finish(self) -> None:
        write_text(self.notes, json.dumps(_sealed(self.rows, list(self.hashes.values()))))
        os.replace(self.part, self.file)
        for journal in self.file.parent.glob(f".{self.file.stem}.*.done"):
            journal.unlink(missing_ok=True)

    def _bar(self, done: int) -> Any:
        return tqdm(
            total=self.rows.n, initial=done, desc=f"computing the {self.what}", unit=" images", disable=rank() > 0,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )  # fmt: skip


def _neighbours(folder: Path) -> list[int]:
    """The ranks that share this rank's folder: all of them, or those of its machine if each has a cache of its own."""
    mark = folder / f".{secrets.token_hex(8)}.part"

    def put() -> str:
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return mark.name

    names = together(put)
    try:
        seen = together(lambda: [(folder / name).exists() for name in names])[rank()]
    finally:
        mark.unlink(missing_ok=True)
    return [k for k, there in enumerate(seen) if there]


def _merged(dicts: list[dict[int, str]]) -> dict[int, str]:
    return {k: x for one in dicts for k, x in one.items()}


def _said(journal: Path) -> dict[int, str]:
    """The blocks and hashes in a journal; a line that was cut says nothing."""
    lines = [line.split() for line in journal.read_text(encoding="ascii", errors="replace").splitlines()]
    return {int(line[0]): line[1] for line in lines if len(line) == 2 and line[0].isdecimal()}


def _sealed(rows: Rows, hashes: list[str]) -> dict[str, Any]:
    """The notes, with a hash of their own."""
    notes = {"rows": rows.n, "shape": list(rows.shape), "dtype": rows.dtype, "hashes": hashes}
    seal = hashlib.blake2b(json.dumps(notes, sort_keys=True).encode(), digest_size=16).hexdigest()
    return notes | {"hash": seal}


def _read(notes: Path) -> tuple[Rows, list[str]]:
    """What notes say; raise ValueError, KeyError or TypeError if they are damaged, OSError if they are not there."""
    kept = json.loads(notes.read_text(encoding="utf-8"))
    rows = Rows(kept["rows"], tuple(kept["shape"]), kept["dtype"])
    if kept != _sealed(rows, kept["hashes"]) or rows.dtype not in TYPES:
        raise ValueError
    return rows, kept["hashes"]


def _hashes(notes: Path) -> list[str]:
    try:
        return _read(notes)[1]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _checked(file: Path, n: int, what: str) -> Rows | None:
    """The layout of a file that is as it was written; None if there is none, or some of it is to be computed again."""
    if not file.exists():
        return None
    try:
        rows, hashes = _read(file.with_suffix(".json"))
        size = file.stat().st_size
        if rows.n != n or size != n * rows.row:
            wrong = f"there are {size:,} bytes, but {n * rows.row:,} were written"
        else:
            found = hashes_of_pieces(file, rows.block * rows.row)
            lost = sum(x.hex() != y for x, y in zip(found, hashes, strict=True))
            if not lost:
                return rows
            wrong = f"of {lost} of its {len(found)} blocks the hash is not that of what was written"
    except FileNotFoundError:
        wrong = "its notes are missing"
    except (ValueError, KeyError, TypeError):
        wrong = "its notes are damaged"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        wrong = "it cannot be read"
    rank_zero_warn(f"{file} is damaged ({wrong}): what is lost of the {what} is computed again")
    return None
