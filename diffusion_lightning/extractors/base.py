"""The interface of an extractor, and the base of the classifiers that are bundled with their weights.

An extractor is any `nn.Module` from bytes (B, C, H, W) to features (B, num_features), with the integer attribute
`num_features` and, for the metrics' names, `name`; one that is a classifier too has `num_classes` and
`classify(images) -> (features, logits)`.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from .. import images as pixels


class BundledClassifier(nn.Module, ABC):
    """A small classifier bundled with its weights: features for a Fréchet distance that needs no download.

    They are the last convolution's, averaged over the pixels as Inception's pool3 is.
    """

    name: str
    size: int  # height and width of its images
    num_features: int
    num_classes: int
    channels = 1

    def load(self) -> None:
        """Load the weights beside this file, and freeze them."""
        self.load_state_dict(load(self.weights().read_bytes()))
        self.eval().requires_grad_(False)

    @classmethod
    def weights(cls) -> Path:
        """The path of its weights."""
        return Path(__file__).with_name(f"{cls.name}.safetensors")

    @abstractmethod
    def convolve(self, x: Tensor) -> Tensor:
        """Floats in [-1, 1] (B, 1, H, W) to (B, num_features, h, w)."""

    @abstractmethod
    def logits(self, convolved: Tensor) -> Tensor:
        """(B, num_features, h, w) to logits (B, num_classes)."""

    def forward(self, images: Tensor) -> Tensor:
        return self._convolved(images).mean((2, 3))

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, num_features) and the logits (B, num_classes) of byte images (B, 1, H, W)."""
        convolved = self._convolved(images)
        return convolved.mean((2, 3)), self.logits(convolved)

    def _convolved(self, images: Tensor) -> Tensor:
        shape = [self.channels, self.size, self.size]
        if images.dtype != torch.uint8 or list(images.shape[1:]) != shape:
            raise ValueError(
                f"the {self.name} net was given {images.dtype} images of shape {list(images.shape[1:])}, but it takes "
                f"bytes of shape {shape}: use it on what it was trained on, and another extractor elsewhere"
            )
        return self.convolve(pixels.from_uint8(images))
