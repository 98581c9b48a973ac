"""Sets of images of the Hugging Face hub, or in its formats on the disk."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .base import (
    Broken,
    Fit,
    Images,
    Pictures,
    Source,
    Splits,
    arrange,
    check_labels,
    decode,
    fingerprint,
    size_of_first,
    whole_numbers,
)

OWN = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class HuggingFace(Images):
    """The pictures of one column of a set, in its order, as (channels, size, size); needs the package `datasets`.

    They are decoded once, before the first step, and kept in the user's cache. What becomes of a picture is told by
    `base.Fit`: upright, its central square, averaged over areas down to the size.

    Args:
        name: a name on the hub, or a folder: written by `save_to_disk`, or of parquet or picture files.
        config: which configuration of the set, where it has several.
        size: pixels a side; None where all pictures have one size, which then need not be square.
        channels: 3, or 1 for grey.
        image: the column of pictures.
        label: the column of classes, whole numbers; None: y is 0.
        held_out: a share of the training images below 1, or how many, for `val` and `test`; None takes the set's own
            splits `validation` and `test` or, where it has none, 0.05.
        broken: `stop` refuses a set with pictures that cannot be read, `skip` leaves them out; both name them.
        memory: GiB up to which the images are read into memory; more stay in a mapped file, where `num_workers` help.
        kwargs: see `Images`.

    Raises:
        ValueError: where the set cannot be had or lacks a column, and as `base.decode` and `base.arrange` do.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        size: int | None = None,
        channels: int = 3,
        image: str = "image",
        label: str | None = None,
        held_out: float | None = None,
        broken: Broken = "stop",
        memory: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.set_name, self.config, self.image, self.label = name, config, image, label
        self.channels, self.size, self.held_out = channels, size, held_out
        self.broken, self.memory = broken, memory
        Fit.check(channels, size)

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(channels, H, W): of the first picture that can be read where no size is given."""
        if self.size is not None:
            return self.channels, self.size, self.size
        rows = (self._source(split, i) for split, part in self._encoded.items() for i in range(len(part)))
        return self.channels, *size_of_first(rows, self.set_name)

    def prepare_data(self) -> None:
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        labels = {split: self._labels(part) for split, part in self._sets.items()}
        if self.label is not None:
            check_labels(torch.cat(list(labels.values())), f"{self.label} of {self.set_name}")
        order, places = arrange(labels, self.held_out)
        rows = [(split, i) for split, part in self._sets.items() for i in range(len(part))]
        rows = [rows[k] for k in order]
        key = [self.image, self.label, places, *(_state(part) for part in self._sets.values())]
        pictures = Pictures(
            [f"number {i} of {split}" for split, i in rows],
            lambda k: self._source(*rows[k]),
            fingerprint(["hub", *key]),
        )
        images, kept = decode(pictures, Fit(self.shape, keep=self.size is None), self.broken, self.memory)
        return Splits(images, torch.cat(list(labels.values()))[order], places).of(kept)

    @cached_property
    def _sets(self) -> dict[str, Any]:
        """The rows of each split that the set has."""
        found = self._loaded()
        if not isinstance(found, dict):
            found = {"train": found}
        if "train" not in found and len(found) > 1:
            raise ValueError(f"{self.set_name} has the splits {', '.join(found)}, but none is named train: rename one")
        if "train" not in found:
            found = {"train": next(iter(found.values()))}
        own = {split: next((found[name] for name in names if name in found), None) for split, names in OWN.items()}
        sets = {split: part for split, part in own.items() if part is not None and self._told(split, part)}
        for name in filter(None, (self.image, self.label)):
            for part in sets.values():
                if name not in part.column_names:
                    has = ", ".join(part.column_names)
                    raise ValueError(f"{self.set_name} has the columns {has}, but no {name}: name another")
        return sets

    def _told(self, split: str, part: Any) -> bool:
        """Whether a split has the labels that are wanted: those of a `test` are often kept back, as -1 or left out."""
        if split == "train" or self.label is None:
            return True
        if self.label in part.column_names and set(part[self.label][:]) != {-1}:
            return True
        rank_zero_warn(f"the split {split} of {self.set_name} has no {self.label} and is left out")
        return False

    def _loaded(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"{self.set_name} is a set of the Hugging Face hub, but the package datasets is not there: install "
                "diffusion_lightning[datasets]"
            ) from error
        try:
            saved = Path(self.set_name, "dataset_dict.json"), Path(self.set_name, "state.json")
            if any(file.exists() for file in saved):
                return datasets.load_from_disk(self.set_name)
            return datasets.load_dataset(self.set_name, self.config)
        except Exception as error:  # of the network, the hub, a script, the disk
            raise ValueError(
                f"the set {self.set_name} could be had neither from the hub nor from a folder of that name "
                f"({' '.join(str(error).split())}): correct data's name or config, or give a folder that holds it"
            ) from error

    @cached_property
    def _encoded(self) -> dict[str, Any]:
        """The column of pictures of each split, encoded as they are."""
        import datasets

        for part in self._sets.values():
            if not isinstance(part.features[self.image], datasets.Image):
                raise ValueError(
                    f"the column {self.image} of {self.set_name} holds {type(part.features[self.image]).__name__}, but "
                    "pictures are sought: name their column by data's image"
                )
        return {
            split: part.select_columns([self.image]).cast_column(self.image, datasets.Image(decode=False))
            for split, part in self._sets.items()
        }

    def _labels(self, part: Any) -> Tensor:
        if self.label is None:
            return torch.zeros(len(part), dtype=torch.long)
        return whole_numbers(np.asarray(part[self.label][:]), f"{self.label} of {self.set_name}", len(part))

    def _source(self, split: str, i: int) -> Source:
        row = self._encoded[split][i][self.image] or {}
        return Path(row["path"]) if row.get("bytes") is None and row.get("path") else row.get("bytes") or b""


def _state(part: Any) -> tuple[Any, ...]:
    """What changes when the rows do: the set's own mark, and its files."""
    files = [Path(file["filename"]) for file in part.cache_files]
    return part._fingerprint, len(part), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
