"""Algorithm 1 of DDPM as a LightningModule, and Algorithm 2 as its verb `generate`.

    repeat: x_0 ~ q(x_0);  t ~ Uniform(1 … T);  ε ~ N(0, I);  step on ∇‖ε - ε_θ(√ᾱ_t·x_0 + √(1 - ᾱ_t)·ε, t)‖²

If the network predicts the variance, L_hybrid = L_simple + λ·L_vlb trains it; the test is the bound in bits/dim.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..conditioning import Conditioner
from ..denoising import Parameterization
from ..first_stages import FirstStage
from ..likelihood import VLB
from ..objectives import Simple, TimestepSampler, Uniform, Weighting
from ..random import Draw
from ..schedules import Schedule
from .base import latents
from .base.batches import Step
from .base.lora import LoRA
from .base.loss import LEVELS, Loss
from .base.trains_denoiser import TrainsDenoiser


class Diffusion(TrainsDenoiser):
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
        super().__init__(
            network, schedule, shape, parameterization, rescale_timesteps, first_stage, conditioner, optimizer,
            lr_scheduler, seed, compile,
        )  # fmt: skip
        self.timesteps = timesteps or Uniform()
        self.timesteps.prepare(schedule)
        latents.check_bound(self.first_stage, vlb)
        self.vlb = vlb or VLB()
        self.loss = Loss(weighting or Simple(), vlb_weight, self.predicts_variance)
        if lora is not None:
            lora.join(self, network)
        self.lora = lora

    def _times(self, step: Step) -> tuple[Tensor, Tensor]:
        return self.timesteps(self.schedule, step.draw, step.total)

    def _learn(self, step: Step, t: Tensor, losses: Tensor) -> None:
        if self.timesteps.learns and (of_all := self.feed.whole_step(self, step, t, losses)):
            self.timesteps.update(*of_all)

    def _losses(self, x_0: Tensor, t: Tensor, draw: Draw, y: Any = None) -> Tensor:
        eps = draw.normal("eps", x_0)
        x_t = self.schedule.q_sample(x_0, t, eps)
        prediction = self.denoiser(x_t, t, self.conditioner(y))
        levels = LEVELS if self.first_stage.latent else self.levels
        return self.loss(self.denoiser, x_0, eps, t, prediction, levels)
