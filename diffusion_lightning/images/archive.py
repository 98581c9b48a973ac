"""Images in an `.npz`: its arrays' headers, checked against what the file holds, and their bytes in slices."""

import hashlib
import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .reader import PIXELS, regular

IMAGES = ("arr_0", "images", "samples")  # names of an .npz's images, the first that it has
HEADER = 10_000  # bytes at most of an array's header, as numpy has it
DEFLATE = 1032  # times that deflate can make bytes fewer


class Array(NamedTuple):
    """An array of an `.npz` by its header."""

    shape: tuple[int, ...]
    kind: np.dtype
    fortran: bool  # the first index runs fastest in the file
    start: int  # bytes of the header
    problem: str | None  # why it cannot be read


def contents(path: str | Path) -> dict[str, Array]:
    """The arrays of an `.npz` by name, without reading them; one that cannot be read has the reason in its `problem`.

    Raises:
        ValueError: if the file is none.
    """
    try:
        regular(Path(path))
        with zipfile.ZipFile(path) as file:
            size = os.path.getsize(path)
            arrays = [info for info in file.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _header(file, info, size) for info in arrays}
    except Exception as error:  # zip and Python each have their own
        raise ValueError(f"{path} is cut short, damaged or no .npz file of arrays: make it again") from error


def readable(path: str | Path, name: str, array: Array) -> None:
    """Raise ValueError if the array cannot be read."""
    if array.problem:
        raise ValueError(f"{name} of {path} {array.problem}: make it again")


def load_array(path: str | Path, name: str, array: Array) -> NDArray[Any]:
    """A whole array.

    Raises:
        ValueError: if it cannot be read, or does not fit into the memory.
    """
    readable(path, name, array)
    size, free = math.prod(array.shape) * array.kind.itemsize, _free_memory()
    if size > free:
        raise ValueError(
            f"{name} of {path} takes {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of memory are free: save it "
            "as an .npy, which is mapped"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    except Exception as error:  # zip, zlib and numpy each have their own
        raise ValueError(f"{name} of {path} is cut short or damaged: make it again") from error


def one_image(shape: tuple[int, ...]) -> bool:
    """Whether an array of three dimensions is one image (H, W, 3), not images (N, H, W): none are 3 pixels wide."""
    return len(shape) == 3 and shape[2] == 3


class Archive:
    """The images of an `.npz`, an array (N, H, W, C), (N, H, W) or (H, W, 3) of bytes, read when indexed.

    Args:
        path: the file.
        channels: 3, where grey images get three equal channels, or 1.

    Raises:
        ValueError: if it has no such array.
    """

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        self.path, self.channels = Path(path), channels
        arrays = contents(path)
        name = next((name for name in IMAGES if name in arrays), None)
        if name is None:
            raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}, but no images: name them arr_0")
        self._name, self._array = name, arrays[name]
        readable(path, name, self._array)
        shape, kind = self._array.shape, self._array.kind
        if one_image(shape):
            shape = (1, *shape)
        if kind != np.uint8 or len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3):
            raise ValueError(
                f"{name} of {path} is {kind} of shape {list(shape)}, but images are bytes (N, H, W, 1 or 3): convert it"
            )
        if not 0 < shape[1] * shape[2] <= PIXELS:
            raise ValueError(
                f"{name} of {path} has shape {list(shape)}, but an image has 1 to {PIXELS / 1e6:.0f} megapixels: "
                "reshape it"
            )
        if channels == 1 and (*shape, 1)[3] == 3:
            raise ValueError(f"{path} has colours, but grey images are wanted: choose another extractor")
        self._n, self._own = shape[0], (*shape[1:], 1)[:3]
        self.shape = (channels, *self._own[:2])
        self._whole: NDArray[np.uint8] | None = None
        self._stream: IO[bytes] | None = None
        self._at = 0

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, which: slice) -> Tensor:
        first, last, step = which.indices(self._n)
        if step != 1:
            raise ValueError("an archive is read from one place to another: give a slice without a step")
        if self._array.fortran:  # an image's bytes are strewn over the file
            if self._whole is None:
                self._whole = load_array(self.path, self._name, self._array).reshape(-1, *self._own)
            images = torch.from_numpy(np.ascontiguousarray(self._whole[first:last]))
        else:
            images = torch.frombuffer(bytearray(self._read(first, last)), dtype=torch.uint8).view(-1, *self._own)
        return images.permute(0, 3, 1, 2).expand(-1, self.channels, -1, -1)

    def digest(self) -> str:
        """A hash of the file."""
        with self.path.open("rb") as file:
            return f"{hashlib.file_digest(file, 'blake2b').hexdigest()[:32]} {self.channels}"

    def _read(self, first: int, last: int) -> bytes:
        size = math.prod(self._own)
        try:
            if self._stream is None or self._at > first:
                self._stream = zipfile.ZipFile(self.path).open(f"{self._name}.npy")  # noqa: SIM115 kept between slices
                self._stream.read(self._array.start)
                self._at = 0
            self._stream.seek((first - self._at) * size, 1)
            data = self._stream.read((last - first) * size)
            self._at = last
            if len(data) < (last - first) * size:
                raise EOFError
            return data
        except Exception as error:  # zip and zlib each have their own
            raise ValueError(f"{self._name} of {self.path} is cut short or damaged: make it again") from error


def _header(file: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> Array:
    """Read an array's header; `size` is the whole file's."""
    try:
        with file.open(info) as stream:
            begin = stream.read(12)
            old = begin[6:7] == b"\1"  # of version 1, whose header's length has 2 bytes
            length = int.from_bytes(begin[8:10] if old else begin[8:12], "little")
            if length > HEADER:  # before that much is read
                raise ValueError(f"it would have {length:,} bytes")
            start = io.BytesIO(begin + stream.read(length - 2 if old else length))
        np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(start)
    except Exception as error:  # zip, zlib and numpy each have their own
        return Array((), np.dtype("V"), False, 0, f"has no header that numpy reads ({' '.join(str(error).split())})")
    stated, holds = math.prod(shape) * kind.itemsize, info.file_size - start.tell()
    problem = None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "is compressed in a way that numpy does not write"
    elif kind.hasobject:
        problem = "holds Python objects, which are not read"
    elif stated != holds or min(shape, default=0) < 0:
        problem = f"has shape {list(shape)} of {kind}, which is {stated:,} bytes, but the file has {holds:,} of it"
    elif info.header_offset + info.compress_size > size or info.file_size > DEFLATE * (info.compress_size + 1):
        problem = f"has shape {list(shape)} of {kind}, which is {stated:,} bytes, but the file has only {size:,}"
    return Array(shape, kind, fortran and len(shape) > 1, start.tell(), problem)


def _free_memory() -> int:
    """Bytes that a process may still take: what the system has free, or less if a container's limit is lower."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        free = min(
            free,
            int((group / "memory.max").read_text(encoding="utf-8"))
            - int((group / "memory.current").read_text(encoding="utf-8")),
        )
    except (OSError, ValueError, StopIteration):  # not Linux, or no limit
        pass
    return free
