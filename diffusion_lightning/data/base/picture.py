"""One picture file to bytes (C, H, W): upright, in grey or colour, of one size."""

import contextlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Source = Path | bytes  # an encoded picture
Box = tuple[int, int, int, int]  # left, top, right, bottom


class OtherSize(ValueError):  # noqa: N818 it names what is wrong
    """A picture of another size than the set's."""


@dataclass(frozen=True)
class Fit:
    """Brings a picture to bytes of one shape.

    It is turned upright as its EXIF says; transparent parts are laid over white; 16 bits are scaled to 8,
    round(v/257). Then its central square, the shorter side whole, is averaged over areas down to H = W pixels: each
    pixel is the mean of those whose centres it covers (Pillow's BOX). A smaller picture is enlarged bicubically.

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
        """Raises ValueError where pictures cannot be brought to these."""
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, but pictures are grey or coloured: give 1 or 3")
        if size is not None and size < 1:
            raise ValueError(f"size is {size}, which is no size: give at least 1 pixel")

    def __call__(self, source: Source) -> tuple[NDArray[np.uint8], bool]:
        """The bytes (C, H, W), and whether the picture had to be enlarged.

        Raises:
            OtherSize: where it is to be kept and has another size.
            Exception: whatever Pillow raises of a damaged file.
        """
        channels, height, width = self.shape
        image = _in_channels(_upright(source), channels)
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
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), not self.keep and side < width


def size_of(source: Source) -> tuple[int, int]:
    """Height and width of a picture when it is upright, from its head alone."""
    with _open(source) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 … 8 lie on their side
        return (image.width, image.height) if turned else (image.height, image.width)


def size_of_first(sources: Iterable[Source], name: str) -> tuple[int, int]:
    """Height and width of the first picture that can be read, of a set called `name`."""
    for source in sources:
        with contextlib.suppress(Exception):  # it is named when all are decoded
            return size_of(source)
    raise ValueError(f"none of the pictures of {name} can be read: give a set of pictures")


def _open(source: Source) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _upright(source: Source) -> Image.Image:
    with _open(source) as image:
        if image.mode.startswith("I") or re.search(";16[BLN]", str(getattr(image, "tile", ""))):
            return ImageOps.exif_transpose(_from_16_bits(source, image))
        image.load()
        return ImageOps.exif_transpose(image)


def _from_16_bits(source: Source, image: Image.Image) -> Image.Image:
    """A picture of 16 bits a channel as one of 8, rounded."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("it has more than 16 bits a channel")
    else:
        values = 256 * np.asarray(image).astype(np.int64) + _lower_bytes(source)
    eight = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    eight.getexif().update(image.getexif())
    return eight


def _lower_bytes(source: Source) -> NDArray[np.uint8]:
    """Pillow gives of 16-bit colours the upper bytes: read in the other order of bytes, they are the lower ones."""
    with _open(source) as image:
        tiles: Any = getattr(image, "tile")  # noqa: B009 not among Pillow's typed attributes
        for i, tile in enumerate(tiles):
            mode, *more = (tile.args,) if isinstance(tile.args, str) else tile.args
            mode = mode[:-1] + ("L" if mode.endswith("B") else "B")
            tiles[i] = tile._replace(args=(mode, *more) if more else mode)
        return np.asarray(image)


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    """One or three channels of whatever mode the picture has."""
    if image.mode == "F":
        raise ValueError("it holds floats, not bytes")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, "white")
        image.alpha_composite(over)
        image = image.convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # palettes, CMYK, YCbCr
    return image.convert("L" if channels == 1 else "RGB")
