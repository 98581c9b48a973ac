"""`diffusion-lightning average RUN --sweep`: averages of many lengths scored, as a table and a curve.

Each is scored as `validate` scores its checkpoint: by the run's own metrics, sampler, samples and data.
"""

import csv
import hashlib
import io
import json
import math
import shlex
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from tqdm import tqdm

from .. import checkpoints, files, loading, records
from ..callbacks import Preemption
from ..callbacks.base import profiles
from ..records import Spec
from . import evaluate, run_folder
from .snapshots import Snapshots

TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.28)  # of the curve
NUMBER = 9  # lengths that are chosen here, beside those of the run's own averages
LENGTH, STEP, OF = "sigma_rel", "step", "of"  # columns beside the figures; the last is a hash of all that made a row

Row = dict[str, Any]
Point = tuple[float, float]  # a length and its figure


def main(given: Namespace) -> None:
    """Scores the lengths that the table does not hold yet, one after the other, and draws the curve of all."""
    root = Path(given.run)
    snapshots = Snapshots(root)
    step = snapshots.last if given.step is None else given.step
    lengths = sorted(set(given.lengths)) if given.lengths else chosen(snapshots, step)
    for length in lengths:
        snapshots.check(length, step)
    path = root / "checkpoints/last.ckpt"
    last = checkpoints.read(path)
    record = checkpoints.config(last, path)
    metrics, of = _metrics(record, root, given)
    seed = evaluate.seed_of(record)
    made_of = [of, record.get("model"), record.get("data"), seed, step, snapshots.contents]
    key = hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=6).hexdigest()
    table, picture = (root / "averages" / name for name in ("sweep.csv", "sweep.png"))
    with files.locked(root / "averages", "wait for it to end", ".sweep.lock"), tempfile.TemporaryDirectory() as spare:
        for file in (table, picture):
            files.check_file(file)
        rows = read(table)
        held = {float(row[LENGTH]) for row in rows if row[OF] == key}
        waiting = [length for length in lengths if length not in held]
        if waiting:
            data = _data(record, path, seed, given.trust)
            seed_everything(seed, verbose=False)
            trainer = _trainer(metrics, spare)
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
        for length in tqdm(waiting, desc="lengths", bar_format=form, disable=not waiting, file=sys.stderr):
            average = snapshots.checkpoint(last, length, step)
            model = loading.restored(average, record, path, given.trust, seed)
            found = trainer.validate(model, datamodule=data, verbose=False)
            run_folder.check_evaluated(trainer, "validate")
            figures = {name: value for name, value in found[0].items() if name.startswith("val/")}
            rows.append({LENGTH: repr(length), STEP: step, "n": of["n"], **figures, OF: key})
            write(table, rows)
    scored = sorted((row for row in rows if row[OF] == key), key=lambda row: float(row[LENGTH]))
    watched, smallest = watched_by(record, scored[0])
    names = [name for name in (watched, "val/loss") if name in scored[0]]
    curves = {name: [(float(row[LENGTH]), float(row[name])) for row in scored] for name in names}
    best = {name: best_of(curve, smallest or name != watched) for name, curve in curves.items()}
    draw(picture, curves, best, snapshots.own, f"averages at step {step:,}, {of['n']:,} samples of each")
    _tell(root, given, curves[watched], best[watched], watched)
    print(f"table       {table}\ncurve       {picture}")


def best_of(curve: list[Point], smallest: bool) -> Point:
    """The point of the smallest figure, or the largest; one that is no number never is."""
    return min(curve, key=lambda point: (point[1] != point[1], point[1] if smallest else -point[1]))


def chosen(snapshots: Snapshots, step: int) -> list[float]:
    """Lengths in equal ratios, of two digits, from the shortest to the longest that there are, and the run's own."""
    shortest, longest = snapshots.span(step)
    between = [float(f"{shortest * (longest / shortest) ** (k / (NUMBER - 1)):.2g}") for k in range(1, NUMBER - 1)]
    found = {math.ceil(1000 * shortest) / 1000, *between, math.floor(100 * longest) / 100, *snapshots.own}
    return sorted(x for x in found if shortest <= x <= longest)


# What the run scored its samples by


