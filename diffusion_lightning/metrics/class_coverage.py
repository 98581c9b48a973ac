"""The number of classes that appear among the samples, and how evenly."""

from typing import Any

import torch
from torch import Tensor, nn

from .base import FeatureMetric, Reference

EXPECTED = 5  # samples that a class must have given its fraction of the real images, to count as missing
APPEARS = 0.1  # of its fraction of the real images


class ClassCoverage(FeatureMetric):
    """The classes of the samples beside those of the real images, both by a classifier's guess, from counts.

    With p_k the fraction of class k among the real images and q_k among the n samples:

    - `class_coverage`: of the classes with n·p_k ≥ 5, the share that appears with q_k ≥ p_k/10 (a tenth, since the
      classifier errs now and then);
    - `class_evenness`: H(q)/H(p), the entropies' ratio: 1 if the samples are spread as the real images are;
    - `class_overlap`: Σ_k min(p_k, q_k), 1 - the total variation distance;
    - `class_rarest`: the smallest q_k/p_k of those classes, and `class_rarest_index`: which class that is.

    If no class has n·p_k ≥ 5, as with very few samples of very many classes, the first and the last are left out.
    Over other extractors than Inception the keys carry the extractor's name.

    Args:
        extractor: see `FeatureMetric`; with `classify`.
    """

    real_count: Tensor
    fake_count: Tensor

    kind = "classes"
    higher_is_better = True
    classifies = True

    def __init__(self, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        classes = self.extractor.num_classes
        for side in ("real", "fake"):
            self.add_state(f"{side}_count", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        assert logits is not None
        count = self.real_count if real else self.fake_count
        count += torch.bincount(logits.argmax(1), minlength=len(count))

    def refer(self) -> Reference:
        return {"count": self.real_count.clone()}

    def value(self) -> dict[str, Tensor]:
        """The figures, float64."""
        assert self.reference is not None
        real, n = self.reference["count"], self.fake_count.sum()
        p, q = real / real.sum(), self.fake_count / n
        found = {
            "class_evenness": _entropy(q) / _entropy(p) if _entropy(p) > 0 else torch.ones_like(n),
            "class_overlap": torch.minimum(p, q).sum(),
        }
        wanted = (n * p >= EXPECTED).nonzero()[:, 0]
        if len(wanted):
            ratio = (q / p)[wanted]
            found |= {
                "class_coverage": (ratio >= APPEARS).double().mean(),
                "class_rarest": ratio.min(),
                "class_rarest_index": wanted[ratio.argmin()].double(),
            }
        return {f"{key}{self.suffix}": value for key, value in found.items()}


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum()
