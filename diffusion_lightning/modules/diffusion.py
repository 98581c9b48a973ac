"""Algorithm 1 of DDPM as a LightningModule, and Algorithm 2 as its verb `generate`.

    repeat: x_0 ~ q(x_0);  t ~ Uniform(1 … T);  ε ~ N(0, I);  step on ∇‖ε - ε_θ(√ᾱ_t·x_0 + √(1 - ᾱ_t)·ε, t)‖²

Every draw is a function of (seed, purpose, optimizer step, number of the sample in the global batch) alone:
ranks draw different noise, and a run does not depend on how many devices share a global batch.

If the network predicts the variance, L_hybrid = L_simple + λ·L_vlb trains it; the test is the bound in bits/dim.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random
from ..conditioning import Conditioner, Unconditional
from ..conditioning.base import Embedded, example
from ..denoising import Denoiser, Epsilon, Parameterization
from ..distributed import fsdp
from ..first_stages import FirstStage, PixelSpace
from ..guidance import Guided, guided
from ..likelihood import VLB
from ..objectives import Simple, TimestepSampler, Uniform, Weighting
from ..random import Draw
from ..samplers import Sampler
from ..schedules import Schedule
from .base import batches, checks, compiling, device, latents, optimizers
from .base.evaluated import Evaluated
from .base.lora import LoRA
from .base.loss import LEVELS, Loss
from .base.shapes import operations


class Diffusion(Evaluated):
    """A denoiser and its training on batches `(image, y)`, images (B, C, H, W) in [-1, 1], and others: `base.batches`.

    The loss of an example is w·‖target - output‖² + λ·T·L_{t-1}: see `base.loss`.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, algorithms 1 and 2;
    Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 16.

    Args:
        network: `forward(x_t, index, c) -> (B, C or 2C, H, W)`, any `nn.Module`; with 2C it predicts the variance too.
        schedule: ᾱ_t.
        shape: (C, H, W) of one image; None asks the network, (in_channels, size, size), of which a first stage makes
            the image's.
        parameterization: what the network outputs; None is `Epsilon()`.
        rescale_timesteps: feed the network 1000/T·(t - 1), as IDDPM does, and not t - 1.
        first_stage: the way to the latents that the network diffuses, and back; None is `PixelSpace()`, no stage.
        conditioner: embeds y for the network; None is `Unconditional()`.
        timesteps: how t is drawn; None is `Uniform()`.
        weighting: w, the weight of each squared error; None is `Simple()`, and `ZeroWeight()` leaves the bound alone.
        vlb_weight: λ, at least 0; None is 0.001 if the network predicts the variance, 1 under `ZeroWeight()`, else 0.
        vlb: which reverse process `test` measures; None is `VLB()`.
        optimizer: given the parameters, makes the optimizer.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, stepped once an optimizer step;
            None holds it constant.
        lora: the adapters that are trained in the place of all else, which is frozen; None trains all.
        seed: the seed of all draws of the training.
        compile: let torch.compile make code of the network when a trainer first calls it: minutes at the start and
            at the first validation, shorter steps after it. Outside of a trainer, `compile()` does so.

    Raises:
        ValueError: if the network does not take and return images of this shape, or nothing would train it.
    """

    denoiser: Denoiser
    keeps_rate = True  # a resumed run goes on with the checkpoint's schedule of the learning rate

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: Sequence[int] | None = None,
        parameterization: Parameterization | None = None,
        rescale_timesteps: bool = False,
        first_stage: FirstStage | None = None,
        conditioner: Conditioner | None = None,
        timesteps: TimestepSampler | None = None,
        weighting: Weighting | None = None,
        vlb_weight: float | None = None,
        vlb: VLB | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        lora: LoRA | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.first_stage, self.T = first_stage or PixelSpace(), schedule.T
        self.shape, self.latent_shape = latents.shapes(shape, network, self.first_stage)
        self.denoiser = Denoiser(network, schedule, parameterization or Epsilon(), rescale_timesteps)
        self.conditioner = conditioner or Unconditional()
        self.conditioner.join(network)
        self.timesteps = timesteps or Uniform()
        self.timesteps.prepare(schedule)
        latents.check_bound(self.first_stage, vlb)
        self.vlb = vlb or VLB()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = random.check_seed(seed, "the model's seed")
        self.compiles = compile
        self.predicts_variance = checks.predicts_variance(network, self.latent_shape, self.conditioner)
        self.loss = Loss(weighting or Simple(), vlb_weight, self.predicts_variance)
        if lora is not None:
            lora.join(self, network)
        self.lora = lora
        self.feed, self.whole = batches.Feed(), fsdp.WholeInEvaluations()

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def forward(self, x_t: Tensor, t: int | Tensor, c: Embedded = None) -> tuple[Tensor, ...]:
        """The denoiser's `Prediction` at x_t."""
        return self.denoiser(x_t, t, c)

    # Training: algorithm 1

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and beside it each example's own, its t and its number in the global batch."""
        image, y = self.feed.take(self, batch, "training")
        step = self.feed.in_step(self, batch_idx, batches.size(batch))
        x_0 = self.first_stage.encode(image, step.draw)
        t, importance = self.timesteps(self.schedule, step.draw, step.total)
        losses = self._losses(x_0, t, step.draw, self.conditioner(self.conditioner.dropped(y, step.draw)))
        if self.timesteps.learns and (of_all := self.feed.whole_step(self, step, t, losses.detach())):
            self.timesteps.update(*of_all)
        loss = (importance.to(losses) * losses).mean()
        if self.logs:
            self.log("train/loss", loss, batch_size=len(x_0), sync_dist=True)
        return {"loss": loss, "losses": losses.detach(), "t": t, "sample": step.draw.sample}

    def _losses(self, x_0: Tensor, t: Tensor, draw: Draw, c: Embedded = None) -> Tensor:
        """(B,) each example's loss at times t (B,) given c."""
        eps = draw.normal("eps", x_0)
        x_t = self.schedule.q_sample(x_0, t, eps)
        prediction = self.denoiser(x_t, t, c)
        levels = LEVELS if self.first_stage.latent else self.levels
        return self.loss(self.denoiser, x_0, eps, t, prediction, levels)

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

    # Sampling: algorithm 2, or any other

    def draw(self, seeds: Tensor, y: Tensor, sampler: Callable[..., Tensor] | None, guidance: Guided) -> Tensor:
        sampler = latents.sampler_of(self.first_stage, sampler)
        denoise = guided(self.denoiser, self.conditioner, y, guidance)
        x_T = random.normal(self.latent_shape, seeds, "x_T", self.schedule.T, torch.zeros_like(seeds))
        x_T = x_T.to(self.denoiser.dtype)
        return self.decoded(sampler(denoise, self.schedule, x_T, c=self.conditioner(y), seeds=seeds))

    def decoded(self, x: Tensor) -> Tensor:
        return self.first_stage.decode(x)

    def check(self, sampler: Sampler | None, guidance: Guided = None) -> None:
        latents.sampler_of(self.first_stage, sampler).times(self.schedule)
        checks.check_guidance(guidance, self)
        first = self.labels(guidance).default(torch.zeros(1, dtype=torch.long, device=self.device))
        guided(self.denoiser, self.conditioner, first, guidance)

    def own_sampler(self) -> Sampler:
        return latents.sampler_of(self.first_stage, None)

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
