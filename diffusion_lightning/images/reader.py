"""One picture file to 8 bits a channel, upright, in grey or colour: the reader of training and of `score`.

Only the formats of FORMATS are decoded, whatever a file's name is, and only regular files are opened. A picture's size
is read from its header and checked before any memory is taken.
"""

import contextlib
import io
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

Source = Path | bytes  # an encoded picture

FORMATS = {  # Pillow's name: suffixes
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif",),
    "TGA": (".tga",),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
PIXELS = 2**28  # of a picture at most: 268 megapixels, 1 GiB when decoded; the largest cameras have 200
BYTES = 2**31  # of its file at most: those pixels of 16 bits in four channels, uncompressed
LARGE = 2**25  # pixels of which only one picture is decoded at a time, so that threads do not fill the memory

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, TILE_WIDTH, TILE_LENGTH = 258, 262, 322, 323  # TIFF tags
WHITE_IS_ZERO = 0

# Grey of 16 bits with white as zero: Pillow reads the little-endian one alone, and inverts neither, which is done here.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))

_one_large, _limit = threading.Lock(), threading.Lock()
_inside, _pillows = 0, Image.MAX_IMAGE_PIXELS


class Decoded(NamedTuple):
    """A picture of mode L or RGB, and whether its file has further frames or pages."""

    image: Image.Image
    more: bool


class Head(NamedTuple):
    """A picture's size when it is upright, and whether it has colours, and further frames or pages."""

    height: int
    width: int
    colour: bool
    more: bool


def decoded(source: Source, channels: int) -> Decoded:
    """A picture in 1 or 3 channels of 8 bits.

    It is turned upright according to its EXIF, transparent parts are composited over white, 16 bits are scaled to 8,
    round(v/257). Of several frames or pages it is the first.

    Raises:
        ValueError: if it is not a regular file, none of the formats, or too large.
        Exception: whatever Pillow raises for a damaged file.
    """
    with opened(source) as image, _one_large if _area(image) > LARGE else contextlib.nullcontext():
        more = _more(image)
        # Pillow scales the pixels of 2 and 4 bits, and not the one of them that is transparent.
        levels = re.search(r"'L;([24])'", str(_tiles(image)))
        if levels and isinstance(one := image.info.get("transparency"), int):
            image.info["transparency"] = one * 255 // (2 ** int(levels[1]) - 1)
        found = _eight_bits(source, image) if _deep(image) else image
        found.load()
        turn = None if image.format == "TIFF" else TURNS.get(_orientation(image))  # Pillow itself turns a TIFF
        return Decoded(_in_channels(found if turn is None else found.transpose(turn), channels), more)


def head(source: Source, quick: bool = False) -> Head:
    """Read a picture's header; raises as `decoded` does.

    Args:
        source: the encoded picture.
        quick: do not search a PNG for an orientation behind its pixels, which means decoding it.
    """
    with opened(source) as image:
        known = not quick or image.format != "PNG" or "exif" in image.info
        turned = image.format != "TIFF" and known and _orientation(image) in (5, 6, 7, 8)
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") or "LA;16" in str(_tiles(image))
        return Head(height, width, not grey, _more(image))


def regular(path: Path) -> None:
    """Raise ValueError if a path is something that must not be opened or waited for: a pipe, a device, a socket."""
    found = path.stat()
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a folder')}, not a file")


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """A picture whose header is read and checked, and whose pixels are not decoded yet; raises as `decoded` does."""
    if isinstance(source, Path):
        regular(source)
        if source.stat().st_size > BYTES:
            raise ValueError(f"its file has more than {BYTES / 2**30:g} GiB, which no picture needs")
    # A stream, since Pillow maps a file that it gets by name: it misreads a grey TIFF on its side so, and a file that
    # is cut short meanwhile would kill the process.
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream, own_limit():
        try:
            image = Image.open(stream, formats=_formats(source))
        except UnidentifiedImageError as error:
            raise ValueError(f"it is damaged, or none of {', '.join(FORMATS)}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"it has more than {PIXELS / 1e6:.0f} megapixels") from error
        with image:
            if _area(image) > PIXELS:
                raise ValueError(
                    f"it has {image.width}×{image.height} pixels, which is more than {PIXELS / 1e6:.0f} megapixels"
                )
            yield image


@contextlib.contextmanager
def own_limit() -> Iterator[None]:
    """Puts PIXELS in the place of Pillow's own limit, which is process-wide, as long as any thread is inside."""
    global _inside, _pillows
    with _limit:
        if _inside == 0:
            _pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, PIXELS
        _inside += 1
    try:
        yield
    finally:
        with _limit:
            _inside -= 1
            if _inside == 0:
                Image.MAX_IMAGE_PIXELS = _pillows


def _formats(source: Source) -> list[str]:
    """Those that may be tried. A TGA has no signature, so anything could be one: its name must say that it is."""
    if not FORMATS.keys() <= Image.OPEN.keys():
        Image.init()
    named = isinstance(source, Path) and source.suffix.lower() in FORMATS["TGA"]
    return [name for name in FORMATS if name in Image.OPEN and (name != "TGA" or named)]


def _area(image: Image.Image) -> int:
    """Pixels that decoding takes memory for: the picture's, or those of one tile of a TIFF."""
    tags: Any = getattr(image, "tag_v2", {})
    try:
        tile = int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))
    except TypeError:  # Pillow finds these wrong too
        tile = 0
    return max(image.width * image.height, tile)


