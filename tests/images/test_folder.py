"""Pictures on disk: what is read is what was written, alike by training and by `score`; what cannot be is named."""

import hashlib
import io
import os
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from diffusion_lightning.data import Arrays, ImageFolder
from diffusion_lightning.images import Archive, Folder, archive, head, origin, walk, write_npz, write_png

from ..conftest import with_a_flipped_bit

Values = NDArray[Any]
TRIED = pytest.mark.tried("Pictures and archives")
pytestmark = pytest.mark.usefixtures("own_cache")

DRAW = np.random.default_rng(0)
COLOUR: Values = DRAW.integers(0, 256, (6, 5, 3), np.uint8)
GREY, ALPHA = COLOUR[..., :1], DRAW.integers(0, 256, (6, 5, 1), np.uint8)
DEEP: Values = DRAW.integers(0, 65536, (6, 5, 4), np.uint16)
TURNED = np.rot90(COLOUR, -1)  # what orientation 6 shows


def saved(pixels: Values | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def over(pixels: Values, alpha: Values, top: int = 255) -> Values:
    """Composited over white, in 8 bits."""
    share = alpha / top
    return pixels / (top / 255) * share + 255 * (1 - share)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: Values, colour: int, *chunks: bytes, size: tuple[int, int] | None = None, bits: int = 0) -> bytes:
    """A PNG by hand, of values as they lie in it: those that Pillow does not write."""
    height, width = size or values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, bits or 8 * values.itemsize, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + end


def tiff(
    values: Values, photometric: int, order: Literal["<", ">"] = "<", size: tuple[int, int] | None = None, **more: int
) -> bytes:
    """An uncompressed TIFF by hand."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    (height, width), channels, bits = size or values.shape[:2], values.shape[2], 8 * values.itemsize
    tags = {
        256: width,
        257: height,
        259: 1,
        262: photometric,
        273: 8,
        277: channels,
        278: height,
        279: len(data),
        **{int(tag.removeprefix("tag")): value for tag, value in more.items()},
    }
    at = 8 + len(data)
    ifd = at + 2 * channels
    found = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", ifd) + data
    found += struct.pack(f"{order}{channels}H", *[bits] * channels)
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    inside = struct.pack(order + "I", at) if channels > 2 else struct.pack(f"{order}{channels}H", *[bits] * channels)
    entries[258] = struct.pack(order + "HHI", 258, 3, channels) + inside.ljust(4, b"\0")
    return found + struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)


def oriented(kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(COLOUR, kind, exif=exif, **options)


def with_transparent_palette() -> tuple[bytes, bytes, Values, Values]:
    """One colour of a palette transparent, and each by half; what the first shows, and what the second."""
    image = Image.fromarray(COLOUR).quantize(16)
    colours = np.array(image.getpalette()[:48], np.uint8).reshape(16, 3)  # type: ignore[index]
    pixels = colours[np.asarray(image)]
    shown, mixed = np.where((np.asarray(image) == 3)[..., None], 255, pixels), over(pixels, np.full((6, 5, 1), 128))
    return saved(image, "PNG", transparency=3), saved(image, "PNG", transparency=bytes([128] * 16)), shown, mixed


def late_exif(data: bytes) -> bytes:
    """The chunk of a PNG's EXIF behind its pixels, where some programs write it."""
    at = data.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    exif = data[at : at + 12 + length]
    rest = data[:at] + data[at + 12 + length :]
    return rest[:-12] + exif + rest[-12:]


PALETTE, HALF, SHOWN, MIXED = with_transparent_palette()
FRAMES = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
LOSSY = 4  # the best quality of JPEG and AVIF is off by 2 here

