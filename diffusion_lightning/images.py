"""Images: float tensors (B, C, H, W) in [-1, 1] everywhere inside, bytes where they enter and leave.

The one place where floats become bytes, so that every file, grid and metric sees the same ones.
"""

import math

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to bytes, round(127.5·(x + 1)): rounded, since truncation moves 63 of the 256 levels by one."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]: v/127.5 - 1."""
    return x.float() / 127.5 - 1


def grid(images: Tensor, scale: int | None = None, pad: int = 1) -> Tensor:
    """Byte images (B, C, H, W) side by side in a near-square grid, (H', W', 3 or 1) bytes for a picture file.

    Args:
        images: bytes.
        scale: every pixel becomes scale × scale ones; None makes a side of at least 64 pixels of small images.
        pad: width of the white lines between the images, in pixels of the images.
    """
    b, c, h, w = images.shape
    columns = math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    sheet = images.new_full((c, rows * (h + pad) + pad, columns * (w + pad) + pad), 255)
    for i, image in enumerate(images):
        top, left = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[:, top : top + h, left : left + w] = image
    scale = scale or max(1, math.ceil(64 / max(h, w)))
    return sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).contiguous()
