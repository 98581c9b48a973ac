"""Captions of a folder's pictures from text files: one beside each picture, or lists of them, as JSON lines or CSV."""

import csv
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ...images import regular
from .captions import check_captions, one_of

SIDECAR, LISTS = ".txt", (".jsonl", ".csv")
FILE_NAME = "file_name"  # a list's column of pictures, as Hugging Face's imagefolder has it
SIDECAR_BYTES, LIST_BYTES = 2**17, 2**30  # at most

Row = tuple[int, dict[str, Any]]  # a line's number and its fields


def check_kind(captions: str | None) -> None:
    """Raise ValueError if `captions` is neither None nor `txt` nor the name of a list."""
    if captions is None or captions == SIDECAR[1:]:
        return
    if not captions.endswith(LISTS) or "/" in captions or "\\" in captions:
        raise ValueError(
            f"captions is {captions}, which is no kind of captions: give txt, for a text file beside each picture, or "
            "the name of a list, such as metadata.jsonl or metadata.csv"
        )


def read_captions(files: Sequence[Path], top: Path, captions: str, column: str) -> list[str]:
    """The captions of pictures of the folder `top`, in the order of `files`; a text that has no picture is warned of.

    Args:
        files: the pictures.
        top: the folder that holds them.
        captions: `txt`, or the name of a list. A list holds for the pictures of its folder and the folders within it;
            of several, the nearest one above a picture.
        column: of a list's texts.

    Raises:
        ValueError: if a picture has no caption, or a file or a line cannot be understood.
    """
    if captions == SIDECAR[1:]:
        found, unused = _sidecars(files)
    else:
        found, unused = _listed(files, top, captions, column)
    texts = check_captions(found, lambda i: str(files[i]), str(top))
    if unused:
        rank_zero_warn(f"captions that have no picture are not used: {len(unused)}, the first of them {unused[0]}")
    return texts


def _sidecars(files: Sequence[Path]) -> tuple[list[str | None], list[str]]:
    """Each picture's text, or None, and the text files that have no picture."""
    there: set[str] = set()
    for folder in {file.parent for file in files}:
        names = (name for name in os.listdir(folder) if not name.startswith("."))
        there |= {os.path.join(folder, name) for name in names if name.endswith(SIDECAR)}
    beside = [file.with_suffix(SIDECAR) for file in files]
    texts = [_read(place, SIDECAR_BYTES) if str(place) in there else None for place in beside]
    return texts, sorted(there - set(map(str, beside)))


def _listed(files: Sequence[Path], top: Path, name: str, column: str) -> tuple[list[Any], list[str]]:
    """Each picture's text by the nearest list, or None, and the listed names that are no pictures."""
    above = {
        folder: [at for at in (folder, *folder.parents) if at.is_relative_to(top)]
        for folder in {file.parent for file in files}
    }
    places = sorted({at for folders in above.values() for at in folders if os.path.lexists(at / name)})
    if not places:
        raise ValueError(f"{top} has no {name}, but captions are sought there: add it, or correct the data's captions")
    lists = {place: _captions(place / name, column) for place in places}
    nearest = {folder: next((at for at in folders if at in lists), None) for folder, folders in above.items()}
    texts = []
    for file in files:
        at = nearest[file.parent]
        texts.append(None if at is None else lists[at].pop(_key(file.relative_to(at).as_posix()), None))
    return texts, [str(place / left) for place, lines in lists.items() for left in lines]


def _key(name: str) -> str:
    """A path as lists and disks agree on it: some systems write é as one character, some as two."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def _captions(path: Path, column: str) -> dict[str, Any]:
    """A list's captions by the paths of their pictures, relative to the list's folder."""
    text = _read(path, LIST_BYTES)
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, row in _csv_rows(text, path) if path.suffix == ".csv" else _json_rows(text, path):
        line = f"line {number} of {path}"
        for wanted in (FILE_NAME, column):
            if wanted not in row:
                has = f"the columns {_some(row)}" if row else "nothing"
                raise ValueError(
                    f"{line} has {has}, but no {wanted}: add it, or name the texts' column by the data's caption_column"
                )
        name = _key(_inside(row[FILE_NAME], line))
        if name in found:
            raise ValueError(f"lines {lines[name]} and {number} of {path} both name {_short(name)}: remove one")
        found[name], lines[name] = one_of(row[column]), number
    return found


def _inside(name: Any, line: str) -> str:
    """The path of a line's picture.

    Raises:
        ValueError: if it does not lead into the list's folder.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{line} has the {FILE_NAME} {_short(name)}, but it is the name of a picture: correct it")
    if "\\" in name:
        raise ValueError(f"{line} has the {FILE_NAME} {_short(name)}, with a backslash: write / between folders")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(
            f"{line} has the {FILE_NAME} {_short(name)}, which leads out of the list's folder: give a path within it"
        )
    return name


def _json_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f'line {number} of {path} is no JSON object: write one a line, such as {{"{FILE_NAME}": "1.png", '
                '"text": "a cat"}'
            )
        yield number, row


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    lines, header = csv.reader(io.StringIO(text, newline=""), strict=True), None
    quote = "put a caption that has commas, quotes or line breaks in quotes, and double the quotes within"
    try:
        for fields in filter(None, lines):
            if header is None:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise ValueError(f"{path} has the columns {_some(header)}, two of one name: rename one")
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"line {lines.line_num} of {path} has {len(fields)} fields, but there are {len(header)} columns: "
                    f"{quote}"
                )
            yield lines.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num} of {path} is no line of a CSV file ({error}): {quote}") from error


def _read(path: Path, most: int) -> str:
    """A file's text.

    Raises:
        ValueError: if it cannot be read, has more than `most` bytes, or is not UTF-8.
    """
    try:
        regular(path)  # a pipe would be waited for
        size, data = path.stat().st_size, b""
        if size <= most:
            with path.open("rb") as file:
                data = file.read(most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read ({reason}): give access to a file of text") from error
    if size > most:
        raise ValueError(f"{path} has more than {most:,} bytes, which is too much for captions: split or shorten it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 from byte {error.start} on: save it in that encoding") from error


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(_short(name, 40) for name in names[:10]) + (" and more" if len(names) > 10 else "")


def _short(value: Any, most: int = 100) -> str:
    """A value from a file, for a message of one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}…"
