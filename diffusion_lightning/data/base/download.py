"""Sets that torchvision downloads, checks and extracts."""

import contextlib
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ...files import expanded
from .images import Images


class Downloaded(Protocol):
    """A class of `torchvision.datasets`."""

    def __call__(self, root: str | Path, /, *, download: bool, **which: Any) -> Any: ...


def downloaded(source: Downloaded, root: str | Path, place: str, download: bool = False, **which: Any) -> Any:
    """An object of torchvision's class, with one sentence if its download fails.

    Args:
        source: the class.
        root: torchvision's root folder.
        place: what is to be put where by hand, completing "put … ".
        download: fetch the files that are missing.
        which: torchvision's argument for the split.

    Raises:
        ValueError: if the files are missing or damaged and cannot be downloaded.
    """
    try:
        if download:
            with contextlib.suppress(RuntimeError):  # what is there is checked once and not twice
                return source(root, download=False, **which)
        return source(root, download=download, **which)
    except Exception as error:  # of the network, the disk, gdown
        name = getattr(source, "__name__", "the set")
        if not download:
            raise ValueError(
                f"{name} is not whole in {root}: put {place}, or call prepare_data, which downloads it"
            ) from error
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} is not whole in {root}, and it could not be downloaded ({reason}): put {place}, or give the root "
            "of another folder that has it"
        ) from error


class ByTorchvision(Images):
    """A set that torchvision downloads and reads whole; `val` and `test` are its test set.

    Args:
        root: torchvision's root folder.
        kwargs: see `Images`.
    """

    source: ClassVar[Downloaded]
    place: ClassVar[str]  # what is to be put where by hand, the root as {root}

    def __init__(self, root: str | Path = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(expanded(str(root)))

    def prepare_data(self) -> None:
        self._found(train=False, download=self.may_download)

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """Of torchvision's `data`, (N, H, W) or (N, H, W, 3), and `targets`."""
        found = self._found(train=split == "train")
        images = torch.as_tensor(np.asarray(found.data))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(found.targets).long()

    def _found(self, train: bool, download: bool = False) -> Any:
        return downloaded(self.source, self.root, self.place.format(root=self.root), download, train=train)
