"""A loader's batches for a module: images and conditions in one form, checked before training, and their numbers.

A batch is `(image, y)`, a list of the two, a dict that names them by a usual key, or images alone, for a model without
condition. Images are floats in [-1, 1], of any precision, or bytes 0 … levels - 1, which become such floats; labels are
whole numbers, (B,) or (B, 1), captions a list of strings; a model of several conditions takes a dict of them. In the
place of images there may be the `Moments` that a first stage made of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ... import random
from ...conditioning.base import LABEL, value
from ...networks.base.moments import Moments

IMAGE = ("image", "images", "pixel_values", "img", "x")  # the usual keys of a dict, the first that it has
LOADERS = {"training": "train_dataloader", "validation": "val_dataloaders", "test": "test_dataloaders"}  # a trainer's

OVERSHOOT = 0.01  # how far bicubic resizing may leave [-1, 1]
DARK = 0.1  # images in [0, 1] have a pixel below it; of images in [-1, 1], a batch without any below 0 is rare


def unpacked(batch: Any, keys: Sequence[str] = LABEL) -> tuple[Any, Any]:
    """The images and the conditions of a batch, None for what it does not have.

    Args:
        batch: see the module.
        keys: under which the conditions may stand in a dict, the first that it has; none is the whole dict.
    """
    image, y = batch, None
    if isinstance(batch, Mapping):
        image, y = value(batch, IMAGE), batch
    elif isinstance(batch, list | tuple):
        image, y = batch[0] if len(batch) else None, batch[1] if len(batch) > 1 else None
    return image, value(y, keys) if isinstance(y, Mapping) and keys else y


def size(batch: Any) -> int:
    """The number of images in a batch; 0 if it is unknown."""
    image, _ = unpacked(batch)
    image = image.mean if isinstance(image, Moments) else image
    return len(image) if isinstance(image, Tensor) and image.ndim else 0


def block(loader: Any) -> int | None:
    """Images in a full batch of a loader whose ranks take one block each, rank after rank; None for any other."""
    return getattr(getattr(loader, "sampler", None), "batch_size", None)


class Step(NamedTuple):
    """A batch's place in its optimizer step.

    `draw` is for its samples; it is batch number `micro` of those that a step takes, has `total` images with those of
    all ranks, and `to_come` batches follow.
    """

    draw: random.Draw
    micro: int
    total: int
    to_come: int


class Feed(Callback):
    """The batches of one module, by stage: `training`, `validation` or `test`; one that gives none is an error.

    Lightning takes a loader without batches for a run that is done.
    """

    def __init__(self) -> None:
        self._looked: set[str] = set()
        self._seen: dict[str, int] = {}
        self._recent: list[tuple[Tensor, ...]] = []  # of the step's earlier batches

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._looked.clear()
        self._seen.clear()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        check_loader(trainer, "validation")
        self._rest = trainer.global_step > 0  # the first epoch is the rest of one

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seen["training"] = 0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_seen("training", allowed=self._rest)
        self._rest = False

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seen["validation"] = 0

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_seen("validation")

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seen["test"] = 0

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_seen("test")

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if (of := {"fit": "training", "validate": "validation", "test": "test"}.get(stage)) is not None:
            check_loader(trainer, of)

    def _check_seen(self, stage: str, allowed: bool = False) -> None:
        """Raise ValueError if a stage had no batch; the rest of an epoch in which a run was stopped may have none."""
        if not self._seen.get(stage, 0) and not allowed:
            raise _empty(stage)

    def take(self, module: Any, batch: Any, stage: str) -> tuple[Any, Any]:
        """The images (B, C, H, W), or their `Moments`, and y of a batch.

        The first one of a stage is looked at before anything is learned of it.

        Raises:
            ValueError: if it is nothing to train on.
        """
        image, y = unpacked(batch, module.conditioner.keys)
        own, first = block(getattr(module.trainer, LOADERS[stage])) is not None, stage not in self._looked
        if first:
            what = f"the first {stage} batch"
            if isinstance(image, Moments):
                check_moments(image, what, getattr(module, "latent_shape", None))
            else:
                check_form(batch, image, what, module.shape)
                check_values(image, what, module.levels, own)
            check_labels(batch, y, what, module.conditioner)
            self._looked.add(stage)
        if isinstance(y, Tensor):
            y = y if y.is_floating_point() else (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y).long()
        y = module.conditioner.of_batch(y)
        if not own and y is not None and (first or (isinstance(y, Tensor) and y.device.type == "cpu")):
            module.conditioner.check(y)  # no step waits for a GPU
        if isinstance(image, Moments):
            return image.float(), y
        if not image.is_floating_point():
            image = image.float() / ((module.levels - 1) / 2) - 1
        return image.float() if module.dtype == torch.float32 else image, y

    def numbers(self, module: Any, stage: str, position: int, size: int) -> Tensor:
        """(B,) the numbers of this rank's samples among those of all ranks.

        Where ranks take blocks, see `block`, they are numbered as the blocks follow one another. Elsewhere ranks take
        turns image by image, as torch's DistributedSampler has it: ranks · (this rank's images before) + rank.

        Args:
            module: with its trainer.
            stage: of the batch.
            position: of the batch in its optimizer step, or in its evaluation; 0 counts anew.
            size: of the batch.
        """
        before = self._seen.get(stage, 0) if position else 0
        self._seen[stage] = before + size
        full = block(getattr(module.trainer, LOADERS[stage]))
        if full is not None:
            return in_blocks(position, full, size, module.trainer.world_size, module.global_rank, module.device)
        own = torch.arange(before, before + size, device=module.device)
        return own * module.trainer.world_size + module.global_rank

    def whole_step(self, module: Any, step: Step, *columns: Tensor) -> list[Tensor] | None:
        """Each example's values (B,) put together over a step's batches and ranks, in the order of the samples.

        None until the step's last batch; a collective call then.
        """
        self._recent = [*(self._recent if step.micro else []), (step.draw.sample, *columns)]
        if step.to_come:
            return None
        gathered: list[Any] = [module.all_gather(torch.cat(column)) for column in zip(*self._recent, strict=True)]
        sample, *found = (column.flatten() for column in gathered)
        self._recent = []
        order = sample.argsort()
        return [column[order] for column in found]

    def in_step(self, module: Any, batch_idx: int, size: int) -> Step:
        """Of training batch number `batch_idx` of an epoch, whose dropout masks are drawn from here on.

        Dropout draws from the device's generator: exact on resume, though not across numbers of devices. Batches to
        come are taken to be as large as this one: of an epoch, only the last is smaller. An epoch that ends in the
        middle of a step ends the step.
        """
        trainer = module.trainer
        micro = batch_idx % trainer.accumulate_grad_batches
        to_come = int(min(trainer.accumulate_grad_batches - micro, trainer.num_training_batches - batch_idx)) - 1
        place = random.state(module.seed, "training: dropout", module.global_step, micro, module.global_rank)
        random.seed_generator(module.device, place)
        sample = self.numbers(module, "training", micro, size)
        total = (self._seen["training"] + to_come * size) * trainer.world_size
        return Step(random.Draw(module.seed, "training", module.global_step, sample), micro, total, to_come)


def in_blocks(position: int, full: int, size: int, world: int, rank: int, device: torch.device | str) -> Tensor:
    """(size,) numbers of a rank's samples if batches of `full` a device follow one another rank by rank."""
    first = (position * world + rank) * full
    return torch.arange(first, first + size, device=device)


