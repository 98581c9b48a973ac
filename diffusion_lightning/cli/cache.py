"""`diffusion-lightning cache`: what earlier runs left in the user's cache for later ones, and its removal.

Decoded pictures, latents and references are found there by what they are made of, and are made again where they are
not there.
"""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..files import cache_folder
from ..report.words import age, columns, size


class Entry(NamedTuple):
    """Files that belong together: what they hold, and their size in bytes and age in seconds."""

    kind: str
    about: str
    files: list[Path]
    size: int
    age: float


def main(given: Namespace) -> None:
    """Lists the entries, largest first, or removes them."""
    folder = cache_folder()
    found = sorted(entries(folder), key=lambda entry: -entry.size)
    total = f"{size(sum(entry.size for entry in found))} in {folder}"
    if given.clear:
        for file in (file for entry in found for file in entry.files):
            file.unlink(missing_ok=True)
        print(f"removed {len(found)} entries, {total}")
        return
    rows = [(e.kind, e.about, size(e.size), _age(e.age), str(e.files[0].relative_to(folder))) for e in found]
    for line in columns(rows):
        print(line)
    print(f"{len(found)} entries, {total}" + (": --clear removes them" if found else ""))


def _age(seconds: float) -> str:
    return "new" if seconds < 60 else f"{age(seconds)} old"


def entries(folder: Path) -> Iterator[Entry]:
    """What this package keeps in the folder; nothing else that may lie there."""
    for file in (folder / "pictures").glob("*.bytes"):
        notes = file.with_suffix(".json")
        yield _entry("pictures", _about(notes), [file, notes])
    for file in (folder / "references").glob("*.npz"):
        kind, _, rest = file.stem.partition("-")
        yield _entry("reference", f"{kind} of {rest.rpartition('-')[0]}", [file])
    for file in (folder / "latents").glob("*.rows"):
        notes = file.with_suffix(".json")
        yield _entry("latents", _about_rows(notes), [file, notes])
    for place in ("pictures", "references", "latents"):
        for pattern in ("*.part", ".*.notes", ".*.done"):
            for file in (folder / place).glob(pattern):
                yield _entry("unfinished", "", [file])
    for place, suffix in (("pictures", ".bytes"), ("latents", ".rows")):
        for file in (folder / place).glob("*.json"):
            if not file.with_suffix(suffix).exists():
                yield _entry("unfinished", "", [file])


def _entry(kind: str, about: str, files: list[Path]) -> Entry:
    there = [file for file in files if file.exists()]
    stats = [file.stat() for file in there]
    return Entry(kind, about, there, sum(s.st_size for s in stats), time.time() - max(s.st_mtime for s in stats))


def _about(notes: Path) -> str:
    try:
        kept = json.loads(notes.read_text(encoding="utf-8"))
        channels, height, width = kept["shape"]
        return f"{kept['bytes'] // (channels * height * width)} of {channels}x{height}x{width}"
    except (OSError, ValueError, KeyError, TypeError):
        return "of an earlier version, or without their notes"


def _about_rows(notes: Path) -> str:
    try:
        kept = json.loads(notes.read_text(encoding="utf-8"))
        mirrors, _, channels, height, width = kept["shape"]
        both = ", both mirrors" if mirrors == 2 else ""
        return f"{kept['rows']} of {channels}x{height}x{width} in {kept['dtype']}{both}"
    except (OSError, ValueError, KeyError, TypeError):
        return "without their notes"
