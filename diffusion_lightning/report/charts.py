"""Which charts a report has: of the loss and its bands, the machine, each metric, the bound, samplers and averages."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .chart import COLOURS, STEP, Chart, Level, Line
from .run import Run
from .table import Column, Table
from .words import one_line

# What a metric's name without its features means, and whether it is drawn on a logarithmic axis if it can be.
WORDS = {
    "fid": ("FID: less is better", True),
    "rfid": ("FID of reconstructions: less is better", True),
    "fd": ("Fréchet distance: less is better", True),
    "rfd": ("Fréchet distance of reconstructions: less is better", True),
    "kid": ("kernel distance (KID): less is better, 0 is the same distribution", False),
    "is": ("Inception Score: more is better", False),
    "precision": ("share of the samples that are like real images", False),
    "recall": ("share of the real images that are like samples", False),
    "class_coverage": ("share of the classes that are drawn", False),
    "class_evenness": ("evenness of the classes: 1 is even", False),
    "class_overlap": ("overlap with the real shares of the classes", False),
    "class_rarest": ("the rarest class: its share of the samples over its real share", False),
    "copies": ("share of the samples that are copies of training images", False),
    "nearest": ("distance of a sample to its nearest training image", False),
    "bits_per_dim": ("bits a dimension: less is better", False),
    "psnr": ("of reconstructions, in dB: more is better", False),
    "ssim": ("of reconstructions: 1 is the image", False),
}
PARTS = ("_mean", "_error", "_std", "_infinity", "_samples")  # of one metric
MACHINE = {
    "throughput/images_per_sec": ("Images a second", "images/s", 1.0),
    "throughput/mfu": ("Model FLOPs utilisation", "% of the device's peak", 100.0),
    "throughput/memory_gib": ("Memory", "GiB", 1.0),
}
SKIPPED = ("train/loss", "val/loss", "train/lr", "train/grad_norm", "epoch", "step", *MACHINE)
OTHERS = 24  # charts of keys that are not known here


@dataclass
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def sections(runs: Sequence[Run]) -> list[Section]:
    """The charts of one or several runs, which have the same colours in all of them; empty sections are left out."""
    several = len(runs) > 1
    of = _Names(runs)
    found = [
        Section("Training", [*_loss(runs, of), *_bands(runs, several), *_pace(runs, of)]),
        Section("Metrics of samples", _metrics(runs, of)),
        Section("The bound over t", _bound(runs, of)),
        Section("Samplers and steps", _samplers(runs, several)),
        Section("Averages of the weights", _averages(runs, of)),
        Section("Other figures", _others(runs, of)),
    ]
    return [section for section in found if section.charts]


class _Names:
    """How a run is called in a legend: by its name, or not at all where it is the only one."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.names = [run.name for run in runs] if len(runs) > 1 else [""]

    def __call__(self, k: int, what: str = "") -> str:
        return ", ".join(filter(None, (self.names[k], what)))


def _line(column: Column, label: str, run: int, scale: float = 1.0, marked: bool = False) -> Line:
    return Line(label, list(column.x), [scale * y for y in column.y], run, marked=marked)


def _present(runs: Sequence[Run], key: str) -> list[tuple[int, Column]]:
    """The runs that have values of a key, by their numbers."""
    columns = ((k, run.metrics.columns.get(key)) for k, run in enumerate(runs))
    return [(k, column) for k, column in columns if column is not None and column.y]


def _chart(
    title: str, y: str, lines: list[Line], log: bool = False, levels: list[Level] | None = None, text: str = ""
) -> list[Chart]:
    """A chart over steps; logarithmic only if all is above 0."""
    if not lines:
        return []
    values = [v for line in lines for v in line.y] + [level.y for level in levels or []]
    return [Chart(title, STEP, y, lines, log_y=log and min(values) > 0, levels=levels or [], text=text)]


def _loss(runs: Sequence[Run], of: _Names) -> list[Chart]:
    lines = [_line(column, of(k, "training"), k) for k, column in _present(runs, "train/loss")]
    lines += [_line(column, of(k, "validation"), k, marked=True) for k, column in _present(runs, "val/loss")]
    if len(runs) == 1:
        for line in lines:
            line.run = int(line.marked)
    return _chart("Loss", "loss", lines, log=True)


