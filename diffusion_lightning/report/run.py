"""What a run's folder holds, read as data: its figures, its pictures, its configuration and how far it is."""

import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import records
from ..files import LOCK, holder
from .table import Table, Watch, read, rows
from .words import one_line

ABOUT = "about.json"  # what `fit` writes of the model and the machine
BYTES = 2**20  # of a configuration, and of ABOUT
# Metrics of which more is better.
MORE = ("precision", "recall", "is", "class_coverage", "class_evenness", "class_overlap", "class_rarest", "psnr",
        "ssim", "caption_match", "clip_score", "images_per_sec", "mfu")  # fmt: skip
NAME = 60  # letters of a run's name
Spec = dict[str, Any]


@dataclass
class Run:
    """A run's folder.

    Args:
        folder: it is read whenever something is asked for, so that a run may go on meanwhile.
        watch: for a bar, is given the bytes that were read.
    """

    folder: Path
    watch: Watch = lambda size: None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def name(self) -> str:
        """The folder's last name, fit for a page and a picture."""
        return one_line(self.folder.resolve().name, NAME) or "run"

    @cached_property
    def metrics(self) -> Table:
        return self.table("metrics.csv")

    @cached_property
    def validated(self) -> Table:
        return self.table("validate.csv")

    @cached_property
    def tested(self) -> Table:
        return self.table("test.csv")

    def own(self, path: Path) -> bool:
        """Whether a file is there and of this folder: a link that leads out of it could show what nobody meant to."""
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if inside and (path.is_file() or not path.exists()):
                return path.is_file()
            why = "it is no file" if inside else "it leads out of the run's folder"
        except OSError as error:
            why = error.strerror or "it cannot be read"
        except RuntimeError:  # a loop of links
            why = "it leads to itself"
        self.notes.append(f"{path.relative_to(self.folder)} is left out: {why}")
        return False

    def table(self, name: str, x: str = "step") -> Table:
        """A table of the run's; empty if it has none."""
        if not self.own(self.folder / name):
            return Table()
        found = read(self.folder / name, x, self.watch)
        self.notes += found.notes
        return found

    @cached_property
    def config(self) -> Spec:
        """The configuration; empty if there is none that can be read."""
        try:
            return records.parsed(self.text, "config.yaml") if self.text else {}
        except ValueError as error:
            self.notes.append(str(error).partition(":")[0])
            return {}

    @cached_property
    def text(self) -> str:
        """The configuration as it stands in its file, at most 1 MB."""
        return self._read("config.yaml")

    @cached_property
    def about(self) -> Spec:
        """What `fit` wrote of the model and the machine; empty for a run of an earlier version."""
        try:
            found = json.loads(self._read(ABOUT) or "{}")
        except (ValueError, RecursionError):
            self.notes.append(f"{ABOUT} is damaged and left out")
            return {}
        return found if isinstance(found, dict) else {}

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a small table of the run's, as texts; empty if it has none."""
        if not self.own(self.folder / name):
            return []
        found, notes = rows(self.folder / name)
        self.notes += notes
        return found

    def _read(self, name: str) -> str:
        try:
            path = self.folder / name
            if not self.own(path):
                return ""
            with path.open("rb") as file:
                found = file.read(BYTES + 1)
        except OSError as error:
            self.notes.append(f"{name} cannot be read ({error.strerror})")
            return ""
        if len(found) > BYTES:
            self.notes.append(f"{name} is left out: it has more than {BYTES:,} bytes")
            return ""
        return found.decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        """The configuration's value at a dotted key; None if there is none."""
        at: Any = self.config
        for part in key.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        return at

    @cached_property
    def steps(self) -> int:
        """The optimizer steps that were done, as far as its files say."""
        names = [*(self.folder / "checkpoints").glob("step=*.ckpt"), *(self.folder / "samples").glob("step=*.png")]
        numbers = [step_of(path) for path in names]
        ended = self.about.get("steps")
        known = [ended] if isinstance(ended, int) else []
        return max([self.metrics.steps, *known, *(n for n in numbers if n is not None)])

    @cached_property
    def wanted(self) -> int | None:
        """The steps that its configuration asks for; None if it names no number."""
        steps = self.value("trainer.max_steps")
        return steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None

    @cached_property
    def state(self) -> str:
        """`training`, `finished`, `stopped`, or `killed` if its process had no time to tidy up.

        A run whose length is in epochs or hours has finished if its `fit` says so.
        """
        if holder(self.folder) is not None:
            return "training"
        if self.about.get("ended") is True or (self.wanted is not None and self.steps >= self.wanted):
            return "finished"
        return "killed" if (self.folder / LOCK).exists() else "stopped"

    @cached_property
    def changed(self) -> float:
        """Seconds since the epoch of its last figure or checkpoint."""
        times = [0.0]
        for name in ("metrics.csv", "checkpoints/last.ckpt", "config.yaml", "test.csv", "validate.csv"):
            try:
                times.append((self.folder / name).stat().st_mtime)
            except OSError:
                continue
        return max(times)

    @cached_property
    def size(self) -> int:
        """Bytes on the disk of all its files."""
        found = 0
        for at, _, names in os.walk(self.folder):
            for name in names:
                try:
                    found += os.lstat(os.path.join(at, name)).st_size
                except OSError:  # removed meanwhile
                    continue
        return found

    @cached_property
    def watched(self) -> str | None:
        """The figure by which its best checkpoint is chosen, else its first metric; None if it has no figures."""
        keys = [key for key in self.metrics.columns if key.startswith("val/") and self.metrics.columns[key].y]
        monitor = self.value("checkpoint.monitor")
        if isinstance(monitor, str) and monitor in self.metrics.columns:
            return monitor
        others = [key for key in keys if key != "val/loss"] or keys
        return others[0] if others else None

    def less_is_better(self, key: str) -> bool:
        """Whether the smallest value of a figure is its best: as `checkpoint.mode` says of the one that it watches."""
        if key == self.value("checkpoint.monitor"):
            return self.value("checkpoint.mode") != "max"
        return not key.partition("/")[2].startswith(MORE)

    def best(self, key: str | None) -> tuple[str, float, int] | None:
        """A figure's name, its best value, and the step of that; None if it has none."""
        column = self.metrics.columns.get(key or "")
        if key is None or column is None or not column.y:
            return None
        value = min(column.y) if self.less_is_better(key) else max(column.y)
        return key, value, int(column.x[column.y.index(value)])

    def pictures(self, folder: str) -> list[tuple[int, Path]]:
        """The pictures `FOLDER/step=<n>.png` by their steps, rising."""
        found = [(step_of(path), path) for path in (self.folder / folder).glob("step=*.png")]
        return sorted((n, path) for n, path in found if n is not None)


def step_of(path: Path) -> int | None:
    """The number in a file's name `step=<n>…`."""
    found = re.fullmatch(r"step=(\d{1,15})", path.stem)
    return int(found[1]) if found else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run leaves."""
    names = ("metrics.csv", "config.yaml", "checkpoints/last.ckpt", "test.csv", "validate.csv")
    return any(os.path.isfile(folder / name) for name in names)  # which is False of what may not be looked at


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys."""
    if isinstance(config, dict | list) and config:
        parts = config.items() if isinstance(config, dict) else enumerate(config)
        return {key: x for name, value in parts for key, x in flat(value, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): config}