def check_loader(trainer: Any, stage: str) -> None:
    """Raise ValueError if a loader has no batches; Lightning would skip it and end well."""
    count = {"training": "num_training_batches", "validation": "num_val_batches", "test": "num_test_batches"}[stage]
    found = getattr(trainer, count)
    if getattr(trainer, LOADERS[stage]) is not None and (sum(found) if isinstance(found, list) else found) == 0:
        raise _empty(stage)


def _empty(stage: str) -> ValueError:
    return ValueError(
        f"the {stage} loader gives no batch: give it a data set with images, and at least batch_size of them if it "
        "drops the last, smaller batch"
    )


def check_form(batch: Any, image: Any, what: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a batch has no images (B, C, H, W) of the model's shape (C, H, W)."""
    if image is None:
        found = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "nothing"
        raise ValueError(f"{what} holds {found}, but no images: name them {' or '.join(IMAGE)}, or give (image, y)")
    if not isinstance(image, Tensor):
        raise ValueError(
            f"the images of {what} are a {type(image).__name__}, but a model takes one tensor (B, C, H, W): convert "
            "them in the data set or the loader's collate_fn"
        )
    sizes, (channels, height, width) = list(image.shape), shape
    if sizes[1:] == list(shape) and sizes[0]:
        return
    fix = "set the model's shape, and the network's channels and size, to the data's"
    if sizes[1:] == [height, width, channels]:
        fix = "put the channels first, such as by permute(0, 3, 1, 2)"
    elif sizes == list(shape):
        fix = "let the loader make batches, by its batch_size"
    elif channels == 1 and sizes[1:] == [height, width]:
        fix = "add the channel, such as by unsqueeze(1)"
    elif 0 in sizes:
        fix = "let no batch be empty"
    model = f"[B, {channels}, {height}, {width}]"
    raise ValueError(f"the images of {what} have shape {sizes}, but the model takes {model}: {fix}")


def check_moments(found: Moments, what: str, shape: tuple[int, ...] | None) -> None:
    """Raise ValueError if moments are not of the latents (C, H, W) that a model diffuses."""
    if list(found.mean.shape[1:]) != list(shape or ()):
        raise ValueError(
            f"{what} holds latents of shape {list(found.mean.shape[1:])}, but the model diffuses "
            f"{'pixels' if shape is None else f'those of shape {list(shape)}'}: give model and data the same first "
            "stage"
        )


def check_values(image: Tensor, what: str, levels: int, certain: bool) -> None:
    """Raise ValueError if images are neither floats in [-1, 1] nor bytes 0 … levels - 1.

    Args:
        image: (B, C, H, W).
        what: how the batch is called.
        levels: values of a pixel.
        certain: the images were made of bytes, so that none in [0, 1] are mistaken for others.
    """
    if image.is_complex() or image.dtype == torch.bool:
        raise ValueError(f"the images of {what} are {_name(image)}: give floats in [-1, 1], or bytes (uint8)")
    if not image.isfinite().all():
        at = int(image.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
        raise ValueError(f"image {at} of {what} holds values that are not finite: find where the data set makes them")
    low, high = (float(x) for x in image.aminmax())
    span = f"the images of {what} are {_name(image)} from {low:.4g} to {high:.4g}"
    if not image.is_floating_point():
        if low < 0 or high > levels - 1:
            raise ValueError(f"{span}, but whole numbers are bytes 0 … {levels - 1}: give those, or floats in [-1, 1]")
        if high == 1 < levels - 1:
            raise ValueError(
                f"{span}, but bytes are 0 … {levels - 1}, of which 1 is nearly black: give these, floats in [-1, 1], "
                "or a data module whose `levels` is 2"
            )
    elif low < -1 - OVERSHOOT or high > 1 + OVERSHOOT:
        bytes_like = low >= 0 and high > 2
        fix = "give x/127.5 - 1, or bytes (uint8)" if bytes_like else "scale them by fixed numbers, and clamp them"
        raise ValueError(f"{span}, but the model takes [-1, 1]: {fix}")
    elif low >= 0 and not certain:
        if low < DARK and low < high:
            raise ValueError(f"{span}, which is [0, 1], but the model takes [-1, 1]: give 2·x - 1")
        rank_zero_warn(
            f"{span}: in [-1, 1], which the model takes, they have no dark pixel; give 2·x - 1 if 0 is black"
        )


def check_labels(batch: Any, y: Any, what: str, conditioner: Any) -> None:
    """Raise ValueError if a model with a condition gets none, or not one for each image."""
    if not conditioner.conditional:
        return
    kind, takes = type(conditioner).__name__, " and ".join(conditioner.takes)
    if y is None:
        found = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "images alone"
        keys = conditioner.keys or LABEL
        raise ValueError(
            f"{what} holds {found}, but the conditioner is {kind}, which takes {takes}: give (image, y), "
            f"name them {' or '.join(keys[:3])}, or leave the conditioner out"
        )
    if isinstance(y, Mapping):
        return
    if hasattr(y, "__len__") and len(y) != size(batch):
        raise ValueError(f"{what} has {size(batch)} images, but {len(y)} {takes}: give one for each image")


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