def _more(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is none
        return False


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation 1 … 8; 1 if its EXIF cannot be read: the pixels are fine."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # struct.error, SyntaxError, ValueError, …
        return 1


def _tiles(image: Image.Image) -> list[Any]:
    return getattr(image, "tile", [])


def _deep(image: Image.Image) -> bool:
    """Whether it has more than 8 bits a channel."""
    if image.mode.startswith("I") or re.search(r";16[BLN]", str(_tiles(image))):
        return True
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode != "F" and max(np.atleast_1d(tags.get(BITS, 8))) > 8:  # Pillow would take the bytes for pixels
        raise ValueError("it is a TIFF of 16 bits a channel in separate planes, which cannot be read")
    return False


def _eight_bits(source: Source, image: Image.Image) -> Image.Image:
    """A picture of 16 bits a channel as one of 8, rounded; with alpha if one value is transparent."""
    mode, top, raw = image.mode, 65535, str(_tiles(image))
    tags: Any = getattr(image, "tag_v2", {})
    if mode.startswith("I"):
        numbers = np.asarray(image)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise ValueError("it has more than 16 bits a channel")
        values, mode = numbers.astype(np.uint16)[..., None], "L"
        top = 4095 if tags.get(BITS) == (12,) else top
    elif "LA;16B" in raw:  # Pillow would give the upper bytes alone; as RGBA it gives all four of a pixel
        four = _reread(source, lambda _: "RGBA").astype(np.uint16)
        values, mode = 256 * four[..., 0::2] + four[..., 1::2], "LA"
    else:
        premultiplied = "RGBa" in raw
        straight: Callable[[str], str] = lambda raw: raw.replace("RGBa", "RGBA")
        upper = _reread(source, straight) if premultiplied else np.asarray(image)
        values = 256 * upper.astype(np.uint16) + _reread(source, lambda raw: _other_order(straight(raw)))
        mode = "RGBa" if premultiplied else mode
    table = ((np.arange(65536) * 255 + top // 2) // top).clip(max=255).astype(np.uint8)
    if image.format == "TIFF" and mode == "L" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        table = 255 - table
    eight = table[values]
    if (transparent := image.info.get("transparency")) is not None and mode in ("L", "RGB"):
        alpha = (values != np.asarray(transparent)).any(-1, keepdims=True)
        eight, mode = np.concatenate([eight, np.uint8(255) * alpha], -1), {"L": "LA", "RGB": "RGBA"}[mode]
    return Image.frombytes(mode, (eight.shape[1], eight.shape[0]), eight.tobytes())


def _reread(source: Source, change: Callable[[str], str]) -> NDArray[np.uint8]:
    """The picture's bytes, unpacked as if they lay in the file in another way.

    Pillow gives the upper bytes of 16-bit colours; in the other byte order the lower bytes are the upper ones.
    """
    with opened(source) as image:
        tiles = _tiles(image)
        for i, tile in enumerate(tiles):
            raw, *more = (tile.args,) if isinstance(tile.args, str) else tile.args
            tiles[i] = tile._replace(args=(change(raw), *more) if more else change(raw))
        return np.asarray(image)


def _other_order(raw: str) -> str:
    return raw[:-1] + ("L" if raw.endswith("B") or (raw.endswith("N") and sys.byteorder == "big") else "B")


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    """One or three channels of whatever mode the picture has."""
    if image.mode == "F":
        raise ValueError("it holds floats, not bytes")
    if image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, "white")
        image.alpha_composite(over)
        image = image.convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # palettes, CMYK, YCbCr
    return image.convert("L" if channels == 1 else "RGB")