# The file's name: its bytes, what is to be seen, and how far from it a level may be.
ODD: dict[str, tuple[bytes, Values, float]] = {
    "plain.png": (saved(COLOUR, "PNG"), COLOUR, 0),
    "plain.jpe": (saved(COLOUR, "JPEG", quality=100, subsampling=0), COLOUR, LOSSY),
    "plain.jfif": (saved(COLOUR, "JPEG", quality=100, subsampling=0), COLOUR, LOSSY),
    "plain.webp": (saved(COLOUR, "WEBP", lossless=True), COLOUR, 0),
    "plain.bmp": (saved(COLOUR, "BMP"), COLOUR, 0),
    "plain.tiff": (saved(COLOUR, "TIFF"), COLOUR, 0),
    "plain.ppm": (saved(COLOUR, "PPM"), COLOUR, 0),
    "plain.gif": (saved(Image.fromarray(COLOUR).quantize(64), "GIF"), COLOUR, 0),
    "plain.jp2": (saved(COLOUR, "JPEG2000"), COLOUR, 0),
    "plain.avif": (saved(COLOUR, "AVIF", quality=100, subsampling="4:4:4"), COLOUR, LOSSY),
    "plain.tga": (saved(COLOUR, "TGA"), COLOUR, 0),
    "capital.PNG": (saved(COLOUR, "PNG"), COLOUR, 0),
    "a jpeg.png": (saved(COLOUR, "JPEG", quality=100, subsampling=0), COLOUR, LOSSY),
    "alpha.png": (saved(np.dstack([COLOUR, ALPHA]), "PNG"), over(COLOUR, ALPHA), 1),
    "alpha.webp": (saved(np.dstack([COLOUR, ALPHA]), "WEBP", lossless=True, exact=True), over(COLOUR, ALPHA), 1),
    "alpha.tif": (saved(np.dstack([COLOUR, ALPHA]), "TIFF"), over(COLOUR, ALPHA), 1),
    "alpha.tga": (saved(np.dstack([COLOUR, ALPHA]), "TGA"), over(COLOUR, ALPHA), 1),
    "grey with alpha.png": (saved(np.dstack([GREY, ALPHA]), "PNG"), over(GREY, ALPHA), 1),
    "palette with a transparent colour.png": (PALETTE, SHOWN, 0),
    "palette half transparent.png": (HALF, MIXED, 1),
    "a transparent grey.png": (
        png(GREY, 0, chunk(b"tRNS", struct.pack(">H", int(GREY[2, 3, 0])))),
        np.where(GREY == GREY[2, 3], 255, GREY),
        0,
    ),
    "a transparent grey of 2 bits.png": (
        png(np.full((1, 1, 1), 0b00_01_10_11, np.uint8), 0, chunk(b"tRNS", b"\0\1"), size=(1, 4), bits=2),
        np.array([[[0], [255], [170], [255]]]),
        0,
    ),
    "a transparent colour.png": (
        png(COLOUR, 2, chunk(b"tRNS", struct.pack(">3H", *map(int, COLOUR[2, 3])))),
        np.where((COLOUR == COLOUR[2, 3]).all(-1, keepdims=True), 255, COLOUR),
        0,
    ),
    "16 bits grey.png": (saved(DEEP[..., 0], "PNG"), DEEP[..., :1] / 257, 0.5),
    "16 bits grey.tif": (saved(DEEP[..., 0], "TIFF"), DEEP[..., :1] / 257, 0.5),
    "16 bits grey, lzw.tif": (saved(DEEP[..., 0], "TIFF", compression="tiff_lzw"), DEEP[..., :1] / 257, 0.5),
    "16 bits grey.pgm": (b"P5 5 6 65535\n" + DEEP[..., 0].astype(">u2").tobytes(), DEEP[..., :1] / 257, 0.5),
    "16 bits colour.png": (png(DEEP[..., :3], 2), DEEP[..., :3] / 257, 0.5),
    "16 bits colour.tif": (tiff(DEEP[..., :3], 2), DEEP[..., :3] / 257, 0.5),
    "16 bits colour, big-endian.tif": (tiff(DEEP[..., :3], 2, ">"), DEEP[..., :3] / 257, 0.5),
    "16 bits grey with alpha.png": (png(DEEP[..., 2:], 4), over(DEEP[..., 2:3], DEEP[..., 3:], 65535), 2),
    "16 bits with alpha.png": (png(DEEP, 6), over(DEEP[..., :3], DEEP[..., 3:], 65535), 2),
    "16 bits with alpha.tif": (tiff(DEEP, 2, tag338=2), over(DEEP[..., :3], DEEP[..., 3:], 65535), 2),
    "16 bits premultiplied.tif": (
        tiff(np.minimum(DEEP, DEEP[..., 3:]), 2, tag338=1),
        np.minimum(DEEP, DEEP[..., 3:])[..., :3] / 257 + 255 * (1 - DEEP[..., 3:] / 65535),
        2,
    ),
    "16 bits cmyk.tif": (tiff(DEEP, 5), (1 - DEEP[..., :3] / 65535) * (1 - DEEP[..., 3:] / 65535) * 255, 2),
    "16 bits, a transparent grey.png": (
        png(DEEP[..., :1], 0, chunk(b"tRNS", struct.pack(">H", int(DEEP[2, 3, 0])))),
        np.where(DEEP[..., :1] == DEEP[2, 3, 0], 255, DEEP[..., :1] / 257),
        0.5,
    ),
    "16 bits, a transparent colour.png": (
        png(DEEP[..., :3], 2, chunk(b"tRNS", struct.pack(">3H", *map(int, DEEP[2, 3, :3])))),
        np.where((DEEP == DEEP[2, 3]).all(-1, keepdims=True), 255, DEEP[..., :3] / 257),
        0.5,
    ),
    "white is zero.tif": (tiff(GREY, 0), 255 - GREY, 0),
    "white is zero, 16 bits.tif": (tiff(DEEP[..., :1], 0), 255 - DEEP[..., :1] / 257, 0.5),
    "white is zero, 16 bits, big-endian.tif": (tiff(DEEP[..., :1], 0, ">"), 255 - DEEP[..., :1] / 257, 0.5),
    "oriented.png": (oriented("PNG"), TURNED, 0),
    "oriented behind its pixels.png": (late_exif(oriented("PNG")), TURNED, 0),
    "oriented.jpg": (oriented("JPEG", quality=100, subsampling=0), TURNED, LOSSY),
    "oriented.webp": (oriented("WEBP", lossless=True), TURNED, 0),
    "oriented.tif": (tiff(COLOUR, 2, tag274=6), TURNED, 0),
    "oriented, grey.tif": (tiff(GREY, 1, tag274=6), np.rot90(GREY, -1), 0),
    "oriented.avif": (oriented("AVIF", quality=100, subsampling="4:4:4"), TURNED, LOSSY),
    "oriented, 16 bits.tif": (tiff(DEEP[..., :1], 1, tag274=6), np.rot90(DEEP[..., :1], -1) / 257, 0.5),
    "broken exif.png": (png(COLOUR, 2, chunk(b"eXIf", b"nonsense")), COLOUR, 0),
    "exif cut short.png": (png(COLOUR, 2, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x09\x01")), COLOUR, 0),
    "broken raw exif.png": (
        png(COLOUR, 2, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  4\nzz zz")),
        COLOUR,
        0,
    ),
    "broken exif.webp": (saved(COLOUR, "WEBP", lossless=True, exif=b"nonsense"), COLOUR, 0),
    "broken exif.jpg": (saved(COLOUR, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0nons"), COLOUR, LOSSY),
    "pages.tif": (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), COLOUR, 0),
    "pages.mpo": (
        saved(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:], quality=100, subsampling=0),
        COLOUR,
        LOSSY,
    ),
    "animation.gif": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), COLOUR, 0),
    "animation.png": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), COLOUR, 0),
    "animation.webp": (
        saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        COLOUR,
        0,
    ),
}
SEVERAL = [name for name in ODD if name.startswith(("pages", "animation"))]


