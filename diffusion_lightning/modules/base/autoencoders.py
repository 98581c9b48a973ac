"""An autoencoder and its discriminator, looked at before training: what they take and return."""

from typing import Any

import torch
from torch import Tensor, nn

from ...denoising import weights_dtype
from .shapes import without_memory

SIZES = ("in_channels", "latent_channels", "factor")


class ThereAndBack(nn.Module):
    """The reconstruction by the mean latent, as a network of an image alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, image: Tensor, *_: Any) -> Tensor:
        return self.network.decode(self.network.encode(image).mean)


@torch.no_grad()
def latent_shape(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the latent of an image (C, H, W).

    Raises:
        ValueError: if the network is no autoencoder of such images.
    """
    name = type(network).__name__
    missing = [verb for verb in ("encode", "decode") if not callable(getattr(network, verb, None))]
    missing += [size for size in SIZES if not isinstance(getattr(network, size, None), int)]
    if missing:
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}, but an autoencoder has encode, decode, {', '.join(SIZES)}: "
            "take one of networks, such as PlainAutoencoder, or give yours these"
        )
    stated: Any = network
    channels, *size = shape
    if channels != stated.in_channels or any(n % stated.factor for n in size):
        raise ValueError(
            f"images have shape {list(shape)}, but {name} takes {stated.in_channels} channels and sizes that are "
            f"multiples of {stated.factor}: make the network's arguments and the data's size agree"
        )
    latent = (stated.latent_channels, *(n // stated.factor for n in size))
    try:
        network = without_memory(network).eval()
        image = torch.zeros(1, *shape, device="meta", dtype=weights_dtype(network))
        z = network.encode(image).mean  # type: ignore[operator]
        found = [tuple(z.shape[1:]), tuple(network.decode(z).shape[1:])]  # type: ignore[operator]
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{name} does not take images of shape {list(shape)} and back ({str(error).splitlines()[0][:160]}): let "
            "encode return Moments of a raw latent, and decode an image"
        ) from error
    if found != [latent, shape]:
        raise ValueError(
            f"{name} turns images of shape {list(shape)} into latents of {list(found[0])} and these into "
            f"{list(found[1])}, but states latents of {list(latent)}: make its latent_channels and factor what it does"
        )
    return latent


@torch.no_grad()
def check_discriminator(discriminator: nn.Module | None, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a discriminator takes no images of this shape, or the autoencoder names no last layer."""
    if discriminator is None:
        return
    if not isinstance(getattr(getattr(network, "conv_out", None), "weight", None), nn.Parameter):
        raise ValueError(
            f"the discriminator's weight is set by the gradients at the decoder's last layer, but "
            f"{type(network).__name__} has no conv_out: let conv_out be that layer"
        )
    name = type(discriminator).__name__
    try:
        made = without_memory(discriminator).eval()
        found = made(torch.zeros(2, *shape, device="meta", dtype=weights_dtype(made)))
    except RuntimeError as error:
        raise ValueError(
            f"{name} does not take images of shape {list(shape)} ({str(error).splitlines()[0][:160]}): give it their "
            "channels, and fewer layers if they are small"
        ) from error
    if len(found) != 2 or found.numel() == 0:
        raise ValueError(f"{name} turns 2 images into {list(found.shape)}, which are no logits of each: give others")


def check_weights(**weights: float) -> None:
    """Raise ValueError if a weight, or a number of steps, is negative or no number."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}, which is no weight: give a number of at least 0")


def check_start(adversarial_from: int, steps: int) -> None:
    """Raise ValueError if a run ends before its discriminator takes part."""
    if 0 < steps <= adversarial_from:
        raise ValueError(
            f"the discriminator takes part from step {adversarial_from} on, but the run ends at step {steps}: lower "
            "adversarial_from, or leave the discriminator out"
        )
