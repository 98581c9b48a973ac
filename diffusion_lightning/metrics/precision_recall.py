"""How many of the samples look real, and how much of what is real the samples reach."""

from typing import Any

import torch
from torch import Tensor, nn

from .base import FeatureBuffer, FeatureMetric, Reference

ROWS = 1000  # images whose distances to all others are in memory at once


class PrecisionRecall(FeatureMetric):
    """Improved precision and recall: an image is covered that lies no farther from one of the other side than its k-th
    nearest neighbour of its own side does.

    precision is the fraction of samples covered by real images, recall the fraction of real images covered by
    samples. Distances are ‖f - g‖ in float64, summed over the features in their order.

    Keys: `precision`, `recall` over Inception, `precision_<name>`, `recall_<name>` over others.

    Paper: Improved precision and recall metric for assessing generative models. Kynkäänniemi et al., 2019, arXiv
    1904.06991, equations 1 and 2 (there over VGG-16's features).

    Args:
        extractor: see `FeatureMetric`.
        k: which neighbour, at least 1.
        kept: of how many images a side the features are kept: all, or as many as this, evenly chosen. Values compare
            at equal numbers alone.
    """

    kind = "features"
    higher_is_better = True

    def __init__(self, extractor: nn.Module | None = None, k: int = 3, kept: int = 10_000, **kwargs: Any) -> None:
        if not 1 <= k < kept:
            raise ValueError(f"the neighbour number k = {k} of {kept} images is none: give 1 ≤ k < kept")
        self.k, self.kept, self.min_samples, self.settings = k, kept, k + 1, (kept,)
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        self.real, self.fake = (FeatureBuffer(self, real, self.kept) for real in (True, False))

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        (self.real if real else self.fake).add(features, index)

    def refer(self) -> Reference:
        return {"features": self.real()}

    def value(self) -> dict[str, Tensor]:
        """Both fractions, float64."""
        assert self.reference is not None
        fake, real = self.fake().double(), self.reference["features"].double()
        return {
            f"precision{self.suffix}": _covered(fake, real, self.k),
            f"recall{self.suffix}": _covered(real, fake, self.k),
        }


def _covered(of: Tensor, by: Tensor, k: int) -> Tensor:
    """The fraction of rows within the k-th neighbour's distance of one of the rows `by`."""
    reach = torch.cat([_distances(rows, by).kthvalue(k + 1).values for rows in by.split(ROWS)])  # its own 0 is first
    return torch.cat([(_distances(rows, by) <= reach).any(1) for rows in of.split(ROWS)]).double().mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
