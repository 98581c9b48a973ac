"""Pictures in a folder, however nested."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..files import expanded
from ..images import left_out, no_pictures, state, walk
from .base import (
    Images,
    OnError,
    Pictures,
    ResizeCrop,
    Splits,
    arrange,
    check_kind,
    decode,
    fingerprint,
    own_splits,
    read_captions,
    size_of_first,
)


class ImageFolder(Images):
    """The pictures of a folder and the folders in it, sorted by path, as (channels, size, size).

    They are decoded once, before the first step, and kept in the user's cache. `images.decoded` reads a picture:
    upright, over white, of 8 bits. `base.ResizeCrop` brings it to the size: its central square, averaged over areas.

    The cache's key is made of the folder's resolved path and of each picture's name, inode, times and size, see
    `images.state`, so no picture is read to find it; a folder that was copied or moved is decoded anew.

    A folder that has `train/` and beside it `val/` or `test/`, in any case of letters, is so split; of any other,
    images evenly spaced in the order are held out, from each class in proportion.

    Captions are UTF-8, read anew at every start, and no part of the cache's key: `txt` reads `NAME.txt` beside each
    picture `NAME.png`. `metadata.jsonl` or `metadata.csv`, or a list of another such name, has a line for each picture,
    with its path relative to the list's folder as `file_name`, as Hugging Face's imagefolder has it. Of lists in
    several folders, the nearest one above a picture is read: one may be in each split's folder, or one at the top.

    Args:
        path: the folder; links in it are followed, and names that begin with a dot are skipped.
        size: pixels a side; None if all pictures have one size, which then need not be square.
        channels: 3, or 1 for grey.
        classes: take the name of the first folder below the path (or below `train/`) as class, numbered as sorted;
            otherwise y is 0.
        captions: None, `txt`, or the name of a list, which ends in `.jsonl` or `.csv`; a batch's y are the texts then,
            and with `classes` a dict, see `Images`. Every picture needs one, of at most 10,000 characters.
        caption_column: of a list's texts; the first of each, if it holds lists of texts.
        held_out: a fraction of the images below 1, or how many, for `val` and `test`; None takes the folder's own
            splits or, if it has none, 0.05.
        on_error: `raise` refuses a folder with pictures that cannot be read, `skip` leaves them out; both name them.
        max_memory_gib: GiB up to which the images are read into memory; more stay in a mapped file, where
            `num_workers` help.
        kwargs: see `Images`.

    Raises:
        ValueError: if the folder has no pictures or only one class, a picture has no caption, a caption's file or line
            cannot be understood, and as `base.decode` and `base.arrange` do.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        channels: int = 3,
        classes: bool = False,
        held_out: float | None = None,
        on_error: OnError = "raise",
        max_memory_gib: float = 4.0,
        captions: str | None = None,
        caption_column: str = "text",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_kind(captions)
        self.caption_files, self.caption_column = captions, caption_column
        ResizeCrop.check(channels, size)
        self.path, self.size, self.channels, self.classes = Path(expanded(str(path))), size, channels, classes
        self.held_out, self.on_error, self.max_memory_gib = held_out, on_error, max_memory_gib

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(channels, H, W): of the first picture that can be read, if no size is given."""
        if self.size is not None:
            return self.channels, self.size, self.size
        return self.channels, *size_of_first(self._files, str(self.path))

    def prepare_data(self) -> None:
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        labels = self._labels
        order, places = arrange(labels, self.held_out)
        y = torch.cat(list(labels.values()))
        if self.captions is not None:
            y, self._label_of = torch.arange(len(y)), y if self.classes else None
        files = self._files
        files = [files[i] for i in order]
        names = [file.relative_to(self.path).as_posix() for file in files]
        known = [(name, *state(file)) for name, file in zip(names, files, strict=True)]
        key = fingerprint(["folder", self.path.resolve(), *known])
        pictures = Pictures([str(file) for file in files], lambda i: files[i], key)
        resize = ResizeCrop(self.shape, keep=self.size is None)
        images, kept = decode(pictures, resize, self.on_error, self.max_memory_gib)
        return Splits(images, y[order], places).of(kept)

    @cached_property
    def captions(self) -> list[str] | None:  # type: ignore[override]
        """The captions of all pictures, in the order of their paths, split after split; None without captions."""
        if self.caption_files is None:
            return None
        return read_captions(self._files, self.path, self.caption_files, self.caption_column)

    @cached_property
    def class_names(self) -> list[str] | None:
        """The names of the classes' folders by label; None without classes."""
        return sorted(set(self._names["train"])) if self.classes else None

    @cached_property
    def _sets(self) -> dict[str, list[Path]]:
        """The files of each split that the folder has."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is no folder: give the data's path of one that holds pictures")
        own = own_splits([at.name for at in os.scandir(self.path) if at.is_dir()], str(self.path))
        places = {split: self.path / name for split, name in own.items()}
        if "train" not in places or len(places) == 1:
            places = {"train": self.path}
        sets = {}
        for split, place in places.items():
            sets[split], others = walk(place)
            if not sets[split]:
                raise no_pictures(place, others)
            if others:
                rank_zero_warn(left_out(place, others))
        return sets

    @property
    def _files(self) -> list[Path]:
        return [file for part in self._sets.values() for file in part]

    @property
    def _names(self) -> dict[str, list[str]]:
        """Of each picture the name of its class's folder."""
        depth = len(self.path.parts) + (len(self._sets) > 1)
        for files in self._sets.values():
            if stray := next((file for file in files if len(file.parts) == depth + 1), None):
                raise ValueError(f"{stray} lies in no class's folder, but classes are wanted: move it into one")
        return {split: [file.parts[depth] for file in files] for split, files in self._sets.items()}

    @property
    def _labels(self) -> dict[str, Tensor]:
        if self.class_names is None:
            return {split: torch.zeros(len(files), dtype=torch.long) for split, files in self._sets.items()}
        names, known = self._names, {name: k for k, name in enumerate(self.class_names)}
        if other := sorted({name for of_split in names.values() for name in of_split} - set(known)):
            raise ValueError(f"{other[0]} is a class of {self.path}, but has no training images: add some or drop it")
        if len(known) == 1:
            only = next(iter(known))
            raise ValueError(f"{self.path} has one class alone, {only}, but a condition needs two: leave classes out")
        return {split: torch.tensor([known[name] for name in of_split]) for split, of_split in names.items()}
