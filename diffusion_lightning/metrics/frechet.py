"""The Fréchet distance between two sets of images, each seen as a Gaussian in a network's features.

d² = ‖μ_1 - μ_2‖² + tr(Σ_1 + Σ_2 - 2·(Σ_1Σ_2)^½)
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """d² between N(μ_1, Σ_1) and N(μ_2, Σ_2): means (d,), covariances (d, d), in float64; never negative.

    tr (Σ_1Σ_2)^½ is the sum of the roots of the eigenvalues of the symmetric Σ_1^½·Σ_2·Σ_1^½, which stays real and
    finite where the covariances are singular.

    Source: The Fréchet distance between multivariate normal distributions. Dowson, Landau, 1982, equation 4.
    """
    values, vectors = torch.linalg.eigh(cov_1.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_2.double() @ root).clamp(min=0).sqrt().sum()
    distance = (mean_1 - mean_2).double().square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross
    return distance.clamp(min=0)


class FrechetDistance(Metric):
    """The Fréchet distance over any features, from running sums: no image and no feature is kept.

    Paper: GANs trained by a two time-scale update rule converge to a local Nash equilibrium. Heusel et al., 2017,
    arXiv 1706.08500, equation 6 (there over Inception's features; over others it is another distance, and `name`
    says over which).

    `reset` forgets the generated images and keeps the real ones.

    Args:
        extractor: bytes (B, C, H, W) to features (B, num_features), with attributes `num_features` and, for the
            distance's name, `name`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    real_n: Tensor
    fake_n: Tensor

    def __init__(self, extractor: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        features = getattr(extractor, "num_features", None)
        if not isinstance(features, int):
            raise ValueError(
                f"the extractor {type(extractor).__name__} does not say how many features it gives: let it have an "
                "integer attribute num_features"
            )
        self.extractor = extractor.eval().requires_grad_(False)
        self.name = f"fd_{getattr(extractor, 'name', type(extractor).__name__.lower())}"
        self.min_samples = features + 1
        for side in ("real", "fake"):
            self.add_state(f"{side}_n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(features, features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, bytes (B, C, H, W), to the real or the generated side."""
        if images.dtype != torch.uint8:
            raise ValueError(
                f"the images are {images.dtype}, but a distance is measured on bytes: pass them through images.to_uint8"
            )
        features = self.extractor(images).double()
        side = "real" if real else "fake"
        setattr(self, f"{side}_n", getattr(self, f"{side}_n") + len(images))
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + features.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + features.T @ features)

    def compute(self) -> Tensor:
        """d², float64.

        Raises:
            ValueError: where a side has no more images than there are features, whose covariance is singular.
        """
        for side, n in (("real", self.real_n), ("generated", self.fake_n)):
            if n < self.min_samples:
                raise ValueError(
                    f"{self.name} has {self.min_samples - 1} features, but only {int(n)} {side} images were given: "
                    f"give at least {self.min_samples}"
                )
        return frechet_distance(*self._moments("real"), *self._moments("fake"))

    def reset(self) -> None:
        """Forgets the generated images."""
        real = {key: getattr(self, key) for key in self._defaults if key.startswith("real")}
        super().reset()
        for key, value in real.items():
            setattr(self, key, value)

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        n, total, outer = (getattr(self, f"{side}_{part}") for part in ("n", "sum", "outer"))
        mean = total / n
        return mean, (outer - n * torch.outer(mean, mean)) / (n - 1)
