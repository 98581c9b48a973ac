"""Sets of images as bytes, in memory or in a mapped file, batched by index: no training step decodes anything.

    batch = (image (B, C, H, W) float32 in [-1, 1], y)

y is (B,) int64, the classes; in a set with captions B texts, or a dict of both, see `Images`.

The order is a function of (seed, optimizer step): global batch k holds the same images on any number of devices, rank
after rank, and an image's flip is a function of (seed, epoch, its index).
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ... import random
from ...distributed import preemption
from ...metrics.evaluation import hashed
from .captions import sided
from .order import Indices, Loader, Order, even

RESIDENT = 0.25  # of a GPU's free memory, which a set of images may take


class Bytes(Dataset):
    """Images as bytes (N, C, H, W), their labels (N,), and a seed of flips or None; indexed a batch at a time.

    The batches' images are made on the device on which the images lie, and y on that of the labels.
    """

    def __init__(self, images: Tensor, y: Tensor, flip_seed: int | None) -> None:
        self.images, self.y, self.flip_seed = images, y, flip_seed
        self._flips: tuple[int, Tensor] | None = None  # an epoch and its flips, on a GPU

    def __getitem__(self, batch: Indices) -> tuple[Any, Tensor]:
        epoch, indices = batch[0], batch[1].to(self.images.device, non_blocking=True)
        flip = None if self.flip_seed is None else self._flipped(self.flip_seed, epoch, indices)
        return self.taken(indices, flip), self.y[indices if self.y.device == self.images.device else batch[1]]

    def taken(self, indices: Tensor, flip: Tensor | None) -> Any:
        """The images of these numbers (B,), those flipped for which `flip` (B,) is true."""
        images = self.images[indices]
        return images if flip is None else torch.where(flip[:, None, None, None], images.flip(3), images)

    def _flipped(self, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Which images are flipped; on a GPU, where few draws cost as much as many, drawn for all once an epoch."""
        if indices.device.type == "cpu":
            return random.integers(0, 2, seed, "flip", epoch, indices).bool()
        if self._flips is None or self._flips[0] != epoch:
            every = torch.arange(len(self.images), device=indices.device)
            self._flips = epoch, random.integers(0, 2, seed, "flip", epoch, every).bool()
        return self._flips[1][indices]


class Reference:
    """Images (N, C, H, W) in [-1, 1], converted from bytes when indexed: `[:]` is all of them.

    Args:
        images: bytes (N, C, H, W).
        scaled: bytes to float32 in [-1, 1].
    """

    def __init__(self, images: Tensor, scaled: Callable[[Tensor], Tensor]) -> None:
        self.images, self.scaled, self.shape = images, scaled, images.shape
        self._digest: str | None = None

    def digest(self) -> str:
        """A hash of the bytes, computed once."""
        self._digest = self._digest or hashed(self)
        return self._digest

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice | int | list[int] | Tensor) -> Tensor:
        return self.scaled(self.images[which])


