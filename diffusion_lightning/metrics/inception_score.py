"""The Inception score: how confident a classifier is in each image, and how many classes it finds in all."""

from typing import Any

import torch
from torch import Tensor, nn

from .base import FeatureMetric


class InceptionScore(FeatureMetric):
    """exp of the mean KL(p(y|x) ‖ p(y)) under a classifier, from running sums; it uses no real images.

    The images are cut in their order into `splits` runs of equal length, as torch-fidelity does without shuffling:
    the mean and the standard deviation over these. It does not detect images that repeat within a class.

    Keys: `is_mean`, `is_std` over Inception, `is_<name>_mean`, … over others.

    Paper: Improved techniques for training GANs. Salimans et al., 2016, arXiv 1606.03498, section 4.

    Args:
        extractor: see `FeatureMetric`; with `classify`.
        splits: how many runs.
    """

    higher_is_better = True
    compares = False
    classifies = True

    n: Tensor
    chance: Tensor
    certainty: Tensor

    def __init__(self, extractor: nn.Module | None = None, splits: int = 10, **kwargs: Any) -> None:
        if splits < 1:
            raise ValueError(f"an Inception Score of {splits} splits is none: give splits ≥ 1")
        self.splits = self.min_samples = splits
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        splits, classes = self.splits, self.extractor.num_classes
        self.add_state("n", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("chance", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("certainty", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        assert logits is not None
        total = self.expected[False]
        if total is None:
            raise ValueError(
                "an Inception Score cuts the images into runs: say how many will come by expect(generated)"
            )
        ends = torch.tensor([(k + 1) * total // self.splits for k in range(self.splits)], device=index.device)
        split = torch.bucketize(index, ends, right=True)
        logits = logits.double()
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        self.n.index_add_(0, split, torch.ones_like(p[:, 0]))
        self.chance.index_add_(0, split, p)
        self.certainty.index_add_(0, split, (p * log_p).sum(1))

    def value(self) -> dict[str, Tensor]:
        """Mean and standard deviation over the runs, float64."""
        p = self.chance / self.n[:, None]
        score = (self.certainty / self.n - torch.special.xlogy(p, p).sum(1)).exp()
        return {f"is{self.suffix}_mean": score.mean(), f"is{self.suffix}_std": score.std(correction=0)}
