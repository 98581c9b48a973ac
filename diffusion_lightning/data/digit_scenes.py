"""Scenes of one or two real digits, each with a sentence that says which they are and where; no download."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import random
from ..images.scenes import CELL, DRAWN, SCENES, SIZE
from .base import Images, small_digits
from .base.small_digits import HIGHEST

ALONE = 10  # one scene in so many has a single digit


class DigitScenes(Images):
    """32×32 scenes of one or two of scikit-learn's digits, enlarged to 14×14, with captions; pixels 0 … 255.

    "a seven" stands in the middle; "a seven to the left of a three" and "a three to the right of a seven" are the same
    scene in other words, and "a three above an eight" is one of the other layout. A pair of digits is ordered, from
    left to right or from top to bottom. Of the 100 pairs, the 20 whose second - first is 3 or 6 modulo 10 are unseen:
    no training scene has one, in any words or layout. Every digit is the first of two of these and the second of two.

    `train` has the 1,500 training digits of `Digits`, `val` and `test` the 297 held-out ones. `val` has the pairs of
    the training; in `test` every scene of an odd number has an unseen pair. Of all other scenes one in ten has a
    single digit.

    A scene is a function of its split and its number: more scenes leave the first ones as they are. y is an index into
    `captions`, the list of all 410 sentences.

    Args:
        n: scenes in `train`.
        held_out: scenes in each of `val` and `test`.
        batch_size: see `Images`.
        num_workers: see `Images`.
        seed: see `Images`; the scenes do not depend on it.

    Raises:
        ValueError: if a split is to have no scene.
    """

    shape = (1, SIZE, SIZE)

    def __init__(
        self, n: int = 20_000, held_out: int = 1000, batch_size: int = 128, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, False, num_workers, seed)
        for name, value in (("n", n), ("held_out", held_out)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but a split needs a scene: give at least 1")
        self.n, self.held_out = n, held_out
        self.captions = list(SCENES)

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        number = torch.arange(self.n if split == "train" else self.held_out)
        y, scenes = self._drawn(split, number), list(SCENES.values())
        images, digits = small_digits(train=split == "train")
        large = enlarged(images * (255 / HIGHEST))
        canvas = torch.zeros(len(number), *self.shape, dtype=torch.uint8)
        for i in y.unique().tolist():
            which = (y == i).nonzero()[:, 0]
            for k, (digit, (top, left)) in enumerate(zip(*scenes[i], strict=True)):
                of = (digits == digit).nonzero()[:, 0]
                image = of[random.integers(0, len(of), 0, f"scenes of {split}: image {k}", 0, which)]
                canvas[which, :, top : top + CELL, left : left + CELL] = large[image]
        return canvas, y

    def _drawn(self, split: str, number: Tensor) -> Tensor:
        """(N,) the sentence of each scene."""

        def one_of(sentences: list[int], what: str) -> Tensor:
            return torch.tensor(sentences)[
                random.integers(0, len(sentences), 0, f"scenes of {split}: {what}", 0, number)
            ]

        of = list(enumerate(SCENES.values()))
        alone = one_of([i for i, scene in of if len(scene.digits) == 1], "alone")
        seen = one_of([i for i, scene in of if len(scene.digits) == 2 and scene.seen], "seen")
        y = torch.where(one_of(list(range(ALONE)), "how many digits") == 0, alone, seen)
        if split != "test":
            return y
        return torch.where(number % 2 == 1, one_of([i for i, scene in of if not scene.seen], "unseen"), y)


def enlarged(images: Tensor) -> Tensor:
    """Floats 0 … 255 (N, 1, 8, 8) to bytes (N, 1, 16, 16): bicubic, clipped to the range, with a dark frame."""
    large = F.interpolate(images, (DRAWN, DRAWN), mode="bicubic").round().clamp(0, 255).byte()
    return F.pad(large, [(CELL - DRAWN) // 2] * 4)
