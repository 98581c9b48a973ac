"""A folder of pictures, some of them broken."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def with_broken(folder: Path) -> Path:
    """Of 3,000 pictures of 8 to 12 pixels three are broken: cut short, empty, of another kind than its name says."""
    for i in range(3000):
        kind = ("PNG", "JPEG", "WEBP")[i % 3]
        stream = io.BytesIO()
        Image.fromarray(noise(8 + i % 5, 10, 3, seed=i)).save(stream, kind)
        place = folder / str(i % 7)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:04}.{kind.lower()}").write_bytes(stream.getvalue())
    Image.fromarray(noise(64, 64, 3)).save(folder / "1/0001.jpeg")
    cut = folder / "1/0001.jpeg"
    cut.write_bytes(cut.read_bytes()[:-100])
    (folder / "2/0009.png").write_bytes(b"")
    (folder / "5/0005.webp").write_bytes(b"these are words")
    return folder
