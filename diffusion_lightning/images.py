"""Images: float tensors (B, C, H, W) in [-1, 1] everywhere inside, bytes where they enter and leave.

The one place where floats become bytes, so that every file, grid and metric sees the same ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to bytes, round(127.5·(x + 1)); rounded, since truncation would move 63 of the 256 levels by one.

    Bytes stay as they are.
    """
    if x.dtype == torch.uint8:
        return x
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]: v/127.5 - 1."""
    return x.float() / 127.5 - 1


def resize_tf1(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) as float32 of size × size pixels, bilinear as TensorFlow 1 did it.

    Pixel i is read at i·H/size: no half-pixel centres, no antialiasing. Published FIDs resize so.
    """
    return _bilinear_tf1(_bilinear_tf1(x.float(), size).transpose(2, 3), size).transpose(2, 3)


def _bilinear_tf1(x: Tensor, size: int) -> Tensor:
    """The last dimension to `size` values."""
    place = torch.arange(size, dtype=x.dtype, device=x.device) * (x.shape[-1] / size)
    left = place.floor().long()
    start, end = x[..., left], x[..., (left + 1).clamp(max=x.shape[-1] - 1)]
    return start + (end - start) * (place - left)  # in TensorFlow's order of operations, hence to the last bit


def grid(images: Tensor, scale: int | None = None, pad: int = 8, columns: int | None = None) -> Tensor:
    """Byte images (B, C, H, W) side by side in a grid, bytes (H', W', C) for a picture file.

    Enlarged ones are interpolated (bicubic): a person reads a digit of 8×8 pixels only when they are not squares.

    Args:
        images: bytes.
        scale: how many times as large every image becomes; None makes small ones at least 64 pixels high and wide.
        pad: width of the white lines between the images, in pixels.
        columns: how many; None makes the grid near-square.
    """
    scale = scale or max(1, math.ceil(64 / max(images.shape[2:])))
    if scale > 1:
        large = F.interpolate(from_uint8(images), scale_factor=float(scale), mode="bicubic", align_corners=False)
        images = to_uint8(large)
    b, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    sheet = images.new_full((c, rows * (h + pad) + pad, columns * (w + pad) + pad), 255)
    for i, image in enumerate(images):
        top, left = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[:, top : top + h, left : left + w] = image
    return sheet.permute(1, 2, 0).contiguous()
