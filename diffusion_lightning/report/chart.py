"""A chart: lines over an axis, drawn for a page (SVG) or as a picture (PNG), in colours that all eyes tell apart.

The colours are those of Okabe and Ito (Color universal design, 2008), without the yellow, too light for a line.
"""

import io
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import written

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7f7f7f")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MOST = len(COLOURS) * len(DASHES)  # runs that can be told apart
POINTS = 300  # of a line, in a chart of few
TOGETHER = 6000  # of a chart

INK = "#010203"  # of axes and words; in a page it is the page's own
PAPER = {"ink": "#222222", "ground": "#ffffff"}  # of a picture


@dataclass
class Line:
    """A line's points and how it is drawn.

    Args:
        label: in the legend; an empty one is left out of it.
        x: of the points.
        y: of the points.
        run: the number of its run, which sets its colour and dashes everywhere.
        error: half the height of the band around it, point by point; None is without.
        marked: points as dots on it, for values that are few.
        colour: in the place of the run's, for what is no run.
    """

    label: str
    x: list[float]
    y: list[float]
    run: int = 0
    error: list[float] | None = None
    marked: bool = False
    colour: str | None = None

    @property
    def ink(self) -> str:
        return self.colour or COLOURS[self.run % len(COLOURS)]

    @property
    def dashes(self) -> Any:
        return DASHES[self.run // len(COLOURS) % len(DASHES)]


@dataclass
class Level:
    """A value that does not change, such as that of real images."""

    label: str
    y: float
    run: int = 0


@dataclass
class Chart:
    """Lines over common axes, whose labels say what they are and in what unit; `text` explains the title."""

    title: str
    x: str
    y: str
    lines: list[Line]
    log_x: bool = False
    log_y: bool = False
    levels: list[Level] = field(default_factory=list)
    text: str = ""

    def thinned(self, share: float = 1.0) -> None:
        """Leave at most so many points in each line that the page stays small; extremes stay."""
        most = max(20, int(min(POINTS, TOGETHER / max(1, len(self.lines))) * share))
        for line in self.lines:
            keep = thin(line.y, most)
            line.x, line.y = [line.x[i] for i in keep], [line.y[i] for i in keep]
            line.error = None if line.error is None else [line.error[i] for i in keep]

    def svg(self, key: str) -> str:
        """The chart for a page, in which its ids begin with a key; its ink is the page's."""
        text = io.StringIO()
        with _settings():
            _figure(self, INK, legend=False).savefig(
                text, format="svg", metadata=dict.fromkeys(METADATA), transparent=True
            )
        found = text.getvalue()
        found = found[found.index("<svg") :]
        found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
        found = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", found).replace("xlink:href", "href")
        found = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", found)
        found = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1 aria-hidden='true'>", found, count=1)
        found = re.sub(r"<!--.*?-->\s*|\n\s*", "\n", found, flags=re.DOTALL)
        return found.replace(INK, "currentColor")

    def png(self, path: Path) -> None:
        """The chart as a picture."""
        with _settings(), written(path) as stream:
            _figure(self, PAPER["ink"], legend=True).savefig(stream, format="png", dpi=160, facecolor=PAPER["ground"])


METADATA = ("Date", "Creator", "Format", "Type")


def thin(y: list[float], most: int) -> list[int]:
    """The places of at most `most` values: the first, the last, and the least and the largest of equal stretches."""
    n = len(y)
    if n <= most:
        return list(range(n))
    stretches = max(1, (most - 2) // 2)
    found = {0, n - 1}
    for k in range(stretches):
        part = range(k * n // stretches, (k + 1) * n // stretches)
        found |= {min(part, key=y.__getitem__), max(part, key=y.__getitem__)}
    return sorted(found)


def _settings() -> Any:
    from matplotlib import rc_context  # half a second that an error has not to wait for

    return rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 10,
        "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "path.simplify": False, "axes.formatter.use_mathtext": False,
    })  # fmt: skip


def _figure(chart: Chart, ink: str, legend: bool) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for k, line in enumerate(chart.lines):
        drawn = axes.plot(
            line.x, line.y, color=line.ink, linestyle=line.dashes, linewidth=1.6,
            marker="o" if line.marked or len(line.x) == 1 else None, markersize=4, gid=f"line{k}",
            label=f"\u200b{line.label}" if line.label else "_",
        )  # fmt: skip
        if line.error is not None and len(line.x) == 1:  # of which a band has no width
            axes.errorbar(line.x, line.y, line.error, color=line.ink, linewidth=1.2, capsize=3)
        elif line.error is not None:
            low, high = ([y + sign * e for y, e in zip(line.y, line.error, strict=True)] for sign in (-1, 1))
            if chart.log_y:
                low = [max(y, min(line.y) / 10) for y in low]
            axes.fill_between(line.x, low, high, color=line.ink, alpha=0.2, linewidth=0)
        drawn[0].set_solid_capstyle("round")
    for level in chart.levels:
        colour = COLOURS[level.run % len(COLOURS)]
        axes.axhline(level.y, color=colour, linestyle=(0, (2, 2)), linewidth=1.1, label=f"\u200b{level.label}")
    for kind, log in (("x", chart.log_x), ("y", chart.log_y)):
        axis = getattr(axes, f"{kind}axis")
        if log:
            getattr(axes, f"set_{kind}scale")("log")
            values = [v for line in chart.lines for v in getattr(line, kind)] + [1.0]
            wide = max(values[:-1] or values) > 30 * min(values[:-1] or values)
            axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            axis.set_minor_formatter(FuncFormatter(lambda value, place: ""))
        else:
            axis.set_major_locator(MaxNLocator(6, integer=kind == "x" and chart.x == STEP))
        axis.set_major_formatter(FuncFormatter(lambda value, place: _short(value)))
    values = [y for line in chart.lines for y in line.y] + [level.y for level in chart.levels]
    if min(values) == max(values) and not chart.log_y:  # else the axis would magnify nothing
        axes.set_ylim(*sorted((0, 2 * values[0] or 1)))
    axes.set_xlabel(chart.x, color=ink)
    axes.set_ylabel(chart.y, color=ink)
    axes.tick_params(which="both", colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.grid(color=ink, alpha=0.15, linewidth=0.6)
    if legend:
        axes.set_title(chart.title, color=ink, fontsize=11)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            axes.legend(handles, labels, fontsize=8, frameon=False, ncols=1 + len(labels) // 9)
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    return figure


STEP = "optimizer step"


def _short(value: float) -> str:
    """A tick's number: 20k for 20,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size and size * 10 <= abs(value) * 10:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"