def _bands(runs: Sequence[Run], several: bool) -> list[Chart]:
    """The loss in bins of t, of training or, where that has none, of validation; a chart a run."""
    found: list[Chart] = []
    for run in runs:
        columns = {name: column for name, column in run.metrics.columns.items() if column.y}
        prefix = "train_by_t/" if any(name.startswith("train_by_t/") for name in columns) else "val_by_t/"
        names = [name for name in columns if name.startswith(prefix)]
        lines = []
        for i, name in enumerate(names):
            bins = " … ".join(end.lstrip("0") for end in one_line(name.removeprefix(prefix)).split("-"))
            lines.append(_line(columns[name], f"t = {bins}", 0, marked=prefix == "val_by_t/"))
            lines[-1].colour = _scale(i / max(1, len(names) - 1))
        what = "training" if prefix == "train_by_t/" else "validation"
        found += _chart(f"Loss by t, {what}" + (f": {run.name}" if several else ""), "loss", lines, log=True)
    return found


def _scale(share: float) -> str:
    """A colour between the violet of the cleanest times and the yellow-green of the noisiest, of viridis."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.1 + 0.72 * share))


def _pace(runs: Sequence[Run], of: _Names) -> list[Chart]:
    found = []
    for key, title, unit, log in (
        ("train/lr", "Learning rate", "learning rate", False),
        ("train/grad_norm", "Norm of the gradient, before the clip", "norm", True),
    ):
        found += _chart(title, unit, [_line(column, of(k), k) for k, column in _present(runs, key)], log)
    for key, (title, unit, scale) in MACHINE.items():
        found += _chart(title, unit, [_line(column, of(k), k, scale) for k, column in _present(runs, key)])
    return found


def base(name: str) -> str:
    """A metric's name without its part: `val/kid_digits` of `val/kid_digits_mean`."""
    return next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)


def meaning(name: str) -> tuple[str, bool]:
    """What a metric, `val/fd_digits`, is, in words, and whether its axis is logarithmic."""
    name = name.partition("/")[2] or name
    known = sorted((word for word in WORDS if name == word or name.startswith(f"{word}_")), key=len)
    return WORDS[known[-1]] if known else ("", False)


def metric_names(runs: Iterable[Run]) -> list[str]:
    """The metrics that validation measures, in the order of their first run, without the loss."""
    keys = [key for run in runs for key, column in run.metrics.columns.items() if column.y]
    keys = [key for key in keys if key.startswith("val/") and key != "val/loss" and "_index" not in key]
    return list(dict.fromkeys(map(base, keys)))


def _metrics(runs: Sequence[Run], of: _Names) -> list[Chart]:
    found = []
    for name in metric_names(runs):
        lines: list[Line] = []
        levels: list[Level] = []
        kinds: dict[str, None] = {}
        for k, run in enumerate(runs):
            column = _first(run.metrics, name, f"{name}_mean")
            if column is not None:
                line = _line(column, of(k, "validation"), k, marked=True)
                line.error = _error(run.metrics, name, column, kinds)
                lines.append(line)
            key = f"test/{name.partition('/')[2]}"
            tested = _first(run.tested, key, f"{key}_mean")
            if tested is not None:
                line = _line(tested, of(k, "test" + _count(_first(run.tested, f"{key}_samples"))), k, marked=True)
                line.error = _error(run.tested, key, tested, kinds)
                lines.append(line)
                if len(runs) == 1:
                    line.run = 1
            floor = _first(run.tested, f"floor/{name.partition('/')[2]}", f"floor/{name.partition('/')[2]}_mean")
            if floor is not None:
                count = _count(_first(run.tested, "floor/images"))
                levels.append(Level(of(k, f"held-out real images{count}"), floor.last, k))
        words, log = meaning(name)
        words = "; ".join(filter(None, [words, f"± is the {' or the '.join(kinds)}" if kinds else ""]))
        found += _chart(one_line(name), one_line(name.partition("/")[2]), lines, log, levels, words)
    return found


def _first(table: Table, *names: str) -> Column | None:
    return next((table.columns[name] for name in names if name in table.columns and table.columns[name].y), None)


def _count(of: Column | None) -> str:
    """How many images a figure is of: distances of few are larger."""
    return f" ({of.last:,.0f})" if of is not None else ""


