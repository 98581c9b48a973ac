"""A classifier of noisy images as a LightningModule; `guidance.ClassifierGuided` draws images of a class with it.

    repeat: (x_0, y) ~ data;  t ~ Uniform(1 … T);  ε ~ N(0, I);  step on -∇log p(y | √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε, t)

Its draws are those of `Diffusion`: functions of (seed, purpose, optimizer step, number of the sample) alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random
from ..conditioning import Labels
from ..denoising import weights_dtype
from ..distributed import fsdp
from ..objectives import TimestepSampler, Uniform
from ..random import Draw
from ..schedules import Schedule
from .base import batches, checks, device, optimizers


class NoisyClassifier(LightningModule):
    """p(y | x_t) and its training on batches `(image, y)`, images (B, C, H, W) in [-1, 1], labels (B,).

    The loss of an example is -log p(y | x_t), in nats. `val/accuracy` is of uniform times, many of which are too noisy
    for any classifier: it stays far below 1.

    Paper: Diffusion models beat GANs on image synthesis. Dhariwal, Nichol, 2021, arXiv 2105.05233, section 4.

    Args:
        network: `forward(x_t, time, c) -> (B, classes)`, such as `HalfUNet`; it is fed 1000/T·(t - 1), and c is None.
        schedule: ᾱ_t, best that of the model that it will guide.
        classes: how many; None asks the network for its `classes`.
        shape: (C, H, W) of one image; None asks the network, (in_channels, size, size).
        timesteps: how t is drawn; None is `Uniform()`.
        optimizer: given the parameters, makes the optimizer.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, stepped once an optimizer step;
            None holds it constant.
        seed: the seed of all draws of the training.

    Raises:
        ValueError: if the network does not give a number for each class.
    """

    serves = "let it guide a Diffusion, by the guidance ClassifierGuided with this checkpoint as its classifier"
    levels = 256  # values of a pixel, unless the data have others
    class_names: list[str] | None = None

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        classes: int | None = None,
        shape: Sequence[int] | None = None,
        timesteps: TimestepSampler | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = checks.image_shape(shape, network)
        self.network, self.schedule = network, schedule
        self.conditioner = Labels(checks.classes(classes, network, self.shape))
        self.timesteps = timesteps or Uniform()
        self.timesteps.prepare(schedule)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed = random.check_seed(seed, "the model's seed")
        self.feed = batches.Feed()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) at x_t (B, C, H, W) and times t (B,) in 1 … T, in the type of the network's weights."""
        time = (t - 1).float() * (1000 / self.schedule.T)
        dtype = weights_dtype(self.network)
        cast = dtype is not None and not torch.is_autocast_enabled(x_t.device.type)
        return self.network(x_t.to(dtype) if cast else x_t, time, None)

    def log_probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, classes) log p(y | x_t) in x_t's type."""
        return self(x_t, t).to(x_t.dtype).log_softmax(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x_0, y = self.feed.take(self, batch, "training")
        step = self.feed.in_step(self, batch_idx, len(x_0))
        t, importance = self.timesteps(self.schedule, step.draw, step.total)
        losses, right = self._classified(x_0, y, t, step.draw)
        loss = (importance.to(losses) * losses).mean()
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for name, value in (("loss", loss), ("accuracy", right.mean())):
                self.log(f"train/{name}", value, batch_size=len(x_0), sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, stage: str = "validation") -> None:
        x_0, y = self.feed.take(self, batch, stage)
        draw = Draw(self.seed, "evaluation", 0, self.feed.numbers(self, stage, batch_idx, len(x_0)))
        t, _ = Uniform()(self.schedule, draw, len(x_0))
        prefix = {"validation": "val", "test": "test"}[stage]
        for name, values in zip(("loss", "accuracy"), self._classified(x_0, y, t, draw), strict=True):
            self.log(f"{prefix}/{name}", values.mean(), on_epoch=True, sync_dist=True, batch_size=len(x_0))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test")

    def _classified(self, x_0: Tensor, y: Tensor, t: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """(B,) each example's loss at times t (B,), and 1 if it is classified rightly, else 0."""
        logits = self(self.schedule.q_sample(x_0, t, draw.normal("eps", x_0)), t).float()
        return F.cross_entropy(logits, y, reduction="none"), (logits.argmax(1) == y).float()

    def configure_optimizers(self) -> Any:
        return optimizers.configured(self)

    def configure_callbacks(self) -> list:
        """Check the strategy: of Lightning's hooks the only one before the process group is set up.

        Raises:
            ValueError: if the strategy shards the parameters.
        """
        checks.check_strategy(self.trainer)
        if fsdp.shards(self.trainer):
            raise ValueError(
                "the strategy shards the parameters, but a NoisyClassifier is trained whole: set trainer.strategy to "
                "ddp"
            )
        return [self.feed]

    def setup(self, stage: str) -> None:
        """Take the pixel levels and class names of the data; raise ValueError if their images or labels do not fit."""
        data = getattr(self.trainer, "datamodule", None)
        self.levels = getattr(data, "levels", self.levels)
        self.class_names = getattr(data, "class_names", None) or self.class_names
        checks.check_data(data, self.shape, self.conditioner)
        device.prepare(self.network, self.trainer, False)
