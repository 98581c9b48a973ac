"""How far two images are apart in a network's features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FeatureDistance:
    """(B,) distances of images (B, C, H, W) in [-1, 1], with a gradient; its network is frozen, and in no checkpoint.

    Of an extractor with `convolve(image) -> (B, F, h, w)`, such as the bundled classifiers, as LPIPS without learned
    weights: features of unit length at every pixel, their squared distances summed over the channels and averaged over
    the pixels. Any other network is a distance itself, called as `network(image, reconstruction)`: LPIPS.

    Paper: The unreasonable effectiveness of deep features as a perceptual metric. Zhang et al., 2018, arXiv 1801.03924,
    equation 1.

    Args:
        network: an extractor or a distance.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: if it gives no distances of such images.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        name = type(network).__name__
        if not hasattr(network, "convolve") and hasattr(network, "num_features"):
            raise ValueError(
                f"{name} takes bytes, which have no gradient, but features are to train an autoencoder: take an "
                "extractor with convolve(image), such as DigitsNet, or a distance of two images, such as LPIPS"
            )
        try:
            found = self(*torch.zeros(2, 1, *shape).unbind())
            fits = found.shape == (1,)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"{name} gives no features of images of shape {list(shape)} ({str(error).splitlines()[0][:160]}): take "
                "an extractor or a distance of such images"
            ) from error
        if not fits:
            raise ValueError(
                f"{name} turns a pair of images into {list(found.shape)}, but a distance is one number: take another"
            )

    def __call__(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        if (own := next(self.network.parameters(), None)) is not None:
            if own.device != image.device:
                self.network.to(image.device)
            image, reconstruction = image.to(own.dtype), reconstruction.to(own.dtype)
        if not hasattr(self.network, "convolve"):
            return self.network(image, reconstruction).flatten(1).mean(1)
        a, b = (unit(self.network.convolve(x)) for x in (image, reconstruction))
        return (a - b).square().sum(1).mean((1, 2))


def unit(x: Tensor) -> Tensor:
    """Features (B, F, h, w) divided by their length over the channels; those of length 0 stay so."""
    return x * (x.square().sum(1, keepdim=True) + 1e-10).rsqrt()
