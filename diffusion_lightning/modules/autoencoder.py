"""The first stage of latent diffusion as a LightningModule: an autoencoder, and a discriminator beside it.

    repeat: x ~ data;  z ~ q(z | x) = N(μ, σ²);  x̂ = decode(z)
    L = (Σ|x - x̂| + w_f·N·p(x, x̂))/e^s + N·s + w_kl·KL(q ‖ N(0, I)) + w_a·λ·g(x̂),  and d(x, x̂) for the discriminator

with sums over an image's N numbers and means over the batch; s is the log-variance, p the distance in features, g and d
those of `base.adversarial`. Both are one loss: its gradient is the autoencoder's for the autoencoder's weights and the
discriminator's for its own, so that devices, accumulated batches, precision and checkpoints need no more than Lightning
has, and a step counts once. Every draw is a function of (seed, purpose, step, number of the sample) alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random
from ..conditioning import Unconditional
from ..denoising import weights_dtype
from ..guidance import Guided
from ..networks.base.moments import Moments
from ..random import Draw
from .base import adversarial, autoencoders, checks
from .base.features import FeatureDistance
from .base.shapes import operations
from .base.trains_pair import TrainsPair


class Autoencoder(TrainsPair):
    """An autoencoder and its training on batches `(image, y)`, images (B, C, H, W) in [-1, 1]; y is left unused.

    A model of latents takes its weights by `first_stages.Pretrained(model=RUN)`. As what makes images it decodes
    z ~ N(0, I): with a KL weight as small as the default, which keeps latents finite and no more, this is noise.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752,
    equation 25; with the weights of its released code.

    Args:
        network: an autoencoder: see `networks`.
        shape: (C, H, W) of one image; None asks the network, (in_channels, size, size).
        discriminator: images (B, C, H, W) to logits (B, …), such as `PatchDiscriminator`; None trains without.
        features: what p is measured in: an extractor with `convolve`, such as `DigitsNet`, or a distance of two images,
            such as LPIPS; None is none. It is frozen, and in no checkpoint.
        feature_weight: w_f, at least 0.
        kl_weight: w_kl, at least 0.
        adversarial_weight: w_a, at least 0, beside λ = ‖∇nll‖/‖∇g‖ at the decoder's last layer, of a batch over all
            ranks; where batches are accumulated, each has its own.
        adversarial_from: optimizer steps before the discriminator takes part; until then its weights stay as they are.
        learn_log_var: train s with the autoencoder; else it is 0.
        optimizer: given the parameters as two groups, makes the optimizer of both networks.
        discriminator_rate: the discriminator's learning rate as a multiple of the optimizer's, above 0.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, stepped once an optimizer step;
            None holds it constant.
        seed: the seed of all draws of the training.

    Raises:
        ValueError: if network, discriminator or features do not take images of this shape, or a weight is negative.
    """

    uses_y, drawn = False, False
    makes = "an Autoencoder decodes a latent"
    overflow = "sums over an image's pixels pass the largest"
    serves = "train a Diffusion on its latents, with first_stage Pretrained and this checkpoint as its model"

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int] | None = None,
        discriminator: nn.Module | None = None,
        features: nn.Module | None = None,
        feature_weight: float = 1.0,
        kl_weight: float = 1e-6,
        adversarial_weight: float = 0.5,
        adversarial_from: int = 50_000,
        learn_log_var: bool = False,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        discriminator_rate: float = 1.0,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, discriminator_rate, lr_scheduler, seed)
        self.shape = checks.image_shape(shape, network)
        self.latent_shape = autoencoders.latent_shape(network, self.shape)
        autoencoders.check_discriminator(discriminator, network, self.shape)
        autoencoders.check_weights(
            feature_weight=feature_weight,
            kl_weight=kl_weight,
            adversarial_weight=adversarial_weight,
            adversarial_from=adversarial_from,
        )
        self.network: Any = network
        self.discriminator = discriminator
        self.distance = None if features is None else FeatureDistance(features, self.shape)
        self.log_var = nn.Parameter(torch.zeros(())) if learn_log_var else None
        self.feature_weight, self.kl_weight = feature_weight, kl_weight
        self.adversarial_weight, self.adversarial_from = adversarial_weight, adversarial_from
        self.conditioner = Unconditional()

    # What it does with images, and latents

    def encode(self, image: Tensor) -> Moments:
        """The distribution of raw latents of images in [-1, 1], in float32, or float64 if the weights are."""
        mean, log_var = self.network.encode(self._cast(image))
        return Moments(_wide(mean), None if log_var is None else _wide(log_var))

    def decode(self, z: Tensor) -> Tensor:
        """Images of raw latents, not clamped, in float32, or float64 if the weights are."""
        return _wide(self.network.decode(self._cast(z)))

    def _cast(self, x: Tensor) -> Tensor:
        """In the type of the network's weights, unless autocast sets it."""
        dtype = weights_dtype(self.network)
        return x if dtype is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)

    def forward(self, image: Tensor, draw: Draw | None = None) -> tuple[Moments, Tensor]:
        """Images' latents and their reconstructions, not clamped: of the mean latent, or of one that is drawn."""
        encoded = self.encode(image)
        z = encoded.mean if draw is None else encoded.sample(draw.normal("latent", encoded.mean))
        return encoded, self.decode(z)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] through the mean latent and back, in [-1, 1]."""
        return self(image)[1].clamp(-1, 1)

    # Training

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The one loss of both networks, and beside it each example's own and its number in the global batch."""
        image, _ = self.feed.take(self, batch, "training")
        step = self.feed.in_step(self, batch_idx, len(image))
        encoded, reconstruction = self(image, step.draw)
        terms = self._terms(image, encoded, reconstruction)
        losses = terms["nll"] + self.kl_weight * terms["kl"]
        if self.discriminator is not None and self._plays:
            terms["g"], terms["d"] = self._duel(image, reconstruction)
            weight = adversarial.adaptive_weight(
                terms["nll"].mean(), terms["g"].mean(), self.network.conv_out.weight, self._mean
            )
            losses = losses + self.adversarial_weight * weight * terms["g"] + terms["d"]
            terms["adaptive_weight"] = weight
        loss = losses.mean()
        if self.discriminator is not None and not self._plays:
            loss = loss + adversarial.untouched(self.discriminator)
        if self.logs:
            for name, value in {**terms, "loss": loss}.items():
                self.log(f"train/{name}", value.detach().mean(), batch_size=len(image), sync_dist=True)
            if self.log_var is not None:
                self.log("train/log_var", self.log_var.detach(), rank_zero_only=True)
        return {"loss": loss, "losses": losses.detach(), "sample": step.draw.sample}

    @property
    def _plays(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.global_step >= self.adversarial_from

    def _terms(self, image: Tensor, encoded: Moments, reconstruction: Tensor) -> dict[str, Tensor]:
        """(B,) the terms of each example: its negative log-likelihood, of which l1 and features, and its KL."""
        n, log_var = image[0].numel(), self.log_var if self.log_var is not None else image.new_zeros(())
        terms = {"l1": (image.to(reconstruction) - reconstruction).abs().flatten(1).mean(1)}
        apart = terms["l1"]
        if self.distance is not None:
            with torch.autocast(image.device.type, enabled=False):
                terms["features"] = self.distance(image.to(reconstruction), reconstruction).to(apart.dtype)
            apart = apart + self.feature_weight * terms["features"]
        return {**terms, "nll": n * (apart * (-log_var).exp() + log_var), "kl": encoded.kl()}

    def _duel(self, image: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) g and d of each example."""
        assert self.discriminator is not None
        image, reconstruction = self._cast(image), self._cast(reconstruction)
        return (
            adversarial.fooled(self.discriminator, reconstruction),
            adversarial.hinge(self.discriminator, image, reconstruction),
        )

    def _mean(self, x: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(x, reduce_op="mean")

    # Evaluation, sharded over the devices

    def validation_step(self, batch: Any, batch_idx: int, stage: str = "validation") -> dict[str, Tensor]:
        """Logs the loss without the discriminator; returns what callbacks look at: images, reconstructions, latents."""
        image, _ = self.feed.take(self, batch, stage)
        draw = Draw(self.seed, "evaluation", 0, self.feed.numbers(self, stage, batch_idx, len(image)))
        encoded, reconstruction = self(image, draw)
        terms = self._terms(image, encoded, reconstruction)
        losses = terms["nll"] + self.kl_weight * terms["kl"]
        prefix = {"validation": "val", "test": "test"}[stage]
        for name, values in {**terms, "loss": losses}.items():
            self.log_mean(f"{prefix}/{name}", values)
        made = {"image": image, "reconstruction": reconstruction.clamp(-1, 1), "latent": encoded.mean}
        return {"losses": losses, "sample": draw.sample, **made}

    # The optimizer: one, of two groups

    def configure_optimizers(self) -> Any:
        if self.discriminator is not None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            autoencoders.check_start(self.adversarial_from, self.trainer.max_steps)
        return super().configure_optimizers()

    def sides(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each network, by what is put behind the name of their gradients' norm."""
        theirs = [] if self.discriminator is None else list(self.discriminator.parameters())
        known = {id(p) for p in theirs}
        own = [p for p in self.parameters() if id(p) not in known]
        return {"": own, **({"_discriminator": theirs} if theirs else {})}

    def networks(self) -> list[nn.Module]:
        return [network for network in (self.network, self.discriminator) if network is not None]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Until the discriminator takes part no optimizer touches it: no decay of its weights, no empty averages."""
        if self.discriminator is not None and not self._plays:
            for parameter in self.discriminator.parameters():
                parameter.grad = None

    # Images out of N(0, I)

    def draw(self, seeds: Tensor, y: Tensor, sampler: Callable[..., Tensor] | None, guidance: Guided) -> Tensor:
        z = random.normal(self.latent_shape, seeds, "z", 0, torch.zeros_like(seeds))
        return self.decoded(z.to(weights_dtype(self.network) or z.dtype))

    def decoded(self, x: Tensor) -> Tensor:
        return self.decode(x).clamp(-1, 1)

    def operations(self) -> int:
        """Of the autoencoder alone; the discriminator's and the features' are not counted."""
        return operations(autoencoders.ThereAndBack(self.network), self.shape)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
