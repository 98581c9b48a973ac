"""Folders of pictures: the one walk through them, their images in slices, and the pictures that this package writes.

A picture that this package draws records in its own file how it was made, so that a folder needs no list beside it.
"""

import hashlib
import json
import os
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..files import written
from .base import grid
from .reader import ORIENTATION, SUFFIXES, Head, decoded, head, opened

ORIGIN = "diffusion_lightning"  # the key of a PNG's text
DESCRIPTION = 0x010E  # the tag of an EXIF's ImageDescription, which takes its place in other formats
OTHERS = {  # suffixes of pictures that are not read, so that a person hears of them
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".eps", ".ps", ".psd", ".xcf", ".ico", ".icns", ".cur", ".dib",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".exr", ".hdr", ".pfm", ".pcx", ".sgi", ".dds",
    ".qoi", ".xbm", ".xpm", ".fits", ".dcm",
}  # fmt: skip
PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB")  # modes that were read as now ever since
TURNING = (b"eXIf", b"Exif", b"EXIF", b"profile type exif", b"tiff:Orientation", b"profile type APP1")


class Found(NamedTuple):
    """The pictures of a folder in the order of their paths, and how many were left out, by suffix."""

    files: list[Path]
    others: Counter[str]


def walk(folder: Path) -> Found:
    """The pictures of a folder and the folders within it, by their suffixes.

    Links are followed, a folder that several lead to is entered once, and names that begin with a dot are skipped.

    Raises:
        ValueError: if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror}): give access to it") from error

    files: list[Path] = []
    others: Counter[str] = Counter()
    seen = set()
    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(at) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(os.path.realpath(at))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(at, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                files.append(path)
            elif path.suffix.lower() in OTHERS:
                others[path.suffix.lower()] += 1
    return Found(sorted(files, key=lambda file: file.relative_to(folder).as_posix()), others)


def left_out(folder: Path, others: Counter[str]) -> str:
    """One line about the pictures that are not read; empty if there are none."""
    if not others:
        return ""
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
    return f"{others.total()} pictures of {folder} are left out, since their formats are not read: {kinds}"


def no_pictures(folder: Path, others: Counter[str]) -> ValueError:
    """The error of a folder without pictures."""
    beside = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
    beside = f", but {beside}, which are not read" if beside else ""
    return ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}){beside}: give a folder that does")


def state(file: Path) -> tuple[int, ...]:
    """What changes if a file does, without reading it: inode, time of the last change (ns), size, modification (ns).

    The second cannot be set by a program, so a file that is changed in place and given its earlier time is another
    one; so is a copy. A link that leads nowhere has no state.
    """
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_ctime_ns, found.st_size, found.st_mtime_ns


class Folder:
    """The pictures of a folder, see `walk`, as `decoded` reads them; bytes (N, channels, H, W).

    Args:
        path: the folder.
        channels: 3, where grey pictures get three equal channels, or 1, where coloured ones become grey.

    Raises:
        ValueError: if there are none, their sizes differ, or one cannot be read.
    """

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        self.path, self.channels = Path(path), channels
        self.files, others = walk(self.path)
        if not self.files:
            raise no_pictures(self.path, others)
        first, *rest = [self._head(file, quick=i > 0) for i, file in enumerate(self.files)]
        self.shape = (channels, first.height, first.width)
        for file, found in zip(self.files[1:], rest, strict=True):
            self._check(file, found.height, found.width)
        self._warn([first, *rest], left_out(self.path, others))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: slice) -> Tensor:
        return torch.stack([self._read(file) for file in self.files[which]])

    def digest(self) -> str:
        """A hash of the files and their names, and of how they are read if that was ever different."""
        found = hashlib.blake2b(str(self.channels).encode())
        plain = True
        for file in self.files:
            data = file.read_bytes()
            found.update(file.relative_to(self.path).as_posix().encode(errors="surrogateescape"))
            found.update(data)
            plain = plain and _plain(file, data)
        if not plain:
            found.update(b"upright, over white, of 8 bits")
        return found.hexdigest()[:32]

    def _warn(self, heads: list[Head], others: str) -> None:
        n, more, colour = len(heads), sum(found.more for found in heads), sum(found.colour for found in heads)
        if others:
            warnings.warn(others, stacklevel=3)
        if more:
            warnings.warn(
                f"{more} of {n} pictures of {self.path} have more than one frame or page: the first is read",
                stacklevel=3,
            )
        if colour and self.channels == 1:
            warnings.warn(f"{colour} of {n} pictures of {self.path} have colours and are made grey", stacklevel=3)

    def _head(self, file: Path, quick: bool) -> Head:
        try:
            return head(file, quick)
        except Exception as error:  # whatever a damaged file makes of a decoder
            raise _unreadable(file, error) from error

    def _read(self, file: Path) -> Tensor:
        try:
            image = decoded(file, self.channels).image
        except Exception as error:  # whatever a damaged file makes of a decoder
            raise _unreadable(file, error) from error
        self._check(file, image.height, image.width)
        pixels = np.array(image)
        return torch.from_numpy(pixels).view(*pixels.shape[:2], self.channels).permute(2, 0, 1)

    def _check(self, file: Path, height: int, width: int) -> None:
        if (height, width) != self.shape[1:]:
            raise ValueError(
                f"{self.files[0]} has {self.shape[2]}×{self.shape[1]} pixels, but {file} has {width}×{height}: bring "
                "the pictures to one size"
            )


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read ({' '.join(str(error).split())}): fix or remove it")


def _plain(file: Path, data: bytes) -> bool:
    """Whether a picture was always read as now: no transparency, no 16 bits, nothing that could turn it."""
    with opened(file) as image:
        deep = ";16" in str(getattr(image, "tile", ""))
        tags: Any = getattr(image, "tag_v2", {})
        return (
            image.mode in PLAIN
            and tags.get(ORIENTATION, 1) == 1
            and "transparency" not in image.info
            and not deep
            and not any(mark in data for mark in TURNING)
        )


def write_png(image: Tensor, path: Path, origin: dict[str, Any]) -> None:
    """Writes a picture of bytes (C, H, W), whole or not at all."""
    text = PngImagePlugin.PngInfo()
    text.add_text(ORIGIN, json.dumps(origin, sort_keys=True))
    with written(path, sync=False) as stream:  # thousands of them
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(stream, "PNG", pnginfo=text)


def origin(path: Path) -> dict[str, Any] | None:
    """The origin that a picture's metadata states; None if there is none, or it is no picture."""
    try:
        with opened(path) as image:
            said = image.text[ORIGIN] if image.format == "PNG" else image.getexif()[DESCRIPTION]  # type: ignore[attr-defined]
            found = json.loads(said)
    except Exception:  # whatever a damaged file makes of a decoder
        return None
    return found if isinstance(found, dict) else None