def _metrics(record: Spec, root: Path, given: Namespace) -> tuple[Callback, dict[str, Any]]:
    """The run's own `GenerativeMetrics`, and its record with all defaults."""
    for where, name, spec in evaluate.callbacks_of(record):
        if name.startswith(f"{evaluate.PACKAGE}.") and name.endswith(".GenerativeMetrics"):
            part = records.read(spec, Callback, where, given.trust)
            if given.n is not None:
                part.arguments["n"] = given.n
            found = part.spec()["init_args"]
            if found["n"] < 1:
                raise ValueError(f"--n is {given.n}, but figures are of samples: give at least 1")
            if found["metrics"]:
                return part.make(), found
    raise ValueError(
        f"the run {root} states no metrics, so that no length is better than another: write averages by --out, draw "
        "samples of each by predict, and compare these by score"
    )


def watched_by(record: Spec, row: Row) -> tuple[str, bool]:
    """The figure by which lengths are compared, and whether the smaller is the better one.

    It is the metric by which the run's best checkpoint is chosen, else the first.
    """
    of = record.get("checkpoint")
    of = of if isinstance(of, dict) else {}
    monitor, smallest = of.get("monitor"), of.get("mode", "min") == "min"
    metrics = [name for name in row if name.startswith("val/") and name != "val/loss" and row[name] != ""]
    return (str(monitor), smallest) if monitor in metrics else (metrics[0], True)


def _data(record: Spec, path: Path, seed: int, trust: list[str]) -> LightningDataModule:
    if record.get("data") is None:
        raise ValueError(f"the checkpoint {path} names no data to compare samples with: use one of a run")
    return evaluate.data_of(record["data"], seed, trust)


def _trainer(metrics: Callback, folder: str) -> Trainer:
    trainer = Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[metrics],
    )  # fmt: skip
    trainer.callbacks.append(Preemption())  # type: ignore[attr-defined]
    return trainer


# The table and the curve


def read(table: Path) -> list[Row]:
    """The rows that are there, those of other steps, samplers or numbers of samples too."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [row for row in rows if row[OF] and profiles.exponent(float(row[LENGTH]))]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table} is no table of a sweep, which would go there: move it away") from error


def write(table: Path, rows: list[Row]) -> None:
    """Writes all rows, with the columns of all of them, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != OF))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*columns, OF], restval="")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(table, text.getvalue())


def draw(picture: Path, curves: dict[str, list[Point]], best: dict[str, Point], own: list[float], title: str) -> None:
    """The curves of figures over sigma_rel, each with its best point, and the lengths that the run kept: a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # half a second that an error has not to wait for
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6, 2.4 * len(curves)), dpi=90, layout="constrained")
    every = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, curve) in zip(every, curves.items(), strict=True):
        for k, length in enumerate(own):
            axes.axvline(length, color="0.6", linestyle=":", label=None if k else "kept in training")
        axes.semilogx(*zip(*curve, strict=True), "o-", color="tab:blue", markersize=4)
        axes.plot(*best[name], "o", color="tab:orange", label=f"{best[name][1]:.4g} at {best[name][0]:g}")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    lengths = [length for length, _ in curve]
    ticks = FixedLocator([x for x in TICKS if min(lengths) / 1.1 <= x <= max(lengths) * 1.1])
    every[-1].xaxis.set(major_locator=ticks, major_formatter=StrMethodFormatter("{x:g}"))
    every[-1].xaxis.set_minor_formatter(NullFormatter())
    every[-1].set_xlabel("sigma_rel, the average's deviation as a fraction of the training so far")
    every[0].set_title(title)
    with files.written(picture) as stream:
        FigureCanvasAgg(figure).print_png(stream)


def _tell(root: Path, given: Namespace, curve: list[Point], best: Point, name: str) -> None:
    print(f"| sigma_rel | {name} |\n|---|---|")
    for length, value in curve:
        print(f"| {length:g} | {value:.4g} |")
    if best in (curve[0], curve[-1]):
        print(f"note: the best, {best[0]:g}, is at an end of these: a better one may lie beyond", file=sys.stderr)
    words = ["diffusion-lightning", "average", str(root), "--sigma_rel", repr(best[0])]
    words += [] if given.step is None else ["--step", str(given.step)]
    print(f"best        sigma_rel {best[0]:g}, {name} {best[1]:.4g}: {shlex.join(words)} --out CKPT")
