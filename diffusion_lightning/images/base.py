"""Images: float tensors (B, C, H, W) in [-1, 1] everywhere inside, bytes where they enter and leave.

The one place where floats become bytes, so that every file, grid and metric sees the same ones.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
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


def grid(
    images: Tensor,
    scale: int | None = None,
    pad: int = 8,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """Byte images (B, C, H, W) side by side in a grid, bytes (H', W', C) for a picture file.

    Enlarged ones are interpolated (bicubic): a person reads a digit of 8×8 pixels only when they are not squares.

    Args:
        images: bytes.
        scale: how many times as large every image becomes; None makes small ones at least 64 pixels high and wide.
        pad: width of the white lines between the images, in pixels.
        columns: how many; None makes the grid near-square.
        captions: one below each image, in as many lines as the longest needs; None is none.
    """
    scale = scale or _scale(images.shape[2:])
    if scale > 1:
        large = F.interpolate(from_uint8(images), scale_factor=float(scale), mode="bicubic", align_corners=False)
        images = to_uint8(large)
    b, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    below = [] if captions is None else written(captions, w)
    row = h + pad + (below[0].shape[0] if below else 0)
    sheet = images.new_full((c, rows * row + pad, columns * (w + pad) + pad), 255)
    for i, image in enumerate(images):
        top, left = pad + i // columns * row, pad + i % columns * (w + pad)
        sheet[:, top : top + h, left : left + w] = image
        if below:
            sheet[:, top + h : top + row - pad, left : left + w] = below[i]
    return sheet.permute(1, 2, 0).contiguous()


def grid_size(n: int, shape: Sequence[int], pad: int = 8) -> tuple[int, int]:
    """Height and width of the `grid` of n images (C, H, W), without captions."""
    scale, columns = _scale(shape[1:]), math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    return rows * (scale * shape[1] + pad) + pad, columns * (scale * shape[2] + pad) + pad


def _scale(size: Sequence[int]) -> int:
    """How many times as large small images become, so that they are 64 pixels high or wide."""
    return max(1, math.ceil(64 / max(size)))


def written(captions: Sequence[str], width: int, size: int = 11) -> list[Tensor]:
    """Each caption in black on white, bytes (H, width), all as high as the one of most lines; at most four lines."""
    font = ImageFont.load_default(size)
    lines = [_lines(caption, width, font.getlength) for caption in captions]
    lines = [of_one if len(of_one) <= 4 else [*of_one[:3], f"{of_one[3]} …"] for of_one in lines]
    height = max(map(len, lines), default=0) * (size + 2) + 4
    found = []
    for of_one in lines:
        strip = Image.new("L", (width, height), 255)
        ImageDraw.Draw(strip).multiline_text((0, 2), "\n".join(of_one), fill=0, font=font, spacing=2)
        found.append(torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(height, width))
    return found


def _lines(text: str, width: int, length: Callable[[str], float]) -> list[str]:
    """A text broken between words, so that its lines are no longer than a width where the words allow."""
    found: list[str] = []
    for word in text.split():
        longer = f"{found[-1]} {word}" if found else word
        if found and length(longer) <= width:
            found[-1] = longer
        else:
            found.append(word)
    return found
