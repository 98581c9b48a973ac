"""A small classifier of 8×8 digits, bundled with its weights: features for a Fréchet distance that needs no network.

Its weights are made, and its held-out accuracy is printed, by `python -m benchmarks.digits_net`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import BundledClassifier


class DigitsNet(BundledClassifier):
    """Bytes (B, 1, 8, 8) to 64 features.

    Args:
        pretrained: load the bundled weights; False starts from random ones.
    """

    name = "digits"
    size = 8
    num_features = 64
    num_classes = 10

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4, 64)
        self.head = nn.Linear(64, 10)
        if pretrained:
            self.load()

    def logits(self, convolved: Tensor) -> Tensor:
        """(B, 64, 4, 4) to logits (B, 10)."""
        h = self.hidden(F.avg_pool2d(convolved, 2).flatten(1))
        return self.head(F.dropout(F.silu(h), 0.3, self.training))

    def convolve(self, x: Tensor) -> Tensor:
        """Floats in [-1, 1] (B, 1, 8, 8) to (B, 64, 4, 4)."""
        return F.silu(self.conv3(F.silu(self.conv2(F.silu(self.conv1(x))))))
