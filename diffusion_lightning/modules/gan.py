"""A generative adversarial network as a LightningModule, beside `Diffusion` on the same data, metrics and commands.

    repeat: x ~ data;  z ~ N(0, I);  x̂ = G(z, y)
            step on log(1 + e^-(D(x̂) - D(x)))  for G,
            and on  log(1 + e^-(D(x) - D(x̂))) + γ/2·(‖∇D(x)‖² + ‖∇D(x̂)‖²)  for D

Both are one loss: its gradient is the generator's for the generator's weights and the discriminator's for its own, so
that devices, accumulated batches, precision and checkpoints need no more than Lightning has, and a step counts once.
Every draw is a function of (seed, purpose, step, number of the sample in the global batch) alone.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random
from ..conditioning import Conditioner, Unconditional
from ..conditioning.base import example
from ..denoising import weights_dtype
from ..guidance import Guided
from ..random import Draw
from .base import adversarial, checks
from .base.shapes import operations
from .base.trains_pair import TrainsPair


class Judge(nn.Module):
    """A discriminator and its own embedding of the condition: (x, y) to a number each (B,)."""

    def __init__(self, network: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        self.network, self.conditioner = network, conditioner

    def forward(self, image: Tensor, y: Tensor) -> Tensor:
        scores = self.network(image, self.conditioner(y))
        return scores if scores.dtype == torch.float64 else scores.float()


class Untimed(nn.Module):
    """A network that is given no time, as one that ignores it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, c: Any) -> Tensor:
        return self.network(x, c)


