"""Tables of figures as a run writes them: CSV files with the columns `step` and one for each key, read as data."""

import csv
import math
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BYTES = 2**30  # of a file
COLUMNS = 1000
SHOWN = 1e300  # past it no axis can be drawn

Watch = Callable[[int], object]  # is given the bytes that were read since it was last called


@dataclass
class Column:
    """The finite values of a key and the x of each, such as its step, in the order of the file."""

    x: array = field(default_factory=lambda: array("d"))
    y: array = field(default_factory=lambda: array("d"))
    left_out: int = 0  # values that are no finite numbers

    @property
    def last(self) -> float:
        return self.y[-1]


@dataclass
class Table:
    """The columns of a file by their names, and what could not be read, in words."""

    columns: dict[str, Column] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def last(self) -> dict[str, float]:
        """The last value of each column that has one."""
        return {key: column.last for key, column in self.columns.items() if column.y}

    @property
    def steps(self) -> int:
        """Steps that were done: of a validation its own, of training one more, since its rows count from 0."""
        ends = {key: max(column.x) for key, column in self.columns.items() if column.x}
        return int(max((x + key.startswith("train/") for key, x in ends.items()), default=0))


def read(path: Path, x: str = "step", watch: Watch = lambda size: None) -> Table:
    """Read a table, of which nothing is trusted: it may be cut short, be something else, or be written now.

    Args:
        path: the file; a missing one is an empty table.
        x: the column over which the others are functions; its values are finite numbers.
        watch: for a bar.
    """
    found = Table()
    for row in _rows(path, found.notes, watch, x):
        place = _number(row.pop(x, ""))
        if place is None or not math.isfinite(place):
            continue
        for key, text in row.items():
            if text:
                column = found.columns.setdefault(key, Column())
                value = _number(text)
                if value is None or not abs(value) <= SHOWN:
                    column.left_out += 1
                else:
                    column.x.append(place)
                    column.y.append(value)
    for key, column in found.columns.items():
        if column.left_out:
            found.notes.append(
                f"{path.name}: {column.left_out} values of {key} are left out, since they are not finite"
            )
    return found


def rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a small table as texts, at most a thousand, and what could not be read."""
    notes: list[str] = []
    found = []
    for row in _rows(path, notes, lambda size: None):
        found.append(row)
        if len(found) == 1000:
            break
    return found, notes


def _rows(path: Path, notes: list[str], watch: Watch, x: str | None = None) -> Iterator[dict[str, str]]:
    try:
        about = path.stat()
    except OSError:
        return
    if not stat.S_ISREG(about.st_mode) or about.st_size > BYTES:
        notes.append(f"{path.name} is left out: it is no file of at most {BYTES >> 30} GiB")
        return
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = csv.reader(_whole_lines(iter(file), watch))
            names = next(lines, [])
            if x is not None and names and x not in names:
                notes.append(f"{path.name} is left out: it has no column {x}")
                return
            if len(names) > COLUMNS:
                notes.append(f"{path.name} has {len(names):,} columns, of which the first {COLUMNS:,} are read")
            taken = {name: names.index(name) for name in names[:COLUMNS]}  # of equal names the first
            for row in lines:
                yield {name: row[i] for name, i in taken.items() if i < len(row)}
    except (OSError, csv.Error) as error:
        notes.append(f"{path.name} is read up to a fault in it ({error})")


def _whole_lines(lines: Iterator[str], watch: Watch) -> Iterator[str]:
    """Without the last line if it has no end: it is being written."""
    size = 0
    for line in lines:
        if line.endswith(("\n", "\r")):
            yield line
        size += len(line)
        if size > 2**20:
            watch(size)
            size = 0
    watch(size)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