def put(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(data)
    return folder


def by_training(folder: Path, channels: int = 3, **options: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "held_out is 0")
        return ImageFolder(folder, channels=channels, held_out=0, **options).read("train")[0]


def by_score(folder: Path, channels: int = 3) -> torch.Tensor:
    found = Folder(folder, channels)
    return found[0 : len(found)]


READERS: dict[str, Callable[[Path], torch.Tensor]] = {"training": by_training, "score": by_score}
READ = pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())


@TRIED
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_a_picture_is_the_same_for_training_and_for_score(name: str, tmp_path: Path) -> None:
    data, expected, far = ODD[name]
    folder = put(tmp_path / "f", name, data)
    for channels in (3, 1):
        assert torch.equal(by_training(folder, channels), by_score(folder, channels))
    seen = by_score(folder)[0].permute(1, 2, 0).numpy()
    assert seen.shape == (*expected.shape[:2], 3)
    assert np.abs(seen - expected.astype(float)).max() <= far


@TRIED
@READ
@pytest.mark.parametrize("name", SEVERAL)
def test_further_frames_and_pages_are_counted(name: str, read: Callable[[Path], torch.Tensor], tmp_path: Path) -> None:
    folder = put(put(tmp_path / "f", name, ODD[name][0]), "plain.png", ODD["plain.png"][0])
    with pytest.warns(UserWarning, match="1 of 2 pictures .*have more than one frame or page: the first is read"):
        read(folder)


