"""What `edit` writes: a picture, a film or a folder of pictures, and beside it the request that made it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files, images
from ..metrics.statistics import write_arrays
from .drawing import GRIDS

NUMBERED = "{:06d}.png"
LARGEST = 2**20  # bytes of a request that are read; one that is longer is cut, and so none
SAID = 200  # letters of a value in a sentence


def check_name(out: str, action: str) -> None:
    """Raise ValueError if a path is no place for what an action makes, or OSError if it cannot be written there."""
    path = Path(out)
    kind = path.suffix.lower()
    if action == "film":
        images.check_film(path, 1, 1)
    elif kind not in GRIDS and (kind in images.SUFFIXES or kind in images.FILMS or kind in (".npz", ".json")):
        raise ValueError(
            f"--out {out} ends in {kind}, but {action} makes a picture or a folder of them: end it in .png, .jpg or "
            ".webp, or give a folder"
        )
    if kind in (*GRIDS, *images.FILMS):
        files.check_file(path)
    else:
        files.check_file(path / NUMBERED.format(0))


@dataclass
class Result:
    """What an action made: the images to number, a sheet of them to look at, and what is said of them."""

    images: Tensor  # (N, C, H, W) in [-1, 1]
    sheet: list[tuple[str, Tensor]]  # captions and images (C, H, W)
    columns: int
    facts: dict[str, Any]
    said: list[str]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    film: list[Tensor] | None = None


class Out:
    """Where an edit is written.

    Args:
        out: a picture's or a film's name, or a folder.
        made: the request, in plain data.
        extra: the name of an `.npz` beside the pictures; None is none.
    """

    def __init__(self, out: str, made: dict[str, Any], extra: str | None = None) -> None:
        self.path, self.made = Path(out), json.loads(json.dumps(made))
        self.one = self.path.suffix.lower() in (*GRIDS, *images.FILMS)
        self.record = self.path.with_name(f"{self.path.name}.json") if self.one else self.path / "request.json"
        if extra is None:
            self.extra = None
        else:
            self.extra = self.path.with_name(f"{self.path.name}.npz") if self.one else self.path / f"{extra}.npz"

    def there(self, n: int) -> bool:
        """Whether all of this request, n images, is there already.

        Raises:
            ValueError: if anything there is of another request, or of none.
        """
        targets = [self.path] if self.one else [self.path / NUMBERED.format(i) for i in range(n)]
        targets += [] if self.extra is None else [self.extra]
        found = [target for target in targets if target.exists()]
        if self.record.exists():
            self._check()
        elif not self.one:  # samples of predict, such as those of other numbers
            found = sorted(file for file in self.path.glob("*.png") if file.stem.isdigit()) or found
        if found and not self.record.exists():
            raise ValueError(
                f"{found[0]} is there already and does not say that this command made it: choose another --out, or "
                "remove it"
            )
        return len(found) == len(targets) and self.record.exists()

    def _check(self) -> None:
        """Raise ValueError if the record there is not of this request."""
        try:
            with self.record.open("rb") as stream:
                before = json.loads(stream.read(LARGEST))["request"]
            before.keys()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.record} is there already and is no request of this command: choose another --out, or remove it"
            ) from error
        for key in dict.fromkeys([*self.made, *before]):
            if before.get(key) != self.made.get(key):
                was, now = (_short(x.get(key))[:SAID] for x in (before, self.made))
                raise ValueError(
                    f"{self.path} was made with {key[:SAID]} {was}, but now {key[:SAID]} is {now}: choose another "
                    f"--out, or remove the earlier one and {self.record.name}"
                )

    def write(self, result: Result) -> None:
        """Writes all of a result: the record first, so that a command that was stopped can be given again."""
        files.write_text(self.record, json.dumps({"request": self.made, **result.facts}, indent=1) + "\n")
        if self.extra is not None:
            write_arrays(self.extra, result.arrays)
        if result.film is not None:
            images.write_film(self.path, [images.grid(images.to_uint8(frame)) for frame in result.film])
        elif self.one:
            images.write_sheet(sheet(result), self.path, self.made)
        else:
            for i, image in enumerate(images.to_uint8(result.images)):
                images.write_png(image, self.path / NUMBERED.format(i), {**self.made, "number": i})


def sheet(result: Result) -> Tensor:
    """The picture of all, bytes (H, W, C), with white lines and a word below each image."""
    captions, shown = zip(*result.sheet, strict=True)
    return images.grid(images.to_uint8(torch.stack(shown)), columns=result.columns, captions=captions)


def _short(value: Any) -> str:
    """A value of a request in words: of a picture its name and digest, of a class its name and arguments."""
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    if isinstance(value, dict) and "digest" in value:
        return f"{value.get('name')} ({str(value['digest'])[:8]})"
    if isinstance(value, dict) and isinstance(arguments := value.get("init_args", {}), dict):
        given = ", ".join(f"{k}={_short(v)}" for k, v in arguments.items())
        return f"{str(value.get('class_path')).rpartition('.')[2]}({given})"
    return str(value)
