"""A small classifier of MNIST's digits, bundled with its weights: features for a Fréchet distance, without a network.

Its weights are made, and its accuracy on the test set is printed, by `python -m benchmarks.mnist_net`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import BundledClassifier


class MNISTNet(BundledClassifier):
    """Bytes (B, 1, 28, 28) to 64 features.

    Args:
        pretrained: load the bundled weights; False starts from random ones.
    """

    name = "mnist"
    size = 28
    num_features = 64
    num_classes = 10

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv4 = nn.Conv2d(48, 64, 3, padding=1, stride=2)
        self.conv5 = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64 * 9, 10)
        if pretrained:
            self.load()

    def logits(self, convolved: Tensor) -> Tensor:
        """(B, 64, 7, 7) to logits (B, 10)."""
        pooled = F.adaptive_avg_pool2d(convolved, 3).flatten(1)
        return self.head(F.dropout(pooled, 0.3, self.training))

    def convolve(self, x: Tensor) -> Tensor:
        """Floats in [-1, 1] (B, 1, 28, 28) to (B, 64, 7, 7)."""
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = F.silu(convolution(x))
        return x