@TRIED
@READ
@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "SGI", "DDS", "MSP", "SPIDER", "ICNS"])
def test_a_format_that_is_not_listed_is_never_decoded(
    kind: str, read: Callable[[Path], torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS would start Ghostscript: whatever a file is named, its bytes must be of a listed format."""
    size = 64 if kind in ("ICO", "ICNS") else 8
    image = Image.new({"MSP": "1", "SPIDER": "F"}.get(kind, "RGB"), (size, size))
    folder = put(tmp_path / "f", "a.png", saved(image, kind))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"{kind} is decoded")

    monkeypatch.setitem(Image.OPEN, kind, (refuse, None))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    with pytest.raises(ValueError, match="it is damaged, or none of PNG, JPEG") as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert origin(folder / "a.png") is None


def pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = pytest.mark.parametrize(
    ("make", "what"), [(pipe, "a pipe"), (a_socket, "a socket"), (device, "a device")], ids=["pipe", "socket", "device"]
)


@TRIED
@READ
@KINDS
def test_what_is_not_a_file_is_named_and_not_waited_for(
    make: Callable[[Path], None], what: str, read: Callable[[Path], torch.Tensor], tmp_path: Path
) -> None:
    folder = put(tmp_path / "f", "a.png", ODD["plain.png"][0])
    make(folder / "b.png")
    with pytest.raises(ValueError, match=rf"b\.png.*it is {what}, not a file"):
        read(folder)
    assert origin(folder / "b.png") is None


@TRIED
@KINDS
def test_what_is_not_a_file_is_left_out_if_broken_ones_are(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    folder = put(tmp_path / "f", "a.png", ODD["plain.png"][0])
    make(folder / "b.png")
    with pytest.warns(UserWarning, match=r"1 of 2 pictures cannot be read and are left out: .*b\.png"):
        assert len(by_training(folder, on_error="skip")) == 1


@TRIED
@KINDS
def test_an_archive_that_is_not_a_file_is_not_waited_for(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.npz")
    readers: list[Callable[[Path], Any]] = [Archive, lambda path: Arrays(path).prepare_data()]
    for read in readers:
        with pytest.raises(ValueError, match=r"a\.npz is"):
            read(tmp_path / "a.npz")


# Bombs: a small file that says it is a large picture.


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURED = pytest.mark.skipif(
    not CLEAR.exists() or "VmHWM" not in STATUS.read_text(),
    reason="this system does not say a process's peak of memory",
)


@contextmanager
def little_memory(most: int = 2**26) -> Iterator[None]:
    """Asserts that the process never took more than `most` bytes on top of what it has.

    64 MiB: the libraries and threads that a first picture starts take 10, and the smallest of the bombs 100.
    """

    def peak() -> int:
        lines = STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    CLEAR.write_text("5")  # the peak is what it has now
    before = peak()
    yield
    assert peak() - before < most


def resized(data: bytes, mark: bytes, skip: int, form: str, times: int = 1) -> bytes:
    """The file with a height and width of 30,000 at `skip` bytes after each of its marks."""
    for _ in range(times):
        at = data.rindex(mark) + skip if times == 1 else data.index(mark) + skip
        both = struct.pack(form, 30_000, 30_000)
        data = data[:at] + both + data[at + len(both) :]
    return data


HUGE = (30_000, 30_000)
BOMBS: dict[str, bytes] = {
    "900 megapixels.png": png(GREY, 0, size=HUGE),
    "900 megapixels.jpg": resized(saved(COLOUR, "JPEG"), b"\xff\xc0", 5, ">HH"),
    "900 megapixels.webp": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
    + (29_999).to_bytes(3, "little") * 2
    + b"\0" * 80,
    "900 megapixels.bmp": resized(saved(COLOUR, "BMP"), b"BM", 18, "<II"),
    "900 megapixels.tif": tiff(GREY, 1, size=HUGE),
    "tiles of 900 megapixels.tif": tiff(GREY, 1, tag322=30_000, tag323=30_000),
    "900 megapixels.ppm": b"P6 30000 30000 255\n",
    "900 megapixels.gif": resized(saved(Image.fromarray(COLOUR).quantize(64), "GIF"), b"GIF8", 6, "<HH"),
    "900 megapixels.j2k": resized(saved(COLOUR, "JPEG2000", no_jp2=True), b"\xff\x51", 6, ">II"),
    "900 megapixels.avif": resized(saved(COLOUR, "AVIF"), b"ispe", 8, ">II"),
    "900 megapixels.tga": resized(saved(COLOUR, "TGA"), saved(COLOUR, "TGA")[:3], 12, "<HH"),
    "4 gigapixels.png": png(GREY, 0, size=(65_000, 65_000)),
    "text of 100 MB.png": png(GREY, 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * 2**20), 1))),
    "profile of 100 MB.png": png(GREY, 0, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 * 2**20), 1))),
}


@TRIED
@MEASURED
@READ
@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_would_fill_the_memory_is_refused(
    name: str, read: Callable[[Path], torch.Tensor], tmp_path: Path
) -> None:
    folder = put(put(tmp_path / "f", name, BOMBS[name]), "plain.png", ODD["plain.png"][0])
    with little_memory(), pytest.raises(ValueError, match="cannot be read") as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    # libavif refuses it before it says its size, and so does libwebp for Pillow before 13.
    if "pixels" in name and not name.endswith("avif") and "could not create decoder object" not in str(caught.value):
        assert "megapixels" in str(caught.value).replace(name, "")


@TRIED
@MEASURED
def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "f", "a.webp", b"RIFF\0\0\0\0WEBPVP8 ")
    os.truncate(folder / "a.webp", 2**31 + 1)  # the limit and a byte, which take no room on the disk
    with little_memory(), pytest.raises(ValueError, match="its file has more than 2 GiB"):
        Folder(folder)


@TRIED
@READ
def test_the_limit_of_pillow_neither_refuses_nor_warns(
    read: Callable[[Path], torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photograph of 200 megapixels is no bomb; and Pillow's limit is as before, for whoever else uses it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    folder = put(tmp_path / "f", "a.png", ODD["plain.png"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert len(read(folder)) == 1
        assert len(by_training(folder, size=4)) == 1
        photograph = put(tmp_path / "g", "b.png", png(GREY, 0, size=(10_000, 20_000))) / "b.png"
        assert head(photograph, quick=read is by_score)[:2] == (10_000, 20_000)
    assert Image.MAX_IMAGE_PIXELS == 10


@TRIED
@pytest.mark.slow
def test_a_photograph_of_200_megapixels_is_read(tmp_path: Path) -> None:
    rows = zlib.compress((b"\0" + b"\xff" * 2500) * 10_000, 1)
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    folder = put(tmp_path / "f", "a.png", data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert (by_training(folder, channels=1, size=8) == 255).all()
        assert Folder(folder, channels=1)[0:1].shape == (1, 1, 10_000, 20_000)


# Archives.


def archived(path: Path, head: bytes, data: bytes, way: int = zipfile.ZIP_STORED, name: str = "arr_0.npy") -> Path:
    with zipfile.ZipFile(path, "w", way, compresslevel=1) as file:
        file.writestr(name, head + data)
    return path


def npy_header(shape: tuple[int, ...], fortran: bool = False, descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return stream.getvalue()


def lying(data: bytes, size: int) -> bytes:
    """The archive with another size of its entry's bytes in the list at its end."""
    at = data.rindex(b"PK\x01\x02") + 24
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


def bombs_of_archives(path: Path) -> dict[str, bytes]:
    million = npy_header((10**12, 8, 8, 3))
    stored = archived(path, million, bytes(999)).read_bytes()
    deflated = archived(path, million, bytes(999), zipfile.ZIP_DEFLATED).read_bytes()
    few = npy_header((2**32 // 256 - 1, 8, 8, 3)) + bytes(192)
    long = b"\x93NUMPY\2\0" + struct.pack("<I", 2**27) + b" " * 2**27
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8).tobytes()
    whole = archived(path, npy_header((40, 8, 8, 3)), noise).read_bytes()
    packed = archived(path, npy_header((40, 8, 8, 3)), noise, zipfile.ZIP_DEFLATED).read_bytes()
    return {
        "a header of 10^12 images": stored,
        "a header of 10^12 images, deflated": deflated,
        "a list that repeats the header's lie": lying(
            archived(path, few, b"").read_bytes(), (2**32 // 256 - 1) * 192 + 128
        ),
        "a header of 128 MB": archived(path, long, b"", zipfile.ZIP_DEFLATED).read_bytes(),
        "a shape below zero": archived(path, npy_header((-2, -8, 8, 3)), bytes(384)).read_bytes(),
        "a flipped bit": with_a_flipped_bit(whole),
        "a flipped bit, deflated": with_a_flipped_bit(packed),
        "cut short": whole[: len(whole) // 2],
        "compressed in another way": archived(path, npy_header((40, 8, 8, 3)), noise, zipfile.ZIP_LZMA).read_bytes(),
    }


ARCHIVES = [
    "a header of 10^12 images", "a header of 10^12 images, deflated", "a list that repeats the header's lie",
    "a header of 128 MB", "a shape below zero", "a flipped bit", "a flipped bit, deflated", "cut short",
    "compressed in another way",
]  # fmt: skip


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return bombs_of_archives(tmp_path_factory.mktemp("bombs") / "a.npz")


def all_of(path: Path) -> torch.Tensor:
    found = Archive(path)
    return found[0 : min(len(found), 64)]


@TRIED
@MEASURED
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_damaged_or_says_more_than_it_holds_is_refused(
    name: str, bombs: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.npz").write_bytes(bombs[name])
    readers: list[Callable[[Path], Any]] = [all_of, lambda path: Arrays(path).prepare_data()]
    for read in readers:
        with little_memory(), pytest.raises(ValueError, match=r"a\.npz .*: make it again") as caught:
            read(tmp_path / "a.npz")
        assert "\n" not in str(caught.value)
    assert set(ARCHIVES) == bombs.keys()


@TRIED
@MEASURED
def test_an_archive_that_does_not_fit_into_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", np.zeros((2000, 64, 64, 3), np.uint8))
    monkeypatch.setattr(archive, "_free_memory", lambda: 2**24)
    # Its images alone take 23 MiB.
    with (
        little_memory(2**24),
        pytest.raises(ValueError, match=r"takes 0.0 GiB, but 0.0 GiB of memory are free: save it as"),
    ):
        Arrays(tmp_path / "a.npz").prepare_data()
    assert Archive(tmp_path / "a.npz")[1990:2000].shape == (10, 3, 64, 64)  # which score reads in slices


BESIDE: dict[str, Any] = {
    "Fortran order": np.asfortranarray(np.random.rand(4, 5)),
    "Python objects": np.array([{}, None], object),
    "records": np.zeros(3, [("a", "i4"), ("b", "f8")]),
    "texts": np.array(["a", "b"]),
}


@TRIED
@pytest.mark.parametrize("beside", [*BESIDE, "a text file", "damage"])
@pytest.mark.parametrize("fortran", [False, True], ids=["C order", "Fortran order"])
def test_an_array_in_fortran_order_or_beside_others_is_read(beside: str, fortran: bool, tmp_path: Path) -> None:
    images = DRAW.integers(0, 256, (40, 6, 5, 3), np.uint8)
    path, more = tmp_path / "a.npz", {beside.replace(" ", "_"): BESIDE[beside]} if beside in BESIDE else {}
    np.savez(path, images=np.asfortranarray(images) if fortran else images, **more)
    if not more:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("notes.txt" if beside == "a text file" else "other.npy", "no array")
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = Archive(path)
    for first, last in ((3, 9), (0, 40)):
        assert torch.equal(found[first:last], expected[first:last])
    data = Arrays(path, held_out=0)
    with pytest.warns(UserWarning, match="held_out is 0"):
        assert torch.equal(data.read("train")[0], expected)


@TRIED
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_one_image_in_an_array_is_one_image(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    np.savez(path, COLOUR) if suffix == "npz" else np.save(path, COLOUR)
    expected = torch.from_numpy(COLOUR).permute(2, 0, 1)[None]
    with pytest.warns(UserWarning, match="held_out is 0"):
        assert torch.equal(Arrays(path, held_out=0).read("train")[0], expected)
    if suffix == "npz":
        assert torch.equal(Archive(path)[0:1], expected)


@TRIED
def test_an_archive_past_a_million_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    numbers = [999_998, 999_999, 1_000_000, 1_000_001, 10_000_000]
    for k, number in enumerate(numbers):
        write_png(torch.full((1, 2, 2), k, dtype=torch.uint8), tmp_path / f"{number:06d}.png", {})
    write_npz(tmp_path, tmp_path / "all.npz", {})
    assert Archive(tmp_path / "all.npz")[0:5][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


# Folders.


@TRIED
@pytest.mark.filterwarnings("ignore:held_out is 0")
def test_training_and_score_find_the_same_pictures(tmp_path: Path) -> None:
    """Linked folders are entered, hidden names skipped, a link to a folder above is no endless folder."""
    elsewhere = put(tmp_path / "elsewhere", "linked.png", ODD["plain.png"][0])
    folder = put(tmp_path / "f", "b.png", ODD["plain.bmp"][0])
    put(folder / "a", "a.png", ODD["plain.png"][0])
    put(folder / ".hidden", "c.png", b"nothing")
    put(folder, ".d.png", b"nothing")
    (folder / "z").symlink_to(elsewhere)
    (folder / "file.png").symlink_to(elsewhere / "linked.png")
    (folder / "a/above").symlink_to(folder)
    names = ["a/a.png", "b.png", "file.png", "z/linked.png"]
    assert [file.relative_to(folder).as_posix() for file in walk(folder).files] == names
    assert len(by_training(folder)) == len(by_score(folder)) == 4


@TRIED
@READ
def test_pictures_left_out_for_their_suffix_are_counted(read: Callable[[Path], torch.Tensor], tmp_path: Path) -> None:
    folder = put(tmp_path / "f", "a.png", ODD["plain.png"][0])
    for name in ("b.heic", "c.HEIC", "d.svg", "notes.txt"):
        put(folder, name, b"")
    with pytest.warns(UserWarning, match=r"3 pictures of .* are left out, .*: 2 \.heic, 1 \.svg"):
        assert len(read(folder)) == 1
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no pictures .*, but 2 \.heic, 1 \.svg, which are not read"):
        read(folder)


@TRIED
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(put(tmp_path / "f", "a.png", ODD["plain.png"][0]) / "closed", "b.png", b"").parent
    scandir = os.scandir

    def refuse(at: Any) -> Any:
        if str(at).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(at))
        return scandir(at)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"closed cannot be listed \(Permission denied\)"):
        walk(folder)


# Earlier versions read these otherwise, or may have. Any EXIF counts, broken too: the digest does not ask what it says.
# No earlier version read an AVIF, so no reference of a turned one is kept anywhere.
CHANGED = {
    name
    for name in ODD
    if name.startswith(("alpha", "grey with alpha", "palette", "a transparent", "16 bits", "white is zero, 16 bits"))
    or (name.startswith(("oriented", "broken", "exif cut short")) and not name.endswith(".avif"))
}


@TRIED
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_the_digest_of_a_picture_changes_only_if_it_may_be_read_otherwise_than_before(
    name: str, tmp_path: Path
) -> None:
    """References that earlier versions kept of plain pictures serve on; of transparent or turned ones they do not."""
    data = ODD[name][0]
    folder = put(tmp_path / "f", name, data)
    earlier = hashlib.blake2b(b"3" + name.encode() + data).hexdigest()[:32]
    assert (Folder(folder).digest() == earlier) == (name not in CHANGED)


# What was written.


def test_a_folder_in_the_order_of_its_paths(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8)
    for name, image in zip(("b/1.png", "a.png", "b/0.png", "c.bmp", "b/deep/2.png"), images, strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".a.png.part").write_text("half a picture")
    folder = Folder(tmp_path)
    assert len(folder) == 5
    assert folder.shape == (3, 6, 4)
    assert torch.equal(folder[0:5], images[[1, 2, 0, 4, 3]])
    assert torch.equal(folder[3:9], images[[4, 3]])
    before = folder.digest()
    assert Folder(tmp_path).digest() == before
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    assert Folder(tmp_path).digest() != before


def test_what_kinds_of_pictures_become(tmp_path: Path) -> None:
    """Grey ones three equal channels, palettes their colours, transparency white."""
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colour = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(colour).quantize(16).save(tmp_path / "1.png")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "2.png")
    found = Folder(tmp_path)[0:3].permute(0, 2, 3, 1).numpy()
    assert (found[0] == grey[:, :, None]).all()
    assert np.abs(found[1].astype(int) - colour).max() < 100
    alpha = grey[..., None] / 255
    assert np.abs(found[2] - (colour * alpha + 255 * (1 - alpha))).max() <= 1


def test_an_archive_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images)
        archive = Archive(tmp_path / "x.npz")
        assert len(archive) == 9
        assert archive.shape == (3, 5, 4)
        for first, last in ((0, 4), (4, 9), (2, 3), (7, 20)):  # on, back, and beyond the end
            assert torch.equal(archive[first:last], expected[first:last])
    np.savez(tmp_path / "grey.npz", labels=np.zeros(9), images=images[..., 0])
    assert torch.equal(Archive(tmp_path / "grey.npz")[0:9], expected[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(Archive(tmp_path / "grey.npz", channels=1)[0:9], expected[:, :1])


def test_pictures_say_how_they_were_made(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    made = {"seed": 3, "sampler": {"class_path": "DDIM", "init_args": {"steps": 5, "clip": None}}}
    for i, image in enumerate(images):
        write_png(image, tmp_path / f"{i:06d}.png", made)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(3)]
    assert origin(tmp_path / "000001.png") == made
    assert torch.equal(Folder(tmp_path, channels=1)[0:3], images)
    write_npz(tmp_path, tmp_path / "all.npz", made)
    with np.load(tmp_path / "all.npz") as file:  # as guided-diffusion's evaluator reads it
        assert file["arr_0"].dtype == np.uint8
        assert (file["arr_0"] == images.permute(0, 2, 3, 1).numpy()).all()
    assert torch.equal(Archive(tmp_path / "all.npz", channels=1)[0:3], images)
    Image.new("L", (8, 8)).save(tmp_path / "other.png")
    assert origin(tmp_path / "other.png") is None
    assert origin(tmp_path / "all.npz") is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pictures"):
        Folder(tmp_path)
    grey = Image.new("L", (8, 8))
    grey.save(tmp_path / "a.png")
    Image.new("L", (8, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a.png has 8×8 pixels, but .*b.png has 8×9"):
        Folder(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="1 of 2 pictures of .* have colours and are made grey"):
        assert Folder(tmp_path, channels=1)[0:2].shape == (2, 1, 8, 8)
    (tmp_path / "b.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"b.png cannot be read \(it is damaged, or none of PNG, JPEG"):
        Folder(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    noise.save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ValueError, match=r"b.png cannot be read \(.*truncated"):
        Folder(tmp_path)[0:2]
    path = tmp_path / "x.npz"
    for arrays, says in (
        ({"weights": np.zeros(3)}, "holds weights, but no images"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"\(N, H, W, 1 or 3\)"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=says):
            Archive(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"damaged or no \.npz"):
        Archive(path)
