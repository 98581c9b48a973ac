"""Algorithm 1 of DDPM as a LightningModule, and Algorithm 2 as its verb `generate`.

    repeat: x_0 ~ q(x_0);  t ~ Uniform(1 … T);  ε ~ N(0, I);  step on ∇‖ε - ε_θ(√ᾱ_t·x_0 + √(1 - ᾱ_t)·ε, t)‖²

Every draw is a function of (seed, purpose, optimizer step, number of the sample in the global batch), and of nothing
else: ranks draw different noise, and a run does not depend on how many devices share a global batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random
from ..denoising import Denoiser, Epsilon, Parameterization
from ..objectives import Simple, TimestepSampler, Uniform, Weighting
from ..samplers import Sampler
from ..schedules import Schedule

Batch = Sequence[Tensor]


class Diffusion(LightningModule):
    """A denoiser and its training on batches `(image, y)`, images (B, C, H, W) in [-1, 1].

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, algorithms 1 and 2.

    Args:
        network: `forward(x_t, index, c) -> (B, C, H, W)`, any `nn.Module`.
        schedule: ᾱ_t.
        shape: (C, H, W) of one image.
        parameterization: what the network outputs; None is `Epsilon()`.
        timesteps: how t is drawn; None is `Uniform()`.
        weighting: how much each example counts; None is `Simple()`.
        optimizer: given the parameters, makes the optimizer.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, stepped once an optimizer step;
            None holds it constant.
        seed: the seed of all draws of the training.

    Raises:
        ValueError: where the network does not take and return images of this shape.
    """

    denoiser: Denoiser

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: Sequence[int],
        parameterization: Parameterization | None = None,
        timesteps: TimestepSampler | None = None,
        weighting: Weighting | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape is {list(shape)}, but an image has three sizes: give [channels, height, width]")
        self.shape = tuple(shape)
        self.denoiser = Denoiser(network, schedule, parameterization or Epsilon())
        self.timesteps = timesteps or Uniform()
        self.weighting = weighting or Simple()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = seed
        self._try_network()

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """The denoiser's `Prediction` at x_t."""
        return self.denoiser(x_t, t, c)

    # Training: algorithm 1

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and beside it each example's own, its t and its number in the global batch."""
        x_0, step = batch[0], self.global_step
        micro = batch_idx % self.trainer.accumulate_grad_batches
        # Dropout draws from the device's generator: exact on resume, though not across numbers of devices.
        torch.manual_seed(random.state(self.seed, "training: dropout", step, micro, self.global_rank))
        sample = self._numbers(micro, len(x_0), len(x_0))
        t, losses = self._losses(x_0, "training", step, sample)
        loss = losses.mean()
        self.log("train/loss", loss, batch_size=len(x_0), sync_dist=True)
        return {"loss": loss, "losses": losses.detach(), "t": t, "sample": sample}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val/loss", batch, batch_idx, self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test/loss", batch, batch_idx, self.trainer.test_dataloaders)

    def _evaluate(self, key: str, batch: Batch, batch_idx: int, loader: Any) -> None:
        """The loss with draws that are the same in every round, so that rounds can be compared."""
        x_0 = batch[0]
        full = getattr(getattr(loader, "sampler", None), "batch_size", None) or len(x_0)
        _, losses = self._losses(x_0, "evaluation", 0, self._numbers(batch_idx, full, len(x_0)))
        self.log(key, losses.mean(), on_epoch=True, sync_dist=True, batch_size=len(x_0))

    def _losses(self, x_0: Tensor, purpose: str, step: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) each example's t and its loss, t and ε drawn for these sample numbers (B,)."""
        schedule = self.schedule
        t = self.timesteps(schedule, self.seed, f"{purpose}: t", step, sample)
        eps = random.normal(x_0.shape[1:], self.seed, f"{purpose}: eps", step, sample).to(x_0)
        output = self.denoiser.output(schedule.q_sample(x_0, t, eps), t)
        target = self.denoiser.parameterization.target(schedule, x_0, eps, t)
        error = F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
        return t, self.weighting(schedule, t) * error

    def _numbers(self, position: int, full: int, size: int) -> Tensor:
        """Numbers of this rank's samples when batches of `full` a device follow one another rank by rank."""
        first = (position * self.trainer.world_size + self.global_rank) * full
        return torch.arange(first, first + size, device=self.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        self._check_rate(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        self._check_rate(self.lr_schedulers())  # by now a resumed run has restored its own

    def _check_rate(self, scheduler: Any) -> None:
        """Refuses a schedule of the learning rate that ends before the run does."""
        total, steps = getattr(scheduler, "total_steps", None), self.trainer.max_steps
        if total is not None and steps > total:
            raise ValueError(
                f"the learning rate's schedule ends at step {total}, but the run goes on to step {steps}: set the "
                "lr_scheduler's total_steps to trainer.max_steps (a resumed run keeps the schedule it began with)"
            )

    # Sampling: algorithm 2, or any other

    @torch.no_grad()
    def generate(
        self,
        n: int,
        sampler: Sampler,
        y: Tensor | None = None,
        guidance: Callable[[nn.Module], nn.Module] | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
    ) -> Tensor:
        """Samples number `first` … `first + n - 1` of a seed, (n, C, H, W) in [-1, 1], without dropout.

        Sample number i depends on the seed and on i alone: bitwise at the same batch size, else to rounding.

        Args:
            n: how many.
            sampler: the reverse loop.
            y: None; this model has no condition.
            guidance: wraps the denoiser.
            seed: of all the noise, x_T included.
            first: the first sample's number.
            batch_size: work in blocks of numbers aligned to it, each made whole and cut to what was asked for;
                None makes the n samples in one batch.

        Raises:
            ValueError: where y is given to a model without condition, or n < 1.
        """
        if y is not None:
            raise ValueError("y was given, but this model was trained without a condition: leave y out")
        if n < 1 or first < 0:
            raise ValueError(f"samples number {first} … {first + n - 1} are none: give n ≥ 1 and first ≥ 0")
        denoise = guidance(self.denoiser) if guidance else self.denoiser
        start, size = (first, n) if batch_size is None else (first - first % batch_size, batch_size)
        blocks = []
        was_training = self.denoiser.training
        self.denoiser.eval()
        try:
            for block in range(start, first + n, size):
                seeds = random.seeds(seed, "sample", torch.arange(block, block + size, device=self.device))
                x_T = random.normal(self.shape, seeds, "x_T", self.schedule.T, torch.zeros_like(seeds))
                blocks.append(sampler(denoise, self.schedule, x_T, seeds=seeds))
        finally:
            self.denoiser.train(was_training)
        return torch.cat(blocks)[first - start : first - start + n].clamp(-1, 1)

    def predict_step(self, batch: dict, batch_idx: int) -> Tensor:
        """A batch of `predict` is what to ask of `generate`."""
        return self.generate(**batch)

    # Checks before training starts

    @torch.no_grad()
    def _try_network(self) -> None:
        """One image through the network, so that a misfit shows where the model is built."""
        network = self.denoiser.network
        was_training = network.training
        image = torch.zeros(1, *self.shape)
        try:
            output = network.eval()(image, torch.zeros(1, dtype=torch.long), None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the network does not take images of shape {list(self.shape)} ({reason}): "
                "make the network's arguments and the model's shape agree"
            ) from error
        finally:
            network.train(was_training)
        if output.shape != image.shape:
            raise ValueError(
                f"the network turns images of shape {list(self.shape)} into {list(output.shape[1:])}, but the noise "
                "it predicts has the images' shape: make its output channels and size those of its input"
            )

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        shape = tuple(getattr(data, "shape", self.shape))
        if shape != self.shape:
            raise ValueError(
                f"the data's images have shape {list(shape)}, but the model's shape is {list(self.shape)}: "
                "set the model's shape, and the network's channels and size, to the data's"
            )
