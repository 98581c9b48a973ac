"""A user's pictures and masks, brought to the size of a model's images, and what was done to them in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import images
from ..data.base.picture import ResizeCrop
from ..images.reader import Head

WHITE = 128  # from this grey level on a mask is white


def picture(path: str | Path, shape: Sequence[int]) -> tuple[Tensor, str]:
    """A picture file as an image (C, H, W) in [-1, 1], and what was done to it.

    One that has the size already is taken as it is. Of any other the central square is cut out and resized, as the data
    modules do it. Colours become grey, and grey is repeated, as the channels need it.

    Args:
        path: of any picture that `images.decoded` reads.
        shape: (C, H, W) of the model's images.

    Raises:
        ValueError: if it is no whole picture, or cannot be brought to the shape.
        OSError: if it cannot be opened.
    """
    path, (channels, height, width) = Path(path), shape
    found = _head(path)
    fits = (found.height, found.width) == (height, width)
    _check_square(path, found, fits, shape)
    resize = ResizeCrop((channels, height, width), keep=fits)
    pixels = torch.from_numpy(_read(path, lambda: resize(path)).pixels.copy())
    said = [_size(found), *_resized(found, fits, shape)]
    said += ["made grey"] if found.colour and channels == 1 else []
    said += ["its grey taken for three colours"] if not found.colour and channels == 3 else []
    said += ["its first frame"] if found.more else []
    return images.from_uint8(pixels), f"{path.name}: {', '.join(said)}"


def mask(path: str | Path, shape: Sequence[int], of: str | Path | None = None) -> tuple[Tensor, str]:
    """A mask as what is known, (1, H, W) of 0 where it is white and 1 where it is black, and what was done to it.

    What is half as bright as white, or more, is white, and so is transparent. It is cut and resized as a picture of its
    size is; a pixel is known where all that it covers is black, so that none holds a part of what is drawn anew.

    Args:
        path: of any picture that `images.decoded` reads.
        shape: (C, H, W) of the model's images.
        of: the picture that it masks: it must be of the same size, or of the model's; None is not compared.

    Raises:
        ValueError: if it is no whole picture, or of another size than the picture.
        OSError: if it cannot be opened.
    """
    path, (_, height, width) = Path(path), shape
    found = _head(path)
    fits = (found.height, found.width) == (height, width)
    if of is not None and not fits and (found.height, found.width) != (theirs := _head(Path(of)))[:2]:
        raise ValueError(
            f"the mask {path.name} has {found.width}x{found.height} pixels, but {Path(of).name} has "
            f"{theirs.width}x{theirs.height}: give a mask of the picture's size, or of the model's, {width}x{height}"
        )
    _check_square(path, found, fits, shape)
    grey = np.array(_read(path, lambda: images.decoded(path, 1)).image)
    white = torch.from_numpy(grey >= WHITE).float()[None]
    if not fits:
        side = min(white.shape[1:])
        top, left = ((n - side) // 2 for n in white.shape[1:])
        white = F.adaptive_max_pool2d(white[:, top : top + side, left : left + side], (height, width))
    anew = f"{int(white.sum()):,} of {height * width:,} pixels white, which are drawn anew"
    return 1 - white, f"{path.name}: {', '.join([_size(found), *_resized(found, fits, shape), anew])}"


def _head(path: Path) -> Head:
    return _read(path, lambda: images.head(path))


def _read(path: Path, read: Any) -> Any:
    """What a reader gives; raise ValueError if the file is no whole picture."""
    try:
        return read()
    except Exception as error:  # whatever a damaged file makes of a decoder
        if isinstance(error, OSError) and error.errno is not None:  # which Pillow's own errors have not
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a picture ({reason}): give a whole .png, .jpg or other") from error


def _check_square(path: Path, found: Head, fits: bool, shape: Sequence[int]) -> None:
    _, height, width = shape
    if not fits and height != width:
        raise ValueError(
            f"{path.name} has {found.width}x{found.height} pixels, but the model's images {width}x{height}, to which "
            "a square is not brought: cut and resize it to that size"
        )


def _size(found: Head) -> str:
    return f"{found.width}x{found.height} {'RGB' if found.colour else 'grey'}"


def _resized(found: Head, fits: bool, shape: Sequence[int]) -> list[str]:
    """What was done to a picture's size, in words."""
    side = min(found.height, found.width)
    if fits:
        return ["taken in its size"]
    said = [] if found.height == found.width else [f"cut to {side}x{side}"]
    if side != shape[1]:
        said.append(f"{'enlarged' if side < shape[1] else 'resized'} to {shape[2]}x{shape[1]}")
    return said
