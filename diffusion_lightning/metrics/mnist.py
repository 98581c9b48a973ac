"""A small classifier of MNIST's digits, shipped with its weights: features for a Fréchet distance, at hand offline.

Its weights are made, and its accuracy on the test set is printed, by `python -m benchmarks.mnist_net`.
"""

from importlib.resources import files

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from .. import images as pixels

WEIGHTS = "mnist.safetensors"


class MNISTNet(nn.Module):
    """Bytes (B, 1, 28, 28) to 64 features: the last convolution's, averaged over the pixels as Inception's pool3 is.

    Args:
        pretrained: load the shipped weights; False starts from random ones.
    """

    name = "mnist"
    num_features = 64
    num_classes = 10
    channels = 1

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv4 = nn.Conv2d(48, 64, 3, padding=1, stride=2)
        self.conv5 = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64 * 9, 10)
        if pretrained:
            self.load_state_dict(load(files(__package__).joinpath(WEIGHTS).read_bytes()))
            self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self._convolved(images).mean((2, 3))

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, 64) and the ten classes' logits (B, 10) of byte images (B, 1, 28, 28)."""
        convolved = self._convolved(images)
        return convolved.mean((2, 3)), self.logits(convolved)

    def logits(self, convolved: Tensor) -> Tensor:
        """(B, 64, 7, 7) to logits (B, 10)."""
        pooled = F.adaptive_avg_pool2d(convolved, 3).flatten(1)
        return self.head(F.dropout(pooled, 0.3, self.training))

    def convolve(self, x: Tensor) -> Tensor:
        """Floats in [-1, 1] (B, 1, 28, 28) to (B, 64, 7, 7)."""
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = F.silu(convolution(x))
        return x

    def _convolved(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"the MNIST net was given {images.dtype} images of shape {list(images.shape[1:])}, but it knows bytes "
                "of shape [1, 28, 28]: use it on MNIST, and another extractor elsewhere"
            )
        return self.convolve(pixels.from_uint8(images))
