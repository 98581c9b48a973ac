"""The share of samples that show what their caption says, for captions of scenes of digits."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from ..extractors.digits import DigitsNet
from ..images.scenes import ACROSS, CELL, DOWN, DRAWN, MIDDLE, SCENES, SIZE, Scene

BRIGHT = 128  # of 255, from which on a pixel belongs to a stroke
PRESENT = 20  # bright pixels of a cell with a digit: half as many as the lightest of the 1,797 digits has, 39
STRAY = 8  # bright pixels outside of the cells that are one thing too many: half a digit there shows at least 9


class CaptionMatch(Metric):
    """The share of samples whose digits and places are those of their caption, by a classifier's reading.

    A sample matches if

    - each cell where its caption puts a digit has at least 20 bright pixels (of values from 128 on), and `DigitsNet`
      reads that digit in it (the cell's inner 14×14 pixels, resized to 8×8);
    - the rest of the canvas has fewer than 8 bright pixels, hence no other digit.

    Keys: `caption_match` over all samples, `caption_match_seen` and `caption_match_unseen` over those of captions that
    training has or does not have; a key of no samples is left out. Real scenes match as often as the classifier reads
    all of their digits.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    matched: Tensor
    n: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classifier = DigitsNet()
        for name in ("matched", "n"):  # of unseen pairs, of what training has
            self.add_state(name, torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: Sequence[str] | None) -> None:
        """Adds samples, bytes (B, 1, 32, 32), and the caption of each.

        Raises:
            ValueError: if the images are no scenes, or a caption is no sentence of `DigitScenes`.
        """
        if captions is None:
            raise ValueError("CaptionMatch compares samples with captions, but these have none: leave it out")
        scenes = _scenes(captions)
        if images.dtype != torch.uint8 or list(images.shape) != [len(scenes), 1, SIZE, SIZE]:
            kind = str(images.dtype).removeprefix("torch.")
            raise ValueError(
                f"the images are {kind} of shape {list(images.shape)}, but CaptionMatch takes bytes of shape "
                f"{[len(scenes), 1, SIZE, SIZE]}, one for each caption: use it on samples of DigitScenes"
            )
        seen = torch.tensor([scene.seen for scene in scenes], device=images.device).long()
        self.n += torch.bincount(seen, minlength=2)
        self.matched += torch.bincount(seen[self._matches(images, scenes)], minlength=2)

    def _matches(self, images: Tensor, scenes: list[Scene]) -> Tensor:
        """(B,) bool."""
        found = torch.zeros(len(scenes), dtype=torch.bool, device=images.device)
        for corners in (MIDDLE, ACROSS, DOWN):
            which = [i for i, scene in enumerate(scenes) if scene.corners == corners]
            if not which:
                continue
            some, rest = images[which], images[which] >= BRIGHT
            digits = torch.tensor([scenes[i].digits for i in which], device=images.device)
            right = torch.ones_like(found[which])
            for digit, (top, left) in zip(digits.unbind(1), corners, strict=True):
                cell = (..., slice(top, top + CELL), slice(left, left + CELL))
                right &= (rest[cell].sum((1, 2, 3)) >= PRESENT) & (self._read(some[cell]) == digit)
                rest[cell] = False
            found[which] = right & (rest.sum((1, 2, 3)) < STRAY)
        return found

    def _read(self, cells: Tensor) -> Tensor:
        """Cells (B, 1, 16, 16) to the digits (B,) in them."""
        with torch.autocast(cells.device.type, enabled=False):
            return self.classifier.classify(small(cells))[1].argmax(1)

    def compute(self) -> dict[str, Tensor]:
        """The shares, float64.

        Raises:
            ValueError: if there were no samples.
        """
        if not self.n.any():
            raise ValueError("CaptionMatch needs samples and their captions, but there were none: show some")
        matched, n = self.matched.double(), self.n.double()
        found = {"caption_match": matched.sum() / n.sum()}
        for k, name in enumerate(("unseen", "seen")):
            if n[k]:
                found[f"caption_match_{name}"] = matched[k] / n[k]
        return found


def small(cells: Tensor) -> Tensor:
    """Bytes (B, 1, 16, 16) of cells to bytes (B, 1, 8, 8), as `DigitsNet` reads them: without the frame, resized."""
    frame = (CELL - DRAWN) // 2
    inner = cells[..., frame:-frame, frame:-frame].float()
    size = (DigitsNet.size, DigitsNet.size)
    return F.interpolate(inner, size, mode="bicubic", antialias=True).round().clamp(0, 255).byte()


def _scenes(captions: Sequence[str]) -> list[Scene]:
    try:
        return [SCENES[caption] for caption in captions]
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]!r} is no caption of DigitScenes, but CaptionMatch reads these alone: write it as "
            "'a seven' or 'a seven to the left of a three'"
        ) from None
