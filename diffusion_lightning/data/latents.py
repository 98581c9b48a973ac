"""The latents of a set of images, computed once: no training step runs the encoder of a first stage."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from .. import random
from ..distributed.ranks import check_same
from ..first_stages import FirstStage
from ..networks.base.moments import Moments
from .base import Images, fingerprint
from .base.moments import MomentsOfBatches, MomentsOfSplit, packed
from .base.rows import TYPES, Rows, filled

FORMAT = 1  # of what is computed: a new number makes earlier files be computed again
AT_ONCE = 64  # images that are encoded at a time


class Latents(LightningDataModule):
    """A set of images whose batches are `(Moments, y)`: for a model with a first stage, without its encoder's cost.

    q(z | image) = N(mean, exp(log_var)·I): kept are mean and log_var, from which each step draws a latent of its own,
    and where the images are flipped those of both mirrors. The order, the flips and the draws are those of the images,
    so a run is the same as on the images themselves, to rounding. All ranks compute them together before the first
    step, in one pass that goes on where it was killed, into the user's cache; later runs map the file. Everything else
    is the source's: metrics and grids see pixels.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752, section
    3.1.

    Args:
        source: the images; its batch_size, flip, num_workers and seed are those of the latents.
        first_stage: encodes; None is that of the model that is trained. If both are given they have to be the same.
        precision: in which the moments are kept: float16 halves the file and rounds latents to 3 digits.
        max_memory_gib: up to how many GiB of a split are read into memory; more stay in the mapped file.
        seed: of the order and the flips; None is the source's.

    Raises:
        ValueError: if there is no first stage, or another one than the model's, or one of pixels; if the source is
            no set of images of this package's kind.
    """

    def __init__(
        self,
        source: Images,
        first_stage: FirstStage | None = None,
        precision: Literal["float32", "float16"] = "float32",
        max_memory_gib: float = 4.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(source, Images):
            raise ValueError(
                f"the source of Latents is a {type(source).__name__}, but latents are computed of sets of images with "
                "splits: give a data module of diffusion_lightning.data, or derive yours from "
                "diffusion_lightning.data.base.Images"
            )
        if precision not in TYPES:
            raise ValueError(f"precision is {precision}, but latents are kept in {' or '.join(TYPES)}: give one")
        self.source, self.precision, self.max_memory_gib = source, precision, max_memory_gib
        self.first_stage = first_stage
        if first_stage is not None:
            _check_latent(first_stage, source)
        if seed is not None:
            if source.seed not in (0, random.check_seed(seed, "the data's seed")):
                raise ValueError(
                    f"the seed of Latents is {seed}, but that of its source is {source.seed}: give one of them alone"
                )
            source.seed = seed
        self._rows: dict[str, tuple[str, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        """The source's: shape, levels, captions, reference, … are those of its images."""
        if name.startswith("__") or "source" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def may_download(self) -> bool:
        """As the source's, see `Images`."""
        return self.source.may_download

    @may_download.setter
    def may_download(self, may: bool) -> None:
        self.source.may_download = may

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def setup(self, stage: str) -> None:
        self.source.trainer = self.trainer
        self.source.setup(stage)
        for split in self.source.splits:
            if split == "train" or getattr(self.trainer, f"limit_{split}_batches", None) != 0:
                self._of(split)

    def moments(self, split: str = "train") -> MomentsOfSplit:
        """The moments of all images of a split, unflipped and in the set's own order; float32, in slices."""
        return MomentsOfSplit(self._of(split))

    def train_dataloader(self) -> DataLoader:
        return self.source.loader("train", self._of("train"), MomentsOfBatches)

    def val_dataloader(self) -> DataLoader:
        return self.source.loader("val", self._of("val"), MomentsOfBatches)

    def test_dataloader(self) -> DataLoader:
        return self.source.loader("test", self._of("test"), MomentsOfBatches)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.source.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: tuple[Moments, Tensor], dataloader_idx: int) -> Any:
        moments, y = batch
        return moments, self.source.conditions(y, moments.mean.device)

    def _of(self, split: str) -> Tensor:
        """Rows (N, mirrors, moments, C', H', W') of a split, of the cache or computed."""
        stage, images = self._stage(), self.source.reference(split)
        mirrors = 2 if self.source.flip and split == "train" else 1
        key = fingerprint([FORMAT, images.digest(), self.source.levels, stage.key(), mirrors, self.precision])
        if split in self._rows and self._rows[split][0] == key:
            return self._rows[split][1]
        stage.latent_shape(self.source.shape)  # the sentence about a shape that it does not take
        check_same("images or first stages", {split: key}, "give all ranks the same data and the same first stage")
        n, device = len(images), self._device(stage)

        def layout() -> Rows:
            shape = self._encoded(stage, images[:1].to(device), mirrors).shape[1:]
            return Rows(n, tuple(shape), self.precision)

        def compute(start: int, stop: int) -> Tensor:
            parts = []
            for first in range(start, stop, AT_ONCE):
                made = self._encoded(stage, images[first : min(first + AT_ONCE, stop)].to(device), mirrors)
                self._check_finite(made, split, first)
                parts.append(made.cpu())
            return torch.cat(parts)

        rows = filled(key, n, layout, compute, f"latents of the {split} images", self.max_memory_gib)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what encoding took is free for the latents themselves
        self._rows[split] = key, rows
        return rows

    @torch.no_grad()
    def _encoded(self, stage: FirstStage, images: Tensor, mirrors: int) -> Tensor:
        encode = partial(packed, dtype=TYPES[self.precision])
        return encode([stage.moments(x) for x in (images, images.flip(3))[:mirrors]])

    def _check_finite(self, rows: Tensor, split: str, first: int) -> None:
        finite = rows.isfinite().flatten(1).all(1)
        if not finite.all():
            at, fix = first + int(finite.logical_not().nonzero()[0]), "give the first stage precision: float32"
            if self.precision == "float16":
                fix += ", or the data, if they pass the largest number of float16"
            raise ValueError(f"the latent of image {at} of the {split} images is not finite in {self.precision}: {fix}")

    def _stage(self) -> FirstStage:
        """The first stage of the model that is trained, else that of the data."""
        model = getattr(self.trainer.lightning_module if self.trainer else None, "first_stage", None)
        found = model or self.first_stage
        if found is None:
            raise ValueError(
                "Latents have no first stage, and there is no model with one: give Latents a first_stage, or the model"
            )
        _check_latent(found, self.source)
        if None not in (self.first_stage, model) and self.first_stage.key() != found.key():  # type: ignore[union-attr]
            raise ValueError(
                f"the first stage of the data is {self.first_stage.key()}, but that of the model is "  # type: ignore[union-attr]
                f"{found.key()}: leave the data's first_stage out, or give both the same"
            )
        return found

    def _device(self, stage: FirstStage) -> torch.device:
        """Where it encodes: on the training's device, else where its own tensors are."""
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            stage.to(device)
            return device
        own = next((x.device for x in (*stage.parameters(), *stage.buffers())), torch.device("cpu"))
        if own.type == "cpu" and torch.cuda.is_available():
            rank_zero_warn("the first stage is on the CPU, where encoding takes long: move it to a GPU by .to('cuda')")
        return own


def _check_latent(stage: FirstStage, source: Images) -> None:
    """Raise ValueError if a first stage makes no latents."""
    if not stage.latent:
        raise ValueError(
            f"Latents keep what a first stage makes of images, but {type(stage).__name__} leaves them pixels: give the "
            f"model a first stage that has latents, such as Pretrained, or take {type(source).__name__} itself as the "
            "data"
        )
