"""All of a module that trains a denoiser but its loss: sampling, the optimizer, devices.

Every draw is a function of (seed, purpose, optimizer step, number of the sample in the global batch) alone: ranks draw
different noise, and a run does not depend on how many devices share a global batch.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ... import random
from ...conditioning import Conditioner, Unconditional
from ...conditioning.base import Embedded, example
from ...denoising import Denoiser, Epsilon, Parameterization
from ...distributed import fsdp
from ...first_stages import FirstStage, PixelSpace
from ...guidance import Denoise, Guided, guided
from ...random import Draw
from ...samplers import DDIM, Sampler
from ...schedules import Schedule
from . import batches, checks, compiling, device, latents, optimizers
from .evaluated import Evaluated
from .shapes import operations


class TrainsDenoiser(Evaluated):
    """A module whose network is a denoiser; a leaf draws the times and says the loss of an example.

    Args:
        network: `forward(x_t, index, c) -> (B, C or 2C, H, W)`, any `nn.Module`; with 2C it predicts the variance too.
        schedule: ᾱ_t.
        shape: (C, H, W) of one image; None asks the network, (in_channels, size, size), of which a first stage makes
            the image's.
        parameterization: what the network outputs; None is `Epsilon()`.
        rescale_timesteps: feed the network 1000/T·(t - 1), as IDDPM does, and not t - 1.
        first_stage: the way to the latents that the network diffuses, and back; None is `PixelSpace()`, no stage.
        conditioner: embeds y for the network; None is `Unconditional()`.
        optimizer: given the parameters, makes the optimizer.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, stepped once an optimizer step;
            None holds it constant.
        seed: the seed of all draws of the training.
        compile: let torch.compile make code of the network when a trainer first calls it.
    """

    places: ClassVar = {"network": "denoiser.network."}
    keeps_rate = True  # a resumed run goes on with the checkpoint's schedule of the learning rate

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: Sequence[int] | None,
        parameterization: Parameterization | None,
        rescale_timesteps: bool,
        first_stage: FirstStage | None,
        conditioner: Conditioner | None,
        optimizer: Callable[[Iterable], Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None,
        seed: int,
        compile: bool,
    ) -> None:
        super().__init__()
        self.first_stage, self.T = first_stage or PixelSpace(), schedule.T
        self.shape, self.latent_shape = latents.shapes(shape, network, self.first_stage)
        self.denoiser = Denoiser(network, schedule, parameterization or Epsilon(), rescale_timesteps)
        self.conditioner = conditioner or Unconditional()
        self.conditioner.join(network)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.seed = random.check_seed(seed, "the model's seed")
        self.compiles = compile
        self.predicts_variance = checks.predicts_variance(network, self.latent_shape, self.conditioner)
        self.feed, self.whole = batches.Feed(), fsdp.WholeInEvaluations()

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def forward(self, x_t: Tensor, t: int | Tensor, c: Embedded = None) -> tuple[Tensor, ...]:
        """The denoiser's `Prediction` at x_t."""
        return self.denoiser(x_t, t, c)

    # Training

    @abstractmethod
    def _times(self, step: batches.Step) -> tuple[Tensor, Tensor]:
        """(B,) the times of a training step's examples, and the weights of their losses."""

    def _learn(self, step: batches.Step, t: Tensor, losses: Tensor) -> None:
        """Takes note of a step's times and losses, (B,) each."""

    def _conditions(self, y: Any, draw: Draw) -> Any:
        """A training step's conditions, of which some are dropped."""
        return self.conditioner.dropped(y, draw)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and beside it each example's own, its t and its number in the global batch."""
        image, y = self.feed.take(self, batch, "training")
        step = self.feed.in_step(self, batch_idx, batches.size(batch))
        x_0 = self.first_stage.encode(image, step.draw)
        t, importance = self._times(step)
        losses = self._losses(x_0, t, step.draw, self._conditions(y, step.draw))
        self._learn(step, t, losses.detach())
        loss = (importance.to(losses) * losses).mean()
        if self.logs:
            self.log("train/loss", loss, batch_size=len(x_0), sync_dist=True)
        return {"loss": loss, "losses": losses.detach(), "t": t, "sample": step.draw.sample}

    def on_fit_start(self) -> None:
        latents.measure(self)

    # The optimizer

    def configure_optimizers(self) -> Any:
        return optimizers.configured(self)

    def configure_gradient_clipping(self, optimizer: Optimizer, *clip: Any, **more: Any) -> None:
        optimizers.clipped(self, optimizer, *clip, **more)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore; a resumed run keeps the learning-rate schedule that it began with, unless `keeps_rate` is false."""
        super().on_load_checkpoint(checkpoint)
        if self.fits and self.keeps_rate:
            optimizers.check_resumed(self, checkpoint)

    # Sampling

    def draw(self, seeds: Tensor, y: Tensor, sampler: Callable[..., Tensor] | None, guidance: Guided) -> Tensor:
        sampler = self._sampler(sampler)
        denoise, c = self._guided(y, guidance)
        x_T = random.normal(self.latent_shape, seeds, "x_T", self.schedule.T, torch.zeros_like(seeds))
        x_T = x_T.to(self.denoiser.dtype)
        return self.decoded(sampler(denoise, self.schedule, x_T, c=c, seeds=seeds))

    def _guided(self, y: Tensor, guidance: Guided) -> tuple[Denoise, Embedded]:
        """What is asked for conditions y (B,), and with which embedding of them."""
        return guided(self.denoiser, self.conditioner, y, guidance), self.conditioner(y)

    def decoded(self, x: Tensor) -> Tensor:
        return self.first_stage.decode(x)

    def encoded(self, images: Tensor) -> Tensor:
        """Latents of images, the means of their distributions; pixels are what they are."""
        return self.first_stage.scaled(self.first_stage.moments(images).mean)

    def check(self, sampler: Sampler | None, guidance: Guided = None) -> None:
        self._sampler(sampler).times(self.schedule)
        checks.check_guidance(guidance, self)
        first = self.labels(guidance).default(torch.zeros(1, dtype=torch.long, device=self.device))
        self._guided(first, guidance)

    def own_sampler(self) -> Sampler:
        return latents.sampler_of(self.first_stage, None)

    def drawn_by(self) -> tuple[type[Sampler], dict[str, Any]]:
        return DDIM, {"steps": min(50, self.schedule.T), "clip": self.own_sampler().clip}

    def _sampler(self, given: Any) -> Any:
        """The sampler that is given, else the module's own; raise ValueError if it clips latents."""
        return latents.sampler_of(self.first_stage, self.own_sampler() if given is None else given)

    def angles(self, sampler: Sampler) -> dict[int, float]:
        return sampler.angles(self.schedule)

    def operations(self) -> int:
        return operations(self.denoiser.network, self.latent_shape, self.conditioner(example(self.conditioner)))

    # Before training starts

    def configure_callbacks(self) -> list:
        """Check and prepare the strategy: of Lightning's hooks the only one before the process group is set up."""
        checks.check_strategy(self.trainer)
        if fsdp.shards(self.trainer):
            fsdp.prepare(self.trainer)
        return [self.feed, self.whole]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        device.prepare(self.denoiser.network, self.trainer, self.compiles and stage == "fit")

    def compile(self) -> None:
        """Has the network compiled for the device that it is on, for training and `generate` alike."""
        compiling.compile_network(self.denoiser.network, self.device)

    def configure_model(self) -> None:
        parts: list[tuple[nn.Module, str]] = [(self.denoiser, "network"), (self, "conditioner")]
        device.configure(self, self.denoiser.network, parts, self.compiles)
