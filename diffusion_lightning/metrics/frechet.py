"""The Fréchet distance between two sets of images, each seen as a Gaussian in a network's features.

d² = ‖μ_1 - μ_2‖² + tr(Σ_1 + Σ_2 - 2·(Σ_1Σ_2)^½)
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import FeatureBuffer, FeatureMetric, Reference
from .statistics import read_statistics

BLOCKS = 10


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """d² between N(μ_1, Σ_1) and N(μ_2, Σ_2): means (d,), covariances (d, d), in float64; never negative.

    With Σ = F·Fᵀ, tr (Σ_1Σ_2)^½ is the sum of the singular values of F_1ᵀ·F_2. Nothing is squared on the way, so
    singular covariances cost no digits.

    Source: The Fréchet distance between multivariate normal distributions. Dowson, Landau, 1982, equation 4.
    """
    return _distance(mean_1, _factor(cov_1), mean_2, _factor(cov_2))


def _factor(cov: Tensor) -> Tensor:
    """F (d, rank) with F·Fᵀ = Σ, without the directions whose variance is rounding."""
    values, vectors = torch.linalg.eigh(cov.double())
    sure = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp(min=0)
    return vectors[:, sure] * values[sure].sqrt()


def _as_published(f: Tensor, g: Tensor) -> float:
    """d² of features (n, d) with n ≤ d, in the steps of torch-fidelity and pytorch-fid: by the eigenvalues of Σ_1Σ_2.

    Of singular covariances most of these are rounding of either sign, and their square roots add some 1e-5 of the
    value to the trace: no part of the distance, but of the number that others will find.
    """
    (mean_1, cov_1), (mean_2, cov_2) = (
        (x.mean(0), np.cov(x, rowvar=False)) for x in (f.cpu().numpy(), g.cpu().numpy())
    )
    cross = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).astype(np.complex128)).real.sum()
    apart = mean_1 - mean_2
    return max(float(apart @ apart + np.trace(cov_1) + np.trace(cov_2) - 2 * cross), 0.0)


def _distance(mean_1: Tensor, factor_1: Tensor, mean_2: Tensor, factor_2: Tensor) -> Tensor:
    apart = (mean_1 - mean_2).double().square().sum()
    spread = factor_1.square().sum() + factor_2.square().sum()
    return (apart + spread - 2 * torch.linalg.svdvals(factor_1.T @ factor_2).sum()).clamp(min=0)


class FrechetDistance(FeatureMetric):
    """The Fréchet distance over any features, from running moments: no image and no feature is kept.

    Over Inception's features it is the FID and is called `fid`; over others it is another distance, `fd_<name>`. It
    is biased for small N: compare values at equal N. With `uncertainty` it gives beside the value

    - `…_error`: its standard error by the samples, a jackknife of ten blocks, one left out at a time (too large, by
      up to a half, if the distance is nothing but bias);
    - `…_infinity`: the value expected of infinitely many samples, a straight line in 1/n through the nested first
      five to ten tenths (Effectively unbiased FID. Chong, Forsyth, 2020, arXiv 1911.07023, section 4);
    - `…_samples`: their number.

    Paper: GANs trained by a two time-scale update rule converge to a local Nash equilibrium. Heusel et al., 2017,
    arXiv 1706.08500, equation 6.

    Args:
        extractor: bytes (B, C, H, W) to features (B, num_features), with attributes `num_features` and, for the
            distance's name, `name`; see `FeatureMetric`.
        allow_few: allow no more samples than features, so that the covariance is singular and the distance mostly bias;
            the value is then accompanied by `…_few` = 1, and is rounded as other tools round it (`_as_published`).
        reference: path of a file of statistics, `.npz` with `mu` and `sigma`, to take in the place of the data's own.
    """

    kind = "moments"
    higher_is_better = False

    fake_n: Tensor
    real_n: Tensor

    def __init__(
        self, extractor: nn.Module | None = None, allow_few: bool = False, reference: str | None = None, **kwargs: Any
    ) -> None:
        self.allow_few, self.file, self.settings = allow_few, reference, (allow_few,)
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        self.name = getattr(self.extractor, "distance", f"fd{self.suffix}")
        self.min_samples = 2 if self.allow_few else self.num_features + 1
        if self.allow_few:  # up to as many as there are features, which is less than their covariance
            self.kept_real, self.kept_fake = (FeatureBuffer(self, real, self.num_features) for real in (True, False))
        self._add_states("real", 1)
        self._add_states("fake", 1)
        if self.file is not None:
            self.reference = read_statistics(self.file, self.num_features)

    def _add_states(self, side: str, blocks: int) -> None:
        """Of each block its n, mean times n, and scatter Σ (f - mean)(f - mean)ᵀ, in float64."""
        d, kind = self.num_features, torch.float64
        self.add_state(f"{side}_n", torch.zeros(blocks, dtype=kind), dist_reduce_fx=None)
        self.add_state(f"{side}_sum", torch.zeros(blocks, d, dtype=kind), dist_reduce_fx=None)
        self.add_state(f"{side}_scatter", torch.zeros(blocks, d, d, dtype=kind), dist_reduce_fx="sum")

    def expect(self, generated: int, real: int | None, uncertainty: bool = False) -> None:
        super().expect(generated, real, uncertainty)
        device, blocks = self.fake_n.device, BLOCKS if uncertainty else 1
        if len(self.fake_n) != blocks:
            self._add_states("fake", blocks)
            self.to(device)

    def _too_few(self, kind: str, n: int) -> str:
        return (
            f"{self.name} has {self.num_features} features, but only {n} {kind} images were given, which leaves their "
            f"covariance singular: give at least {self.min_samples}, or allow it with allow_few (of score: --few)"
        )

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        if self.allow_few:
            (self.kept_real if real else self.kept_fake).add(features, index)
        side, features = ("real" if real else "fake"), features.double()
        n, total, scatter = (getattr(self, f"{side}_{part}") for part in ("n", "sum", "scatter"))
        for block in range(len(n)):
            mine = features[index % len(n) == block]
            if not len(mine):
                continue
            own, here = n[block].clone(), mine.mean(0)
            # The scatter of a union is the parts' own and that of their means: no large numbers cancel.
            between = here - total[block] / own.clamp(min=1)
            weight = own * len(mine) / (own + len(mine))
            scatter[block] += (mine - here).T @ (mine - here) + weight * torch.outer(between, between)
            n[block] += len(mine)
            total[block] += mine.sum(0)

    def refer(self) -> Reference:
        made = dict(zip(("mu", "sigma", "n"), self._moments("real", [0]), strict=True))
        return made if made["n"] > self.num_features else {**made, "features": self.kept_real()}

    def value(self) -> Any:
        """d², float64; a dict by name if `uncertainty` or `allow_few` add values."""
        assert self.reference is not None
        mean, factor = self.reference["mu"], _factor(self.reference["sigma"])

        def distance(blocks: list[int]) -> Tensor:
            mu, sigma, _ = self._moments("fake", blocks)
            return _distance(mean, factor, mu, _factor(sigma))

        count = self.fake_n.shape[-1]
        n, everything = self.fake_n.view(-1, count).sum(0), list(range(count))
        exact = distance(everything)
        values = {self.name: exact}
        if n.sum() <= self.num_features:
            if "features" in self.reference:
                values[self.name] = exact.new_tensor(_as_published(self.kept_fake(), self.reference["features"]))
            values[f"{self.name}_few"] = torch.ones_like(exact)
        if self.uncertainty and (n > 0).all() and n.sum() - n.max() >= 2:
            without = torch.stack([distance(everything[:k] + everything[k + 1 :]) for k in everything])
            error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
            sizes = range(count // 2, count + 1)
            nested = torch.stack([*(distance(everything[:k]) for k in sizes[:-1]), exact])
            inverse = torch.stack([1 / n[:k].sum() for k in sizes])
            slope = (inverse - inverse.mean()) @ nested / (inverse - inverse.mean()).square().sum()
            values |= {f"{self.name}_error": error, f"{self.name}_infinity": nested.mean() - slope * inverse.mean()}
        if self.uncertainty:
            values[f"{self.name}_samples"] = n.sum()
        return values if len(values) > 1 else values[self.name]

    def _moments(self, side: str, blocks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, covariance and number of some blocks, reduced over ranks."""
        n, total, scatter = (getattr(self, f"{side}_{part}") for part in ("n", "sum", "scatter"))
        n, total = n[..., blocks].flatten(), total[..., blocks, :].flatten(0, -2)  # of every process and block
        mean = total.sum(0) / n.sum()
        apart = total / n.clamp(min=1)[:, None] - mean
        return mean, (scatter[blocks].sum(0) + apart.T @ (n[:, None] * apart)) / (n.sum() - 1), n.sum()
