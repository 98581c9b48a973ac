"""Faces of celebrities, cut out of the aligned photographs."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from torch import Tensor

from ..files import expanded
from ..images import state
from .base import Images, Pictures, ResizeCrop, Splits, decode, downloaded, fingerprint

CUT = (89 - 64, 121 - 64, 89 + 64, 121 + 64)  # left, top, right, bottom of the square


class CelebA(Images):
    """162,770 faces to train, 19,867 for `val` and 19,962 for `test`, (3, size, size); no classes, y is 0.

    Of each aligned photograph (178×218 pixels) the square of 128 pixels centred at row 121, column 89 is cut out, as
    the released code of DDIM (arXiv 2010.02502, ermongroup/ddim, datasets/__init__.py) does, then averaged over areas
    down to size × size. They are decoded once and kept in the user's cache.

    Source: Deep learning face attributes in the wild. Liu, Luo, Wang, Tang, 2015, arXiv 1411.7766; its official splits.

    Args:
        root: torchvision's root folder, which has `celeba/`; what it lacks is downloaded, which needs `gdown`.
        size: pixels a side, at most 128.
        max_memory_gib: GiB up to which the faces are read into memory; more stay in a mapped file.
        kwargs: see `Images`.
    """

    def __init__(self, root: str | Path = "data", size: int = 64, max_memory_gib: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= size <= 128:
            raise ValueError(f"size is {size}, but the square that is cut out has 128 pixels: give 1 to 128")
        self.root, self.max_memory_gib, self.shape = Path(expanded(str(root))), max_memory_gib, (3, size, size)

    def prepare_data(self) -> None:
        self._found("test", download=self.may_download)
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        names: list[str] = []
        places = {}
        for split, official in (("train", "train"), ("val", "valid"), ("test", "test")):
            first = len(names)
            names += self._found(official).filename
            places[split] = (first, len(names))
        folder = self.root / "celeba/img_align_celeba"
        found = [state(folder / name) for name in names]
        if () in found:
            raise ValueError(
                f"{folder / names[found.index(())]} is not there, but the list of the splits names it: unpack "
                "img_align_celeba.zip again"
            )
        key = fingerprint(["CelebA", folder.resolve(), names, *found])
        pictures = Pictures(names, lambda i: folder / names[i], key)
        images, _ = decode(pictures, ResizeCrop(self.shape, box=CUT), "raise", self.max_memory_gib)
        return Splits(images, torch.zeros(len(names), dtype=torch.long), places)

    def _found(self, split: str, download: bool = False) -> Any:
        place = (
            "img_align_celeba.zip, unpacked, and the lists of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into "
            f"{self.root / 'celeba'}"
        )
        return downloaded(torchvision.datasets.CelebA, self.root, place, download, split=split, target_type="identity")
