"""The kernel distance between two sets of images: unbiased at any number of them."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .base import FeatureBuffer, FeatureMetric, Reference


class KID(FeatureMetric):
    """The kernel inception distance: the squared maximum mean discrepancy under k(f, g) = (fᵀg/d + 1)³.

    KID = Σ_{i≠j} (k(f_i, f_j) + k(g_i, g_j))/(m(m - 1)) - 2·Σ_{ij} k(f_i, g_j)/m² over random subsets of m images of
    each side: their mean and standard deviation, as they are published, and the mean's standard error,
    which counts as many subsets as are disjoint at most. The value is unbiased and may be a little below 0.

    Keys: `kid_mean`, `kid_std`, `kid_error` over Inception, `kid_<name>_mean` and so on over other extractors.

    Paper: Demystifying MMD GANs. Bińkowski et al., 2018, arXiv 1801.01401, section 4.

    Args:
        extractor: see `FeatureMetric`.
        subsets: how many.
        subset_size: m, at least 2.
        kept: of how many images a side the features are kept to draw from: all, or as many as this, evenly chosen.
        seed: of the subsets; where all images are kept, torch-fidelity draws the same ones.
        precision: of the kernel. float32 is what torch-fidelity and published values are computed in; near sets, whose
            distance is a small difference of large sums, are resolved better in float64.
    """

    kind = "features"
    higher_is_better = False

    def __init__(
        self,
        extractor: nn.Module | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        kept: int = 10_000,
        seed: int = 2020,
        precision: Literal["float32", "float64"] = "float32",
        **kwargs: Any,
    ) -> None:
        if subsets < 1 or not 2 <= subset_size <= kept:
            raise ValueError(
                f"KID of {subsets} subsets of {subset_size} images out of {kept} kept is none: give subsets ≥ 1 and "
                "2 ≤ subset_size ≤ kept"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(
                f"KID's seed is {seed}, but NumPy takes a whole number from 0 to 2^32 - 1: give one of these"
            )
        self.subsets, self.subset_size, self.seed, self.precision = subsets, subset_size, seed, precision
        self.kept, self.min_samples, self.settings = kept, subset_size, (kept,)
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        self.real, self.fake = (FeatureBuffer(self, real, self.kept) for real in (True, False))

    def _too_few(self, kind: str, n: int) -> str:
        return (
            f"KID draws subsets of {self.subset_size} images, but there are {n} {kind} images: lower its subset_size, "
            "or give more images"
        )

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        (self.real if real else self.fake).add(features, index)

    def refer(self) -> Reference:
        return {"features": self.real()}

    def value(self) -> dict[str, Tensor]:
        """Mean and standard deviation over the subsets, float64."""
        assert self.reference is not None
        fake, real = (x.cpu().numpy().astype(self.precision) for x in (self.fake(), self.reference["features"]))
        generator, size = np.random.RandomState(self.seed), self.subset_size
        values = [
            _squared_mmd(*(x[generator.choice(len(x), size, replace=False)] for x in (fake, real)))
            for _ in range(self.subsets)
        ]
        value, disjoint = torch.tensor(values, dtype=torch.float64), min(len(fake), len(real)) // self.subset_size
        name = f"kid{self.suffix}"
        found = {f"{name}_mean": value.mean(), f"{name}_std": value.std(correction=0)}
        if self.subsets > 1 and disjoint > 1:
            found[f"{name}_error"] = value.std() / min(self.subsets, disjoint) ** 0.5
        return found


def _squared_mmd(f: np.ndarray, g: np.ndarray) -> float:
    """The unbiased estimate from equally many features f, g (m, d), its sums in torch-fidelity's order."""
    m = len(f)
    within = sum((k.sum(1) - k.diagonal()).sum() for k in (_kernel(f, f), _kernel(g, g)))
    return float(within / (m * (m - 1)) - 2 * _kernel(f, g).sum(0).sum() / (m * m))


def _kernel(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (f @ g.T * (1 / f.shape[1]) + 1) ** 3