class Images(LightningDataModule, ABC):
    """A data set in three splits, `train`, `val` and `test`. Subclasses read it.

    `captions` is None, or a list of the texts of all splits, of which y (N,) of `read` are numbers: a batch is
    `(image, list of B texts)` then, and in a set that has classes too
    `(image, {"label": (B,) int64, "text": list of B texts})`.

    Args:
        batch_size: images a batch, per device.
        flip: mirror half of the training images, another half in every epoch; captions that say left or right are
            wrong then, which is warned of.
        num_workers: processes that gather batches; 0 gathers them in the main process, and on the
            training GPU if all the images take no more than a quarter of its free memory: no step copies any to it.
        seed: of the order and the flips.
    """

    shape: tuple[int, int, int]
    levels = 256
    captions: list[str] | None = None
    _label_of: Tensor | None = None  # (len(captions),) the classes of a set that has captions too: one caption an image
    may_download = True  # false for data that a checkpoint names: what a file names is read, and never written

    def __init__(self, batch_size: int = 128, flip: bool = False, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, which is no batch: give at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}, but processes are counted from 0: give at least 0")
        self.batch_size, self.flip, self.num_workers = batch_size, flip, num_workers
        self.seed = random.check_seed(seed, "the data's seed")
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._references: dict[str, Reference] = {}

    @abstractmethod
    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """The images (N, C, H, W) as bytes 0 … levels - 1 and y (N,) int64 of `train`, `val` or `test`.

        y are the classes or, in a set with captions, the numbers of the images' captions.
        """

    def scaled(self, images: Tensor) -> Tensor:
        """Bytes 0 … levels - 1 to float32 in [-1, 1]."""
        return images.float() / ((self.levels - 1) / 2) - 1

    def reference(self, split: str = "train") -> Reference:
        """All images of a split (N, C, H, W) in [-1, 1], unaugmented and in the set's own order; floats in slices."""
        if split not in self._references:
            images, _ = self.splits[split] if split in self.splits else self._checked(split)
            self._references[split] = Reference(images, self.scaled)
        return self._references[split]

    def captions_of(self, split: str) -> list[str] | None:
        """The captions (N,) of a split's images, in the set's own order; None if the set has none."""
        _, y = self.splits[split] if split in self.splits else self._checked(split)
        return None if self.captions is None else [self.captions[i] for i in y.tolist()]

    def conditions_of(self, split: str) -> Any:
        """What batches give beside the images of a split: classes (N,), captions, or a dict of both."""
        _, y = self.splits[split] if split in self.splits else self._checked(split)
        return self.conditions(y, torch.device("cpu"))

    def setup(self, stage: str) -> None:
        splits = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}.get(stage, [])
        self.splits, self._references = {split: self._checked(split) for split in splits}, {}
        for split in set(splits) - {"train"}:
            self._check_ranks(split)
        if "train" in self.splits:
            n, whole = len(self.splits["train"][0]), self.batch_size * self._world * self._accumulate
            if whole > n:
                raise ValueError(
                    f"one step takes {whole} images ({self.batch_size} a batch, {self._world} devices, "
                    f"{self._accumulate} batches accumulated), but the training set has {n}: lower the data's "
                    "batch_size"
                )
            if self.flip and (count := sided(self.captions_of("train") or [])):
                rank_zero_warn(
                    f"flip mirrors images, but {count} of {n} training captions say left or right: set the data's flip "
                    "to false"
                )

    def _checked(self, split: str) -> tuple[Tensor, Tensor]:
        """The images and labels of `read`, labels as (N,) int64.

        Raises:
            ValueError: if it is not what `read` promises.
        """
        images, y = self.read(split)
        what = f"the {split} images of {type(self).__name__}"
        if len(images) == 0:
            raise ValueError(f"{what} are none: let read({split!r}) give some")
        if images.dtype != torch.uint8 or images.ndim != 4:
            kind = str(images.dtype).removeprefix("torch.")
            raise ValueError(
                f"{what} are {kind} of shape {list(images.shape)}, but `read` gives bytes (uint8) of shape "
                f"[N, C, H, W], 0 … {self.levels - 1}: convert them there"
            )
        if self.levels < 256 and (high := int(images.max())) >= self.levels:
            raise ValueError(f"{what} go up to {high}, but their levels are 0 … {self.levels - 1}: set `levels`")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.shape != (len(images),) or y.is_floating_point():
            raise ValueError(
                f"the {split} labels of {type(self).__name__} are {str(y.dtype).removeprefix('torch.')} of shape "
                f"{list(y.shape)}, but there are {len(images)} images: give one whole number each"
            )
        if self.captions is not None and not 0 <= int(y.min()) <= int(y.max()) < len(self.captions):
            raise ValueError(
                f"y of {what} goes from {int(y.min())} to {int(y.max())}, but {len(self.captions)} captions are "
                "numbered from 0 on: give each image the number of its caption"
            )
        return images, y.long()

    def _check_ranks(self, split: str) -> None:
        """Raise ValueError if a rank would have no images in an evaluation: the others would wait for it."""
        n = len(self.splits[split][0])
        if n < self._world and getattr(self.trainer, f"limit_{split}_batches", None) != 0:
            raise ValueError(
                f"the {split} set has {n} images, but {self._world} devices share it, and each needs one: hold out "
                f"more images, use fewer devices, or set trainer.limit_{split}_batches to 0"
            )

    def train_dataloader(self) -> DataLoader:
        return self.loader("train", self.splits["train"][0])

    def val_dataloader(self) -> DataLoader:
        return self.loader("val", self.splits["val"][0])

    def test_dataloader(self) -> DataLoader:
        return self.loader("test", self.splits["test"][0])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The numbers of captions stay on the CPU: no step waits for a GPU to give them back."""
        if self.captions is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        images, y = batch
        return super().transfer_batch_to_device(images, device, dataloader_idx), y

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes become floats on the device, a quarter of the traffic, and numbers of captions texts."""
        images, y = batch
        return self.scaled(images), self.conditions(y, images.device)

    def conditions(self, y: Tensor, device: torch.device) -> Any:
        """What y (B,) of `read` stands for: itself, or in a set with captions these, or a dict of both."""
        if self.captions is None:
            return y
        texts = [self.captions[i] for i in y.tolist()]
        if self._label_of is None:
            return texts
        return {"label": self._label_of[y.to(self._label_of.device)].to(device, non_blocking=True), "text": texts}

    def loader(self, split: str, images: Tensor, batches: type[Bytes] = Bytes) -> DataLoader:
        """A split's loader, in the order and with the flips of the training if it is `train`.

        Args:
            split: which one.
            images: of the split (N, …): the bytes, or what was made of each of them.
            batches: makes the batches of these.
        """
        y, train = self.splits[split][1], split == "train"
        rank = self.trainer.global_rank if self.trainer else 0
        size = self.batch_size if train else even(len(images), self.batch_size, self._world)
        accumulate, seed = (self._accumulate, self.seed) if train else (1, None)
        order = Order(len(images), size, rank, self._world, accumulate, seed, self._step)
        place = self._place(images)
        images, y = images.to(place), y.to(place) if self.captions is None else y
        return Loader(
            batches(images, y, self.seed if train and self.flip else None),
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            worker_init_fn=preemption.ignore,
            # A forked worker shares the images; one that is started afresh is sent a copy of them.
            multiprocessing_context="fork" if self.num_workers and sys.platform == "linux" else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and place.type == "cpu",
        )

    def _place(self, images: Tensor) -> torch.device:
        """The device on which batches are made: the training GPU if all the images fit there."""
        device = self.trainer.strategy.root_device if self.trainer else images.device
        if device.type != "cuda" or self.num_workers:
            return images.device
        free, _ = torch.cuda.mem_get_info(device)
        return device if images.nbytes <= RESIDENT * free else images.device

    def index(self, step: int, sample: int) -> int:
        """Which training image is number `sample` of the global batch of optimizer step `step`."""
        order = Order(len(self.splits["train"][0]), self.batch_size, 0, self._world, self._accumulate, self.seed)
        return order.index(step, sample)

    def _step(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1
