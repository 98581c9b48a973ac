"""The run's own record of its metrics, whatever other loggers it has."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from ..files import write_text


class MetricsFile(Logger):
    """A CSV file with the columns `step` and the logged keys, one row a step, readable while the run goes on.

    A resumed run goes on in the same file: rows of steps that are trained again are dropped first. On a full disk the
    rows wait in memory, with a warning, until there is room for the whole file.

    Args:
        path: the file.
    """

    name = "metrics"
    version = 0

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: list[dict[str, Any]] | None = None
        self._columns = ["step"]
        self._whole = False  # the file holds all rows but the newest
        self._warned = False

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = step or 0
        if self._rows is None:
            self._rows = self._earlier(step)
        metrics = {key: value for key, value in metrics.items() if key != "epoch"}
        if not metrics:
            return
        fresh = [key for key in metrics if key not in self._columns]
        self._columns += fresh
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(metrics)
            self._whole = False
        else:
            self._rows.append({"step": step, **metrics})
        self._write(append=self._whole and not fresh)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's folder holds them in `config.yaml`."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what waited for room."""
        if self._rows and not self._whole:
            self._write(append=False)

    def _earlier(self, step: int) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        # Without what follows the last line: a kill may have come in the middle of one.
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        with io.StringIO(whole, newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or ["step"])
            rows: list[dict[str, Any]] = [{**row, "step": int(row["step"])} for row in reader]
        return [row for row in rows if row["step"] <= step]  # the step itself may hold an evaluation before it

    def _write(self, append: bool) -> None:
        assert self._rows is not None
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        try:
            if append and self.path.exists():
                writer.writerow(self._rows[-1])
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    file.write(text.getvalue())
            else:
                writer.writeheader()
                writer.writerows(self._rows)
                write_text(self.path, text.getvalue())
            self._whole = True
        except OSError as error:
            self._whole = False
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"{self.path}: {error.strerror or error}: the metrics wait in memory and the training goes on; "
                    "make room there, or allow writing there"
                )