def _error(table: Table, name: str, column: Column, kinds: dict[str, None]) -> list[float] | None:
    """The uncertainty beside the values of a column, of a kind that is added; None where one is missing."""
    for part, kind in (("error", "standard error"), ("std", "standard deviation of parts of the samples")):
        beside = _first(table, f"{name}_{part}")
        if beside is not None and list(beside.x) == list(column.x):
            kinds[kind] = None
            return list(beside.y)
    return None


def _bound(runs: Sequence[Run], of: _Names) -> list[Chart]:
    lines = []
    for k, run in enumerate(runs):
        found = run.table("bound.csv", "t").columns.get("bits_per_dim")
        points = [(t, bits) for t, bits in zip(found.x, found.y, strict=True) if bits > 0 < t] if found else []
        if points:
            lines.append(Line(of(k), [t for t, _ in points], [bits for _, bits in points], k))
    title = "Terms of the variational bound; t = 1 is the decoder's"
    return [Chart(title, "t", "bits/dim", lines, log_x=True, log_y=True)] if lines else []


def _samplers(runs: Sequence[Run], several: bool) -> list[Chart]:
    """Each run's first metric over the number of steps, a line a sampler."""
    found = []
    for run in runs:
        table = run.rows("samplers.csv")
        names = [key for key in (table[0] if table else {}) if key not in ("sampler", "steps", "seconds_per_image")]
        if not names:
            continue
        lines: dict[str, Line] = {}
        for row in table:
            try:
                steps, value = float(row["steps"]), float(row[names[0]])
            except (KeyError, ValueError):
                continue
            name = one_line(row.get("sampler", ""))
            if 0 < steps < 1e9 and abs(value) < 1e300:
                line = lines.setdefault(name, Line(name, [], [], len(lines), marked=True))
                line.x.append(steps)
                line.y.append(value)
        drawn = [_sorted(line) for line in lines.values()]
        if drawn:
            title = "Samplers" + (f": {run.name}" if several else "")
            words, log = meaning(names[0])
            log = log and min(y for line in drawn for y in line.y) > 0
            found.append(
                Chart(title, "steps of the sampler", one_line(names[0]), drawn, log_x=True, log_y=log, text=words)
            )
    return found


def _sorted(line: Line) -> Line:
    points = sorted(zip(line.x, line.y, strict=True))
    line.x, line.y = [x for x, _ in points], [y for _, y in points]
    return line


def _averages(runs: Sequence[Run], of: _Names) -> list[Chart]:
    """The figures of `average --sweep` over the averages' lengths."""
    tables = [run.table("averages/sweep.csv", "sigma_rel") for run in runs]
    names = dict.fromkeys(key for table in tables for key, column in table.columns.items() if column.y)
    found = []
    for name in (base(name) for name in names if name.startswith("val/") and name == base(name)):
        lines = []
        for k, table in enumerate(tables):
            column = table.columns.get(name)
            points = [(x, y) for x, y in zip(column.x, column.y, strict=True) if x > 0] if column else []
            if points:
                lines.append(_sorted(Line(of(k), [x for x, _ in points], [y for _, y in points], k, marked=True)))
        words, log = meaning(name)
        if lines:
            log = log and min(y for line in lines for y in line.y) > 0
            x, y = "σ_rel, the average's deviation as a share of the training", one_line(name)
            found.append(Chart(f"Averages: {y}", x, y, lines, log_x=True, log_y=log, text=words))
    return found[:4]


def _others(runs: Sequence[Run], of: _Names) -> list[Chart]:
    """A chart of each key that no other chart shows."""
    drawn: Callable[[str], bool] = lambda key: (
        key in SKIPPED or key.startswith(("train_by_t/", "val_by_t/", "val/", "test/", "floor/"))
    )
    keys = dict.fromkeys(key for run in runs for key, column in run.metrics.columns.items() if column.y)
    found = []
    for key in [key for key in keys if not drawn(key)][:OTHERS]:
        found += _chart(one_line(key), one_line(key), [_line(column, of(k), k) for k, column in _present(runs, key)])
    return found


def colour(k: int) -> str:
    """The colour of run number k."""
    return COLOURS[k % len(COLOURS)]


def small_table(run: Run, name: str) -> list[list[str]]:
    """A small table's head and rows, at most 60, for the page."""
    found = run.rows(name)
    if not found:
        return []
    names = list(found[0])[:16]
    return [[one_line(x) for x in names], *([one_line(row.get(name, "")) for name in names] for row in found[:60])]