def prompt(path: Path) -> str | None:
    """The prompt that a picture's origin states; None if there is none."""
    found = (origin(path) or {}).get("prompt")
    return found if isinstance(found, str) else None


def write_grid(folder: Path, path: Path, origin: dict[str, Any]) -> None:
    """Puts the pictures of a folder side by side in one, a PNG, JPEG or WebP, in the order of their numbers."""
    files = _numbered(folder)
    prompts = list(map(prompt, files))
    captions = None if None in prompts else [str(text) for text in prompts]
    write_sheet(
        grid(torch.stack([_pixels(file) for file in files]).permute(0, 3, 1, 2), captions=captions), path, origin
    )


def write_sheet(sheet: Tensor, path: Path, origin: dict[str, Any]) -> None:
    """Writes bytes (H, W, C) as a PNG, JPEG or WebP, by its name, with its origin in the file."""
    text, exif, said = PngImagePlugin.PngInfo(), Image.Exif(), json.dumps(origin, sort_keys=True)
    text.add_text(ORIGIN, said)
    exif[DESCRIPTION] = said
    kind = Image.registered_extensions()[path.suffix.lower()]
    with written(path) as stream:
        more = {"pnginfo": text} if kind == "PNG" else {"exif": exif, "quality": 95}
        Image.fromarray(sheet.squeeze(-1).numpy()).save(stream, kind, **more)


def _pixels(file: Path) -> Tensor:
    """Bytes (H, W, C)."""
    with opened(file) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.ndim == 3 else pixels.unsqueeze(-1)


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"), key=lambda file: (len(file.stem), file.stem))  # 999999 before 1000000


def write_npz(folder: Path, path: Path, origin: dict[str, Any]) -> None:
    """Puts the pictures of a folder into one `.npz`, in the order of their numbers: `arr_0` (N, H, W, C) bytes."""
    files = _numbered(folder)
    with opened(files[0]) as image:
        shape = (len(files), image.height, image.width, len(image.getbands()))
    with written(path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for file in files:
                with opened(file) as image:
                    stream.write(np.asarray(image).tobytes())
        with archive.open(f"{ORIGIN}.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(origin, sort_keys=True)), allow_pickle=False)
