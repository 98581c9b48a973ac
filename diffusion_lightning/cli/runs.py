"""`diffusion-lightning runs [FOLDER]`: the runs below a folder, their states, figures, ages and sizes."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..report.run import Run, is_run
from ..report.words import columns, number, one_line, since, size

WITHIN = {"checkpoints", "samples", "chains", "reconstructions", "averages", "wandb"}  # folders of a run, and no runs
Figure = tuple[str, float, int]  # its name, its value and its step


class Row(NamedTuple):
    """A run as the table shows it."""

    name: str
    run: Run
    last: Figure | None
    best: Figure | None


# What the rows are sorted by, each as one would look for it: the newest, the largest, the best first.
KEYS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.name,
    "state": lambda row: row.run.state,
    "steps": lambda row: -row.run.steps,
    "last": lambda row: _rank(row, row.last),
    "best": lambda row: _rank(row, row.best),
    "age": lambda row: -row.run.changed,
    "size": lambda row: -row.run.size,
}


def main(given: Namespace) -> None:
    """Prints the table."""
    root = Path(given.folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}, but runs lie in a folder: give one, such as runs")
    found = [folder for folder in below(root) if given.name is None or fnmatch(_called(folder, root), given.name)]
    rows = []
    for folder in tqdm(found, desc="read", unit=" runs", delay=1, leave=False):
        run = Run(folder)
        if given.state is None or run.state in given.state:
            rows.append(_row(run, _called(folder, root), given.metric))
    if rows:
        head = ("run", "state", "steps", "last", "best", "changed", "size")
        sorted_ = in_order(rows, given.sort, given.reverse)
        print("\n".join(columns([head, *map(_cells, sorted_)], right=(2, 6))))
    print(f"{len(rows)} run{'' if len(rows) == 1 else 's'} below {one_line(str(root))}")


def below(root: Path) -> Iterator[Path]:
    """The folders of runs in a folder, itself too, and in those within it; what is removed meanwhile is left out."""
    for at, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in WITHIN and not name.startswith("."))
        if is_run(Path(at)):
            yield Path(at)


def in_order(rows: list[Row], order: str, reverse: bool = False) -> list[Row]:
    """The rows sorted, in the other direction where asked; those without the figure come last in both."""
    key = KEYS[order]
    there, missing = ([row for row in rows if (key(row) is None) == none] for none in (False, True))
    return [*sorted(there, key=key, reverse=reverse), *missing]


def _rank(row: Row, figure: Figure | None) -> tuple[str, float] | None:
    """Figures of one name together, the better first."""
    if figure is None:
        return None
    key, value, _ = figure
    return key, value if row.run.less_is_better(key) else -value


def _row(run: Run, name: str, metric: str | None) -> Row:
    key = metric or run.watched or ""
    column = run.metrics.columns.get(key)
    last = (key, column.last, int(column.x[-1])) if column is not None and column.y else None
    return Row(name, run, last, run.best(key))


def _called(folder: Path, root: Path) -> str:
    """A run's path below the folder; the folder's own name for itself."""
    path = folder.relative_to(root).as_posix()
    return one_line(path if path != "." else folder.resolve().name, 60)


def _cells(row: Row) -> tuple[str, ...]:
    run = row.run
    steps = f"{run.steps:,}" + (f" of {run.wanted:,}" if run.wanted else "")
    last = "" if row.last is None else f"{one_line(row.last[0], 40)} {number(row.last[1])}"
    best = "" if row.best is None else f"{number(row.best[1])} at {row.best[2]:,}"
    return row.name, run.state, steps, last, best, since(run.changed) if run.changed else "", size(run.size)
