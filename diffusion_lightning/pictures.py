"""Images as files: a folder of pictures or an `.npz`, read in slices, written one a number.

A picture that this package draws says in its own file how it was made, so that a folder needs no list beside it.
"""

import hashlib
import json
import os
import secrets
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
ORIGIN = "diffusion_lightning"  # the key of a PNG's text
IMAGES = ("arr_0", "images", "samples")  # names of an .npz's images, the first that it has


class Folder:
    """The pictures in a folder and the folders within it, in the order of their paths; bytes (N, channels, H, W).

    Args:
        path: the folder.
        channels: 3, where grey pictures get three equal channels, or 1.

    Raises:
        ValueError: where there are none, their sizes differ, or one cannot be read as bytes of these channels.
    """

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        self.path, self.channels = Path(path), channels
        files = (p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        self.files = sorted(files, key=lambda p: p.relative_to(self.path).as_posix())
        if not self.files:
            raise ValueError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))}): give a folder that does")
        first = self._size(self.files[0])
        for file in self.files[1:]:
            if (size := self._size(file)) != first:
                raise ValueError(
                    f"{self.files[0]} has {first[0]}×{first[1]} pixels, but {file} has {size[0]}×{size[1]}: bring the "
                    "pictures to one size"
                )
        self.shape = (channels, first[1], first[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: slice) -> Tensor:
        return torch.stack([self._read(file) for file in self.files[which]])

    def digest(self) -> str:
        """A hash of the files and their names."""
        found = hashlib.blake2b(str(self.channels).encode())
        for file in self.files:
            found.update(file.relative_to(self.path).as_posix().encode())
            found.update(file.read_bytes())
        return found.hexdigest()[:32]

    def _size(self, file: Path) -> tuple[int, int]:
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} is no picture that can be read: mend or remove it") from error
        if mode.startswith(("I", "F")):
            raise ValueError(f"{file} has more than 8 bits a channel, but images are bytes here: convert it")
        if self.channels == 1 and mode not in ("1", "L"):
            raise ValueError(f"{file} has colours, but grey images are wanted: choose another extractor or convert it")
        return size

    def _read(self, file: Path) -> Tensor:
        try:
            with Image.open(file) as image:
                pixels = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file} is cut short or damaged: mend or remove it") from error
        return torch.from_numpy(pixels).view(*pixels.shape[:2], self.channels).permute(2, 0, 1)


class Archive:
    """The images of an `.npz`, an array (N, H, W, C) or (N, H, W) of bytes, read from the file as they are asked for.

    Args:
        path: the file.
        channels: 3, where grey images get three equal channels, or 1.

    Raises:
        ValueError: where it has no such array.
    """

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        self.path, self.channels = Path(path), channels
        arrays = contents(path)
        name = next((name for name in IMAGES if name in arrays), None)
        if name is None:
            raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}, but no images: name them arr_0")
        self._name = name
        shape, kind = arrays[name]
        if kind != np.uint8 or len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3):
            raise ValueError(
                f"{name} of {path} is {kind} of shape {list(shape)}, but images are bytes (N, H, W, 1 or 3): convert it"
            )
        if channels == 1 and (*shape, 1)[3] == 3:
            raise ValueError(f"{path} has colours, but grey images are wanted: choose another extractor")
        self._n, self._own = shape[0], (*shape[1:], 1)[:3]
        self.shape = (channels, *self._own[:2])
        self._stream: IO[bytes] | None = None
        self._at = 0

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, which: slice) -> Tensor:
        first, last, step = which.indices(self._n)
        if step != 1:
            raise ValueError("an archive is read from one place to another: give a slice without a step")
        if self._stream is None or self._at > first:
            self._stream = zipfile.ZipFile(self.path).open(f"{self._name}.npy")  # noqa: SIM115 kept open between slices
            _header(self._stream)
            self._at = 0
        size = int(np.prod(self._own))
        self._stream.seek((first - self._at) * size, 1)
        data = self._stream.read((last - first) * size)
        self._at = last
        images = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, *self._own).permute(0, 3, 1, 2)
        return images.expand(-1, self.channels, -1, -1)

    def digest(self) -> str:
        """A hash of the file."""
        with self.path.open("rb") as file:
            return f"{hashlib.file_digest(file, 'blake2b').hexdigest()[:32]} {self.channels}"


def contents(path: str | Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and kind of each array of an `.npz`, without reading it.

    Raises:
        ValueError: where the file is none.
    """
    try:
        with zipfile.ZipFile(path) as file:
            found = {}
            for name in file.namelist():
                with file.open(name) as stream:
                    found[name.removesuffix(".npy")] = _header(stream)
            return found
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is cut short, damaged or no .npz file of arrays: make it again") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(stream)
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran's order")
    return shape, kind


def write_png(image: Tensor, path: Path, origin: dict[str, Any]) -> None:
    """Writes bytes (C, H, W) beside the file and renames, so that there is the whole picture or none."""
    text = PngImagePlugin.PngInfo()
    text.add_text(ORIGIN, json.dumps(origin, sort_keys=True))
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # two processes may write one picture
    with part.open("wb") as file:
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "PNG", pnginfo=text)
    os.replace(part, path)


def origin(path: Path) -> dict[str, Any] | None:
    """How a picture says it was made; None where it says nothing, or is no picture."""
    try:
        with Image.open(path) as image:
            return json.loads(image.text[ORIGIN])  # type: ignore[attr-defined]
    except (UnidentifiedImageError, OSError, AttributeError, KeyError, ValueError):
        return None


def write_npz(folder: Path, path: Path, origin: dict[str, Any]) -> None:
    """Puts the pictures of a folder into one `.npz`, in the order of their names: `arr_0` (N, H, W, C) bytes."""
    files = sorted(folder.glob("*.png"))
    with Image.open(files[0]) as image:
        shape = (len(files), image.height, image.width, len(image.getbands()))
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for file in files:
                with Image.open(file) as image:
                    stream.write(np.asarray(image).tobytes())
        with archive.open(f"{ORIGIN}.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(origin, sort_keys=True)), allow_pickle=False)
    os.replace(part, path)
