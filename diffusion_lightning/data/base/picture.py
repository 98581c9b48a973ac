"""One picture file to bytes (C, H, W) of one size."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...images import Source, decoded, head, own_limit

Box = tuple[int, int, int, int]  # left, top, right, bottom


class OtherSize(ValueError):  # noqa: N818 it names what is wrong
    """A picture of another size than the set's."""


class Decoded(NamedTuple):
    """Bytes (C, H, W), whether the picture had to be enlarged, and whether it has further frames or pages."""

    pixels: NDArray[np.uint8]
    enlarged: bool
    more: bool


@dataclass(frozen=True)
class ResizeCrop:
    """Brings a picture, as `images.decoded` reads it, to bytes of one shape.

    Its central square, the shorter side whole, is averaged over areas down to H = W pixels: each pixel is the mean of
    those whose centres it covers (Pillow's BOX). A smaller picture is enlarged bicubically.

    Args:
        shape: (C, H, W) of the result, C = 1 or 3.
        keep: take the picture as it is, which must be of H × W pixels.
        box: cut this out of the upright picture first, in pixels.
    """

    shape: tuple[int, int, int]
    keep: bool = False
    box: Box | None = None

    @staticmethod
    def check(channels: int, size: int | None) -> None:
        """Raise ValueError if pictures cannot be brought to these."""
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, but pictures are grey or coloured: give 1 or 3")
        if size is not None and size < 1:
            raise ValueError(f"size is {size}, which is no size: give at least 1 pixel")

    def __call__(self, source: Source) -> Decoded:
        """The picture brought to the shape.

        Raises:
            OtherSize: if it is to be kept and has another size.
            Exception: what `decoded` raises.
        """
        channels, height, width = self.shape
        with own_limit():  # Pillow checks a cut against its own
            image, more = decoded(source, channels)
            if self.box is not None:
                image = image.crop(self.box)
            if self.keep and image.size != (width, height):
                raise OtherSize(f"{image.width}×{image.height}")
            side = min(image.size)
            if not self.keep:
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side))
                way = Image.Resampling.BOX if side >= width else Image.Resampling.BICUBIC
                image = image.resize((width, height), way)
        pixels = np.asarray(image).reshape(height, width, channels)
        return Decoded(np.ascontiguousarray(pixels.transpose(2, 0, 1)), not self.keep and side < width, more)


def size_of_first(sources: Iterable[Source], name: str) -> tuple[int, int]:
    """Height and width of the first picture that can be read, of a set called `name`."""
    reason = ""
    for source in sources:
        try:
            return head(source)[:2]
        except Exception as error:  # it is named when all are decoded
            reason = reason or f" (of the first: {' '.join(str(error).split())})"
    raise ValueError(f"none of the pictures of {name} can be read{reason}: give a set of pictures")
