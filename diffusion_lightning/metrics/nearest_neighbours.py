"""Whether the samples are new: each one's nearest training images, in pixels and in features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..images import grid
from .base import FeatureMetric, chosen, gathered

SPACES = ("pixels", "features")
ROWS = ("generated", "nearest in pixels", "nearest in features")
MEMORY = 2**24  # numbers of samples that are float64 at once


class NearestNeighbours(FeatureMetric):
    """The fraction of samples that are copies, whose nearest training image is far nearer than the second nearest,
    d_1 ≤ ratio·d_2, with Euclidean distances, once in pixels and once in features.

    This separates a copy from an image that is merely typical, which has several near ones. Of
    images that the training set holds twice, d_1 and d_2 are both 0, and a copy of these counts too.

    The generated images are shown first, then, in every round, all real ones, of which none is kept: so no memory
    grows with the training set.

    Keys: `copies_pixels`, `copies_features` (fractions), `nearest_pixels` (the median of d_1 as a root mean square
    difference of grey levels), `nearest_features`; those of features over other extractors than Inception with the
    extractor's name. `picture` shows the closest pairs.

    Paper: Diffusion probabilistic models generalize when they fail to memorize. Yoon, Choi, Kwon, Ryu, 2023, for the
    ratio and its value 1/3.

    Args:
        extractor: see `FeatureMetric`.
        kept: how many samples are looked at: all, or as many as this, evenly chosen.
        ratio: in (0, 1).
        pairs: columns of the picture.
    """

    higher_is_better = False

    def __init__(
        self, extractor: nn.Module | None = None, kept: int = 1000, ratio: float = 1 / 3, pairs: int = 8, **kwargs: Any
    ) -> None:
        if kept < 1 or not 0 < ratio < 1 or pairs < 1:
            raise ValueError(
                f"neighbours of {kept} samples by the ratio {ratio} in a picture of {pairs} pairs are none: give "
                "kept ≥ 1, a ratio in (0, 1) and pairs ≥ 1"
            )
        self.kept, self.ratio, self.pairs, self.min_samples = kept, ratio, pairs, 2
        self.picture: Tensor | None = None  # bytes (H, W, C) after `compute`
        self._forget()
        super().__init__(extractor, **kwargs)

    def begin(self) -> None:
        for space in SPACES:  # of each sample the two nearest distances, and the nearest image
            self.add_state(f"{space}_distance", torch.zeros(0, 2), dist_reduce_fx=None)
            self.add_state(f"{space}_image", torch.zeros(0, dtype=torch.uint8), dist_reduce_fx=None)

    def _forget(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._samples: tuple[Tensor, dict[str, Tensor]] | None = None

    @property
    def needs_reference(self) -> bool:
        """Always: the samples are new in every round."""
        return True

    def add(self, images: Tensor, features: Tensor, logits: Tensor | None, real: bool, index: Tensor) -> None:
        if real:
            self._compare(images, features)
        else:
            wanted = chosen(self.expected[False], self.kept, index)
            self._parts.append((images[wanted], features[wanted], index[wanted]))

    def exchange(self) -> None:
        """Gather the samples of all ranks, between the last generated image and the first real one."""
        none = torch.zeros(0, 0, 0, 0, dtype=torch.uint8), torch.zeros(0, self.num_features), torch.zeros(0).long()
        parts = self._parts or [tuple(x.to(self.device) for x in none)]
        images, features, index = (gathered(torch.cat(part)) for part in zip(*parts, strict=True))
        order = index.argsort()
        images = images[order]
        self._samples = images, {"pixels": images.flatten(1), "features": features[order]}
        for space in SPACES:
            setattr(self, f"{space}_distance", images.new_full((len(images), 2), torch.inf, dtype=torch.float64))
            setattr(self, f"{space}_image", torch.zeros_like(images))

    def _compare(self, images: Tensor, features: Tensor) -> None:
        if self._samples is None:
            if not self._parts:
                raise ValueError("neighbours of no samples: show the generated images first, then the real ones")
            self.exchange()
        assert self._samples is not None
        samples, placed = self._samples
        if images.shape[1:] != samples.shape[1:]:
            raise ValueError(
                f"the samples have shape {list(samples.shape[1:])}, but the real images {list(images.shape[1:])}: "
                "compare images of one shape"
            )
        for space, real in (("pixels", images.flatten(1)), ("features", features)):
            distance = _distances(placed[space], real)
            near, at = distance.topk(min(2, len(real)), largest=False)
            before = getattr(self, f"{space}_distance")
            nearest = getattr(self, f"{space}_image")
            nearer = near[:, 0] < before[:, 0]
            nearest[nearer] = images[at[nearer, 0]]
            setattr(self, f"{space}_distance", torch.cat([before, near], 1).sort(1).values[:, :2])

    def value(self) -> dict[str, Tensor]:
        """The fractions and medians, float64; makes `picture`."""
        if self._samples is None:
            raise ValueError("neighbours among no images: show the generated images first, then the real ones")
        images, _ = self._samples
        found, ratios, nearest = {}, {}, {}
        for space in SPACES:
            # What each rank found in its shard of the real images, (ranks, samples, …).
            of_all = getattr(self, f"{space}_distance").view(-1, len(images), 2)
            pictures = getattr(self, f"{space}_image").view(-1, *images.shape)
            best = of_all[:, :, 0].argmin(0)
            nearest[space] = pictures[best, torch.arange(len(images), device=best.device)]
            first, second = of_all.transpose(0, 1).flatten(1).sort(1).values[:, :2].unbind(1)
            ratios[space] = torch.where(first == 0, torch.zeros_like(first), first / second)
            of_pixels = space == "pixels"
            name, unit = (space, images[0].numel() ** 0.5) if of_pixels else (f"{space}{self.suffix}", 1.0)
            found[f"copies_{name}"] = (ratios[space] <= self.ratio).double().mean()
            found[f"nearest_{name}"] = first.median() / unit
        closest = ratios["pixels"].argsort(stable=True)[: self.pairs]
        rows = [images[closest], nearest["pixels"][closest], nearest["features"][closest]]
        self.picture = _labelled(grid(torch.cat(rows).cpu(), columns=len(closest)), ROWS)
        return found

    def reset(self) -> None:
        """Forget the samples."""
        super().reset()
        self._forget()


def _labelled(sheet: Tensor, rows: Sequence[str]) -> Tensor:
    """Bytes (H, W, C) with a name to the left of each row."""
    height, _, channels = sheet.shape
    size = max(12, min(16, height // len(rows) // 4))
    font = ImageFont.load_default(size)
    width = size + round(max(font.getlength(name) for name in rows))
    margin = Image.new("RGB" if channels == 3 else "L", (width, height), "white")
    for k, name in enumerate(rows):
        place = margin.width - size // 2, height * (2 * k + 1) // (2 * len(rows))
        ImageDraw.Draw(margin).text(place, name, fill="black", font=font, anchor="rm")
    return torch.cat([torch.from_numpy(np.array(margin)).view(height, -1, channels), sheet], 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Between the rows of a and of b, float64: exact squares of whole numbers, else to 1e-8 of the rows' length."""
    b = b.double()
    found = []
    for rows in a.split(max(1, MEMORY // a.shape[1])):
        rows = rows.double()
        square = rows.square().sum(1)[:, None] + b.square().sum(1) - 2 * rows @ b.T
        found.append(square.clamp(min=0).sqrt())
    return torch.cat(found)
