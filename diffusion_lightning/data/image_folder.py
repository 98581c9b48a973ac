"""Pictures in a folder, however nested."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures import SUFFIXES
from .base import Broken, Fit, Images, Pictures, Splits, arrange, decode, fingerprint, size_of_first

OWN = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # folders that are splits


class ImageFolder(Images):
    """The pictures of a folder and the folders in it, sorted by path, as (channels, size, size).

    They are decoded once, before the first step, and kept in the user's cache. What becomes of a picture is told by
    `base.Fit`: upright, its central square, averaged over areas down to the size.

    A folder that has `train/` and beside it `val/` or `test/` is so split; of any other, images evenly spaced in the
    order are held out, from each class in proportion.

    Args:
        path: the folder; links in it are followed.
        size: pixels a side; None where all pictures have one size, which then need not be square.
        channels: 3, or 1 for grey.
        classes: take the name of the first folder below the path (or below `train/`) as class, numbered as sorted;
            otherwise y is 0.
        held_out: a share of the images below 1, or how many, for `val` and `test`; None takes the folder's own splits
            or, where it has none, 0.05.
        broken: `stop` refuses a folder with pictures that cannot be read, `skip` leaves them out; both name them.
        memory: GiB up to which the images are read into memory; more stay in a mapped file, where `num_workers` help.
        kwargs: see `Images`.

    Raises:
        ValueError: where the folder has no pictures or but one class, and as `base.decode` and `base.arrange` do.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        channels: int = 3,
        classes: bool = False,
        held_out: float | None = None,
        broken: Broken = "stop",
        memory: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        Fit.check(channels, size)
        self.path, self.size, self.channels, self.classes = Path(path), size, channels, classes
        self.held_out, self.broken, self.memory = held_out, broken, memory

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(channels, H, W): of the first picture that can be read where no size is given."""
        if self.size is not None:
            return self.channels, self.size, self.size
        return self.channels, *size_of_first((file for files in self._sets.values() for file in files), str(self.path))

    def prepare_data(self) -> None:
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        files = [file for part in self._sets.values() for file in part]
        labels = self._labels
        order, places = arrange(labels, self.held_out)
        files, y = [files[i] for i in order], torch.cat(list(labels.values()))[order]
        names = [file.relative_to(self.path).as_posix() for file in files]
        known = [(name, *_state(file)) for name, file in zip(names, files, strict=True)]
        pictures = Pictures([str(file) for file in files], lambda i: files[i], fingerprint(["folder", *known]))
        images, kept = decode(pictures, Fit(self.shape, keep=self.size is None), self.broken, self.memory)
        return Splits(images, y, places).of(kept)

    @cached_property
    def _sets(self) -> dict[str, list[Path]]:
        """The files of each split that the folder has."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is no folder: give the data's path of one that holds pictures")
        own = {split: next((self.path / name for name in names if (self.path / name).is_dir()), None)
               for split, names in OWN.items()}  # fmt: skip
        split = own["train"] is not None and any(own[name] for name in ("val", "test"))
        sets = {name: _files(at) for name, at in own.items() if at} if split else {"train": _files(self.path)}
        for name, files in sets.items():
            if not files:
                place = own[name] if split else self.path
                raise ValueError(f"{place} holds no pictures ({', '.join(sorted(SUFFIXES))}): give a folder that does")
        return sets

    @property
    def _labels(self) -> dict[str, Tensor]:
        if not self.classes:
            return {split: torch.zeros(len(files), dtype=torch.long) for split, files in self._sets.items()}
        depth = len(self.path.parts) + (len(self._sets) > 1)
        names = {split: [file.parts[depth] for file in files] for split, files in self._sets.items()}
        for files in self._sets.values():
            if stray := next((file for file in files if len(file.parts) == depth + 1), None):
                raise ValueError(f"{stray} lies in no class's folder, but classes are wanted: move it into one")
        known = {name: k for k, name in enumerate(sorted(set(names["train"])))}
        if other := sorted({name for of_split in names.values() for name in of_split} - set(known)):
            raise ValueError(f"{other[0]} is a class of {self.path}, but has no training images: add some or drop it")
        if len(known) == 1:
            only = next(iter(known))
            raise ValueError(f"{self.path} has one class alone, {only}, but a condition needs two: leave classes out")
        return {split: torch.tensor([known[name] for name in of_split]) for split, of_split in names.items()}


def _files(folder: Path) -> list[Path]:
    found, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(at) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(os.path.realpath(at))
        folders[:] = (name for name in folders if not name.startswith("."))
        found += [
            Path(at, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _state(file: Path) -> tuple[int, int]:
    """What changes when the file does; a link to nothing is found out when it is decoded."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
