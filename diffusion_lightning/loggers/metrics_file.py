"""The run's own record of its metrics, whatever other loggers it has."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """A CSV file with the columns `step` and the logged keys, one row a step, readable while the run goes on.

    A resumed run goes on in the same file: rows of steps that are trained again are dropped first.

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
            self._write(self._rows)
        else:
            self._rows.append({"step": step, **metrics})
            self._write(self._rows if fresh or len(self._rows) == 1 else self._rows[-1:], append=not fresh)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's folder holds them in `config.yaml`."""

    def _earlier(self, step: int) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole, _, _cut_short = self.path.read_text(encoding="utf-8").rpartition(
            "\n"
        )  # by a kill in the middle of a line
        with io.StringIO(whole, newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or ["step"])
            rows: list[dict[str, Any]] = [{**row, "step": int(row["step"])} for row in reader]
        kept = [row for row in rows if row["step"] <= step]  # the step itself may hold an evaluation before it
        self._write(kept)
        return kept

    def _write(self, rows: list[dict[str, Any]], append: bool = False) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append = append and self.path.exists()
        part = self.path if append else self.path.with_name(self.path.name + ".part")
        with part.open("a" if append else "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            if not append:
                writer.writeheader()
            writer.writerows(rows)
        if not append:
            part.replace(self.path)
