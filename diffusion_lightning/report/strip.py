"""Pictures of a run inside of a page: decoded, made small enough, and written again as data that a browser shows."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..images.reader import decoded, head
from .run import Run

SIDE = 1000  # pixels, of the longer side
FRAMES = 12  # pictures of one strip


@dataclass
class Picture:
    """An encoded picture, its size and its words."""

    data: bytes
    width: int
    height: int
    caption: str
    alt: str

    @property
    def address(self) -> str:
        return "data:image/webp;base64," + base64.b64encode(self.data).decode()


@dataclass
class Strip:
    """Pictures under one heading, the newest last."""

    title: str
    text: str
    pictures: list[Picture]


OVER_TIME = (
    ("samples", "Samples over time", "The same noise after every validation.", "samples"),
    ("chains", "From noise to image", "Each row is a sample on its way, noise at the left.", "reverse chain"),
    ("reconstructions", "Reconstructions", "Each image stands left of its reconstruction.", "reconstructions"),
)
ONCE = (
    ("closest_pairs.png", "Closest pairs", "The samples nearest to training images, each beside its image."),
    ("averages/sweep.png", "Lengths of averages", "The figures of averages of many lengths."),
)


def strips(run: Run, called: str, share: float = 1.0) -> list[Strip]:
    """The pictures of a run.

    Args:
        run: whose; what cannot be read becomes one of its notes.
        called: how the run is named in a picture's alternative text.
        share: of the pictures and their sides that the page has room for, in (0, 1].
    """
    found = []
    for folder, title, text, what in OVER_TIME:
        files = run.pictures(folder)
        most = max(1, round(FRAMES * share)) if folder == "samples" else 1
        pictures = []
        for step, path in _evenly(files, most):
            picture = _picture(run, path, f"step {step:,}", f"{called}: {what} at step {step:,}", share)
            pictures += [picture] if picture else []
        if pictures:
            found.append(Strip(title, text, pictures))
    for name, title, text in ONCE:
        path = run.folder / name
        if picture := _picture(run, path, "", f"{called}: {title.lower()}", share):
            found.append(Strip(title, text, [picture]))
    return found


def _evenly(files: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most so many, the first and the last among them; of one the last."""
    if len(files) <= most:
        return files
    if most == 1:
        return files[-1:]
    return [files[round(k * (len(files) - 1) / (most - 1))] for k in range(most)]


def _picture(run: Run, path: Path, caption: str, alt: str, share: float) -> Picture | None:
    if not run.own(path):
        return None
    try:
        image = decoded(path, 3 if head(path, quick=True).colour else 1).image
    except Exception as error:  # whatever a damaged file makes of a decoder
        run.notes.append(f"{path.relative_to(run.folder)} cannot be shown ({' '.join(str(error).split())[:120]})")
        return None
    side = max(200, int(SIDE * share**0.5))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=88, method=4)
    return Picture(stream.getvalue(), image.width, image.height, caption, alt)
