"""Films: frames as one animated picture, WebP or GIF, or as an MP4 where the machine has ffmpeg."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..files import written

FILMS = (".webp", ".gif", ".mp4")
LARGEST = {".webp": 16383, ".gif": 65535, ".mp4": 16384}  # pixels of a side


def check_film(path: str | Path, height: int, width: int) -> None:
    """Raise ValueError if a film of this size cannot be written under this name on this machine."""
    kind = Path(path).suffix.lower()
    if kind not in FILMS:
        raise ValueError(f"{path} is no name of a film: end it in {', '.join(FILMS)}")
    if kind == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(f"{path} is to be an .mp4, but there is no ffmpeg on the PATH: install it, or end it in .webp")
    if max(height, width) > LARGEST[kind]:
        raise ValueError(
            f"the film has {width}×{height} pixels, but a side of a {kind} has {LARGEST[kind]} at most: make fewer "
            "samples"
        )


def write_film(
    path: str | Path,
    frames: Sequence[Tensor],
    seconds: float = 0.08,
    hold: float = 1.5,
    quality: int | None = None,
) -> None:
    """Writes a film that plays without end, whole or not at all.

    A WebP keeps every pixel as it is unless a quality is given, as a GIF does of grey frames; colours of a GIF are
    brought to 256 a frame, and an MP4 is compressed.

    Args:
        path: ends in one of FILMS.
        frames: bytes (H, W, C) each, C = 1 or 3, all of one shape.
        seconds: of each frame, to a hundredth.
        hold: seconds of the last frame.
        quality: of a WebP, 1 … 100, for a smaller file; None keeps every pixel.

    Raises:
        ValueError: as `check_film`, or if ffmpeg fails.
    """
    path = Path(path)
    check_film(path, *frames[0].shape[:2])
    if path.suffix.lower() == ".mp4":
        made = _mp4(frames, seconds, hold)
        with written(path) as stream:
            stream.write(made)
        return
    pictures = [Image.fromarray(frame.squeeze(-1).numpy()) for frame in frames]
    durations = [round(1000 * seconds)] * (len(pictures) - 1) + [round(1000 * hold)]
    more: dict[str, Any]
    kind, more = (
        ("GIF", {})
        if path.suffix.lower() == ".gif"
        else ("WEBP", {"lossless": True} if quality is None else {"quality": quality})
    )
    with written(path) as stream:
        pictures[0].save(
            stream, kind, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **more
        )  # fmt: skip


def _mp4(frames: Sequence[Tensor], seconds: float, hold: float) -> bytes:
    """What ffmpeg makes of the frames, the last one repeated as long as it is held."""
    height, width, channels = frames[0].shape
    pixels = b"".join(frame.numpy().tobytes() for frame in [*frames, *[frames[-1]] * (round(hold / seconds) - 1)])
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        given = ["-f", "rawvideo", "-pix_fmt", "gray" if channels == 1 else "rgb24", "-s", f"{width}x{height}"]
        given += ["-r", f"{1 / seconds:g}", "-i", "-"]
        even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]  # which most players need
        words = [shutil.which("ffmpeg") or "ffmpeg", "-loglevel", "error", "-y", *given, *even, str(film)]
        done = subprocess.run(words, input=pixels, capture_output=True, check=False)
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise ValueError(f"ffmpeg could not make the film ({said}): end its name in .webp")
        return film.read_bytes()