class GAN(TrainsPair):
    """A generator against a discriminator, on batches `(image, y)`, images (B, C, H, W) in [-1, 1].

    Paper: The GAN is dead; long live the GAN! A modern baseline GAN. Huang et al., 2024, arXiv 2501.05441.

    Args:
        network: the generator, `forward(z, c) -> (B, C, H, W)` of noise z (B, latent), its attribute.
        discriminator: `forward(image, c) -> (B,)`.
        shape: (C, H, W) of one image; None asks the network, (in_channels, size, size).
        conditioner: embeds y, for each of both networks one of its own; None is `Unconditional()`.
        gamma: γ, at least 0: the weight of both penalties at the first step, and from step `gamma_steps` on.
        gamma_steps: optimizer steps over which it goes from one to the other, by a cosine.
        optimizer: given the parameters as two groups, makes the optimizer of both networks.
        discriminator_rate: the discriminator's learning rate as a multiple of the optimizer's, above 0.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate; None holds it constant.
        seed: the seed of all draws of the training.

    Raises:
        ValueError: if a network does not take or give images of this shape, or a number is out of its range.
    """

    serves = "draw from it by predict, and use the checkpoint of a Diffusion here"
    places: ClassVar = {"discriminator": "discriminator.network."}
    makes = "a GAN makes an image"
    overflow = "the penalties' slopes are below the smallest"

    def __init__(
        self,
        network: nn.Module,
        discriminator: nn.Module,
        shape: Sequence[int] | None = None,
        conditioner: Conditioner | None = None,
        gamma: tuple[float, float] = (0.05, 0.05),
        gamma_steps: int = 40_000,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        discriminator_rate: float = 1.0,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, discriminator_rate, lr_scheduler, seed)
        self.shape = checks.image_shape(shape, network)
        self.conditioner = conditioner or Unconditional()
        if min(gamma) < 0 or max(gamma) == math.inf or gamma_steps < 1:
            raise ValueError(
                f"gamma is {list(gamma)} over {gamma_steps} steps, but it weighs a penalty: give two numbers of at "
                "least 0, and gamma_steps ≥ 1"
            )
        self.network: Any = network
        self.latent = check_generator(network)
        self.discriminator = Judge(discriminator, copy.deepcopy(self.conditioner))
        check_discriminator(discriminator)
        self.conditioner.join(network)
        self.discriminator.conditioner.join(discriminator)
        self._check_networks()
        self.gamma, self.gamma_steps = gamma, gamma_steps

    @torch.no_grad()
    def _check_networks(self) -> None:
        """Raise ValueError unless one image goes through both networks."""
        y = example(self.conditioner)
        for name, what in (("generator", self.network), ("discriminator", self.discriminator)):
            try:
                if name == "generator":
                    found = tuple(what(torch.zeros(1, self.latent), self.conditioner(y)).shape[1:])
                    wanted: tuple[int, ...] = self.shape
                else:
                    found, wanted = tuple(what(torch.zeros(1, *self.shape), y).shape), (1,)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the {name} does not take what the model's shape {list(self.shape)} and condition give "
                    f"({str(error).splitlines()[0][:160]}): make its arguments agree with them"
                ) from error
            if found != wanted:
                raise ValueError(
                    f"the {name} returns {list(found)}, but {list(wanted)} is needed: correct its arguments"
                )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images of noise z (B, latent) and conditions y, not clamped, in float32, or float64 if the weights are."""
        made = self.network(z, self.conditioner(y))
        return made if made.dtype == torch.float64 else made.float()

    # Training

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The one loss of both networks, and beside it each example's own and its number in the global batch."""
        image, y = self.feed.take(self, batch, "training")
        step = self.feed.in_step(self, batch_idx, len(image))
        duel = self._duel(image, y, step.draw)
        losses = duel.g + duel.d + self._gamma() / 2 * (duel.r1 + duel.r2)
        loss = losses.mean()
        if self.logs:
            for name, value in {**duel._asdict(), "loss": losses}.items():
                self.log(f"train/{name}", value.detach().mean(), batch_size=len(image), sync_dist=True)
        return {"loss": loss, "losses": losses.detach(), "sample": step.draw.sample}

    def _gamma(self) -> float:
        """γ at this step."""
        part = (1 - math.cos(math.pi * min(1.0, self.global_step / self.gamma_steps))) / 2
        return self.gamma[0] + part * (self.gamma[1] - self.gamma[0])

    def _duel(self, image: Tensor, y: Any, draw: Draw) -> adversarial.Duel:
        """g, d and the slopes of each example, beside an image that is made for its condition."""
        z = draw.normal("z", image.new_empty(len(image), self.latent))
        return adversarial.relativistic(self.discriminator, image, self(z, y), y)

    # Evaluation, sharded over the devices

    def validation_step(self, batch: Any, batch_idx: int, stage: str = "validation") -> dict[str, Tensor]:
        """Logs both losses; neither says how good samples are, so let a metric choose the best checkpoint."""
        image, y = self.feed.take(self, batch, stage)
        draw = Draw(self.seed, "evaluation", 0, self.feed.numbers(self, stage, batch_idx, len(image)))
        duel = self._duel(image, y, draw)
        prefix = {"validation": "val", "test": "test"}[stage]
        for name, values in {"g": duel.g, "d": duel.d, "loss": duel.g + duel.d}.items():
            self.log_mean(f"{prefix}/{name}", values)
        return {"losses": duel.g + duel.d, "sample": draw.sample}

    # The optimizer: one, of two groups

    def sides(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each network, by what is put behind the name of their gradients' norm."""
        own = [*self.network.parameters(), *self.conditioner.parameters()]
        return {"": own, "_discriminator": list(self.discriminator.parameters())}

    def networks(self) -> list[nn.Module]:
        return [self.network, self.discriminator.network]

    # Images

    def draw(self, seeds: Tensor, y: Tensor, sampler: Callable[..., Tensor] | None, guidance: Guided) -> Tensor:
        self.check(sampler, guidance)  # type: ignore[arg-type]
        z = random.normal((self.latent,), seeds, "z", 0, torch.zeros_like(seeds))
        return self.decoded(self(z.to(weights_dtype(self.network) or z.dtype), y))

    def operations(self) -> int:
        """Of both networks on one image."""
        c = self.conditioner(example(self.conditioner))
        return operations(Untimed(self.network), (self.latent,), c) + operations(
            Untimed(self.discriminator.network), self.shape, c
        )


def check_generator(network: nn.Module) -> int:
    """The numbers of noise that a generator takes; raise ValueError if it does not state them."""
    latent = getattr(network, "latent", None)
    if not isinstance(latent, int) or latent < 1:
        raise ValueError(
            f"{type(network).__name__} does not state `latent`, the numbers of noise that it makes an image of: give "
            "it this attribute, or take networks.ResidualGenerator"
        )
    return latent


def check_discriminator(network: nn.Module) -> None:
    """Raise ValueError if a discriminator is compiled: the penalties' second backward pass is not compiled code's."""
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "the discriminator is compiled, but its penalties take a second backward pass, which compiled code does "
            "not have: give it as it is"
        )
