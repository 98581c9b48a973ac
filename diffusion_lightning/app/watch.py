"""How the page of `app` sees a chain run: its steps, and some of its x_t as pictures, until it is stopped."""

import io
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import images
from ..samplers.spacing import even

FRAMES = 10  # shown of one chain
PREVIEW = 128  # pixels of a frame's longer side at most; the result has all


class Stopped(Exception):  # noqa: N818 a wish of the visitor, and no error
    """The visitor has stopped a request, or has gone."""


@dataclass(frozen=True)
class Progress:
    """How far a request is: steps done of all, and a frame's pictures (PNG), or none."""

    done: int
    total: int
    frame: tuple[bytes, ...] = ()


Show = Callable[[Progress], None]


class Watch:
    """What a sampler calls with t and x_t at each of its steps.

    A frame is left out if making frames, such as decoding latents, has taken more time than the steps.

    Args:
        model: it makes images of x_t.
        show: called with a `Progress`; it raises `Stopped` to stop.
        total: how many calls there will be.
        framed: the numbers of the calls that show a frame.
        n: images of a frame; those of other numbers are not shown.
    """

    def __init__(self, model: Any, show: Show, total: int, framed: Collection[int], n: int) -> None:
        self.model, self.show, self.total, self.framed, self.n = model, show, total, framed, n
        self.calls, self.spent, self.start = 0, 0.0, time.monotonic()

    def __call__(self, t: int, x_t: Tensor) -> None:
        now = time.monotonic()
        frame: tuple[bytes, ...] = ()
        if self.calls in self.framed and len(x_t) == self.n and self.spent <= (now - self.start) / 2 + 0.5:
            frame = tuple(map(png, preview(self.model.decoded(x_t))))
            self.spent += time.monotonic() - now
        self.show(Progress(self.calls, max(self.total - 1, 1), frame))
        self.calls += 1


class Watched:
    """A sampler that is watched, whose frames are at evenly spaced angles of noise and signal.

    Args:
        sampler: the reverse loop.
        model: whose it is.
        show: see `Watch`.
        n: samples of one batch.
    """

    def __init__(self, sampler: Callable[..., Tensor], model: Any, show: Show, n: int) -> None:
        self.sampler, self.model, self.show, self.n = sampler, model, show, n

    def __call__(self, *given: Any, **more: Any) -> Tensor:
        falling = list(self.model.angles(self.sampler))[::-1]
        shown = set(even(self.model.angles(self.sampler), min(FRAMES, len(falling)))) if len(falling) > 2 else set()
        framed = [k for k, t in enumerate(falling[:-1]) if t in shown]
        return self.sampler(*given, **more, watch=Watch(self.model, self.show, len(falling), framed, self.n))


def preview(x: Tensor) -> Tensor:
    """Images (B, C, H, W), those of many pixels averaged over squares, which is enough to see noise turn into them."""
    factor = -(-max(x.shape[2:]) // PREVIEW)
    return F.avg_pool2d(x.float(), factor) if factor > 1 else x


def png(image: Tensor) -> bytes:
    """A picture of an image (C, H, W) in [-1, 1]."""
    stream = io.BytesIO()
    Image.fromarray(images.to_uint8(image).cpu().permute(1, 2, 0).squeeze(-1).numpy()).save(stream, "PNG")
    return stream.getvalue()
