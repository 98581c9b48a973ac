"""Sets of images of the Hugging Face hub, or in its formats on the disk."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..files import expanded
from ..images import Source, state
from .base import (
    Images,
    OnError,
    Pictures,
    ResizeCrop,
    Splits,
    arrange,
    check_captions,
    check_labels,
    decode,
    fingerprint,
    one_of,
    own_splits,
    size_of_first,
    whole_numbers,
)


class HuggingFace(Images):
    """The pictures of one column of a set, in its order, as (channels, size, size); needs the package `datasets`.

    They are decoded once, before the first step, and kept in the user's cache. `images.decoded` reads a picture:
    upright, over white, of 8 bits. `base.ResizeCrop` brings it to the size: its central square, averaged over areas.

    The cache's key is made of the set's own mark and, for each of its files and each picture that is a file of its
    own, of the resolved path, inode, times and size, see `images.state`.

    Args:
        name: a name on the hub, or a folder: written by `save_to_disk`, or of parquet or picture files.
        config: which configuration of the set, if it has several.
        size: pixels a side; None if all pictures have one size, which then need not be square.
        channels: 3, or 1 for grey.
        image: the column of pictures.
        label: the column of classes, whole numbers; None: y is 0.
        caption: the column of texts, or of lists of texts, the first of which is taken; a batch's y are the texts then,
            and with `label` a dict, see `Images`. Every picture needs one, of at most 10,000 characters.
        held_out: a fraction of the training images below 1, or how many, for `val` and `test`; None takes the set's own
            splits `validation` and `test` or, if it has none, 0.05.
        on_error: `raise` refuses a set with pictures that cannot be read, `skip` leaves them out; both name them.
        max_memory_gib: GiB up to which the images are read into memory; more stay in a mapped file, where
            `num_workers` help.
        kwargs: see `Images`.

    Raises:
        ValueError: if the set cannot be loaded or lacks a column or a caption, and as `base.decode` and
            `base.arrange` do.
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
        on_error: OnError = "raise",
        max_memory_gib: float = 4.0,
        caption: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.set_name, self.config, self.image, self.label = expanded(name), config, image, label
        self.caption = caption
        self.channels, self.size, self.held_out = channels, size, held_out
        self.on_error, self.max_memory_gib = on_error, max_memory_gib
        ResizeCrop.check(channels, size)

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(channels, H, W): of the first picture that can be read, if no size is given."""
        if self.size is not None:
            return self.channels, self.size, self.size
        rows = (self._source(split, i) for split, part in self._encoded.items() for i in range(len(part)))
        return self.channels, *size_of_first(rows, self.set_name)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes by label; None without labels, or if the set does not name them."""
        kind = None if self.label is None else self._sets["train"].features[self.label]
        names = getattr(kind, "names", None)
        return None if names is None else list(names)

    @cached_property
    def captions(self) -> list[str] | None:  # type: ignore[override]
        """The captions of all rows, split after split; None without captions."""
        if self.caption is None:
            return None
        values = [one_of(value) for part in self._sets.values() for value in part[self.caption][:]]
        rows = self._rows
        return check_captions(values, lambda i: f"number {rows[i][1]} of {rows[i][0]}", self.set_name)

    def prepare_data(self) -> None:
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        labels = {split: self._labels(part) for split, part in self._sets.items()}
        y = torch.cat(list(labels.values()))
        if self.label is not None:
            check_labels(y, f"{self.label} of {self.set_name}")
        if self.captions is not None:
            y, self._label_of = torch.arange(len(y)), None if self.label is None else y
        order, places = arrange(labels, self.held_out)
        rows = self._rows
        rows = [rows[k] for k in order]
        key: list[Any] = [self.image, self.label, places]
        for split, part in self._sets.items():
            alone = _files(self._encoded[split].data.column(self.image))
            key += [part._fingerprint, len(part), *((file.resolve(), state(file)) for file in _of(part) + alone)]
        pictures = Pictures(
            [f"number {i} of {split}" for split, i in rows],
            lambda k: self._source(*rows[k]),
            fingerprint(["hub", *key]),
        )
        resize = ResizeCrop(self.shape, keep=self.size is None)
        images, kept = decode(pictures, resize, self.on_error, self.max_memory_gib)
        return Splits(images, y[order], places).of(kept)

    @property
    def _rows(self) -> list[tuple[str, int]]:
        """Of each row its split and its number there."""
        return [(split, i) for split, part in self._sets.items() for i in range(len(part))]

    @cached_property
    def _sets(self) -> dict[str, Any]:
        """The rows of each split that the set has."""
        found = self._loaded()
        if not isinstance(found, dict):
            found = {"train": found}
        own = own_splits(found, self.set_name)
        if "train" not in own and len(found) > 1:
            raise ValueError(f"{self.set_name} has the splits {', '.join(found)}, but none is named train: rename one")
        if "train" not in own:
            own = {"train": next(iter(found))}
        sets = {split: found[name] for split, name in own.items() if self._labelled(split, found[name])}
        for name in filter(None, (self.image, self.label, self.caption)):
            for part in sets.values():
                if name not in part.column_names:
                    has = ", ".join(part.column_names)
                    raise ValueError(f"{self.set_name} has the columns {has}, but no {name}: name another")
        return sets

    def _labelled(self, split: str, part: Any) -> bool:
        """Whether a split has the wanted labels and captions: those of a `test` are often kept back, or left out."""
        if split == "train":
            return True
        for name in filter(None, (self.label, self.caption)):
            if name not in part.column_names or all(one_of(value) in (-1, None, "") for value in part[name][:]):
                rank_zero_warn(f"the split {split} of {self.set_name} has no {name} and is left out")
                return False
        return True

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
                return datasets.load_from_disk(self.set_name, keep_in_memory=False)
            return datasets.load_dataset(self.set_name, self.config, keep_in_memory=False)
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
        return whole_numbers(part[self.label][:], f"{self.label} of {self.set_name}", len(part))

    def _source(self, split: str, i: int) -> Source:
        row = self._encoded[split][i][self.image] or {}
        return Path(row["path"]) if row.get("bytes") is None and row.get("path") else row.get("bytes") or b""


def _of(part: Any) -> list[Path]:
    """The files that hold a split's rows."""
    return [Path(file["filename"]) for file in part.cache_files]


def _files(column: Any) -> list[Path]:
    """The pictures of a column that lie in files of their own: those without bytes."""
    parts = (chunk.field("path").filter(chunk.field("bytes").is_null()) for chunk in column.chunks)
    return [Path(path) for part in parts for path in part.to_pylist() if path]
