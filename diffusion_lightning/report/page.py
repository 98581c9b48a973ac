"""The page itself: HTML that holds all it shows, asks no server, and needs no script.

Every text of a run is escaped, and the page forbids its browser to load or run anything.
"""

import html
import time
from collections.abc import Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from .. import files
from .chart import MOST, Chart, Line
from .charts import Section, colour, metric_names, sections, small_table
from .run import Run, flat
from .strip import Strip, strips
from .words import number, one_line, printable, shown, since, size

LARGEST = 5_000_000  # bytes of a page
SHARES = (1.0, 0.5, 0.2, 0.05)  # of points and pictures, tried one after another until the page is small enough
SILENT = ("trainer.default_root_dir", "trainer.logger")  # keys that change no figure of a run
TABLE = 40  # values of a line that a chart's table has
GENERATOR = "diffusion-lightning report"  # by which a page is known as one of these
LOCKED_DOWN = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(runs: Sequence[Run], out: Path) -> int:
    """Write the report of one or several runs, whole or not at all, and return its bytes.

    Raises:
        ValueError: if there are more runs than can be told apart, or `out` is a file of something else.
    """
    check(runs, out)
    _name_apart(runs)
    for share in SHARES:
        text = page(runs, share)
        if len(text.encode()) < LARGEST:
            break
    files.write_text(out, text)
    return len(text.encode())


def check(runs: Sequence[Run], out: Path) -> None:
    """Raise ValueError if `write` would."""
    if len(runs) > MOST:
        raise ValueError(f"a report tells {MOST} runs apart, but {len(runs)} are given: give fewer")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out is {out}, but a report is a page: give a name that ends in .html")
    files.check_file(out)
    if out.is_file():
        with out.open("rb") as file:
            if GENERATOR.encode() not in file.read(2000):
                raise ValueError(f"{out} is there already and is no report: choose another --out, or move it away")


def _name_apart(runs: Sequence[Run]) -> None:
    """Give runs whose folders have the same name those of the folders above them too."""
    for run in [run for run in runs if [other.name for other in runs].count(run.name) > 1]:
        run.name = one_line("/".join(run.folder.resolve().parts[-3:]), 60)
    for k, run in enumerate(runs):
        if run.name in (other.name for other in runs[:k]):
            run.name = f"{run.name} ({k + 1})"


def pictures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write each chart as a picture, numbered in the order of the page."""
    found = []
    for place, chart in enumerate((c for section in sections(runs) for c in section.charts), start=1):
        word = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in chart.title.lower())
        name = "-".join(filter(None, word.split("-")))[:60]
        path = folder / f"{place:02d}-{name or 'chart'}.png"
        chart.png(path)
        found.append(path)
    return found


def page(runs: Sequence[Run], share: float = 1.0) -> str:
    """The page's text; `share` of the points and pictures."""
    found = sections(runs)
    for section in found:
        for chart in section.charts:
            chart.thinned(share)
    several = len(runs) > 1
    title = "Runs compared: " + ", ".join(run.name for run in runs) if several else f"Run {runs[0].name}"
    body = [f"<h1>{_text(title)}</h1>"]
    body += _compared(runs) if several else [_state(runs[0]), _tiles(runs[0])]
    images = [(run, strips(run, run.name, share / len(runs))) for run in runs]
    if not several:
        body += [_strip(strip, "") for strip in images[0][1][:1]]
    first = 0
    for section in found:
        body.append(_section(section, first))
        first += len(section.charts)
    for run, of_run in images:
        named = f"{run.name}: " if several else ""
        body += [_strip(strip, named) for strip in (of_run if several else of_run[1:])]
    for run in runs:
        body += _tables(run, f": {run.name}" if several else "")
    for run in runs:
        body += _facts(run, f": {run.name}" if several else "", share)
    body += _notes(runs, share)
    style = resources(__package__).joinpath("page.css").read_text(encoding="utf-8")
    made = time.strftime("%Y-%m-%d %H:%M")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{LOCKED_DOWN}">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f'\n<p class="soft">Made by diffusion-lightning report, {made}.</p>\n</body>\n</html>\n'
    )


def _text(value: Any) -> str:
    return html.escape(one_line(str(value)))


# What the runs are


def _state(run: Run) -> str:
    done = f"{run.steps:,} of {run.wanted:,} steps" if run.wanted else f"{run.steps:,} steps"
    when = f", last change {since(run.changed)}" if run.changed else ""
    return f'<p><span class="badge {run.state}">{run.state}</span> <span class="soft">{done}{when}</span></p>'


def _tiles(run: Run) -> str:
    found: list[tuple[str, str]] = []
    last = run.metrics.last()
    if (best := run.best(run.watched)) is not None:
        key, value, step = best
        found.append((f"best {key}, at step {step:,}", number(value)))
    for key in ("val/loss", *(metric_names([run])[:4]), "throughput/images_per_sec", "throughput/mfu"):
        figure = last.get(key, last.get(f"{key}_mean"))
        if figure is not None and (best is None or (key, figure) != best[:2]):
            found.append((f"last {key}", f"{figure:.1%}" if key.endswith("mfu") else number(figure)))
    tested = run.tested.last()
    for key in ("test/bits_per_dim", *(f"test/{name.partition('/')[2]}" for name in metric_names([run])[:1])):
        if key in tested:
            found.append((f"{key}, the full protocol", number(tested[key])))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{_text(name)}</span></div>' for name, value in found)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def facts(run: Run) -> list[tuple[str, str]]:
    """What the run is: model, data, machine and code, as far as its files say."""
    about = run.about
    network = run.value("model.init_args.network.class_path") or run.value("model.class_path") or about.get("network")
    found = [
        ("model", _class(run.value("model.class_path"))),
        ("network", _class(network)),
        ("parameters", _count(about.get("parameters"), "", " trained")),
        ("operations", _count(about.get("operations"), "", " floating-point operations an image, forward")),
        ("data", _class(run.value("data.class_path"))),
        ("hash of the images", about.get("data_fingerprint")),
        ("seed", run.value("seed_everything")),
        ("device", about.get("device")),
        ("devices", about.get("world_size")),
        ("precision", about.get("precision")),
        ("commit", about.get("git_commit")),
        ("versions", about.get("versions")),
        ("started", about.get("started")),
        ("folder on the disk", size(run.size)),
    ]
    return [(name, shown(value) if isinstance(value, dict) else one_line(str(value), 300))
            for name, value in found if value not in (None, "")]  # fmt: skip


def _class(path: Any) -> str | None:
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _count(value: Any, before: str, after: str) -> str | None:
    return f"{before}{value:,}{after}" if isinstance(value, int) and not isinstance(value, bool) else None


def _facts(run: Run, named: str, share: float) -> list[str]:
    rows = "".join(f"<tr><th scope='row'>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts(run))
    most = int(100_000 * share)
    text = run.text[:most] + ("\n…" if len(run.text) > most else "")
    config = (
        f"<details><summary>config.yaml</summary><pre>{html.escape(printable(text))}</pre></details>" if text else ""
    )
    return [
        f"<h2>What it is{_text(named)}</h2>",
        f'<div class="wide"><table class="facts">{rows}</table></div>',
        config,
    ]


def _compared(runs: Sequence[Run]) -> list[str]:
    """A table of the runs, and one of what differs in their configurations."""
    keys = ["val/loss", *metric_names(runs)[:6]]
    head = "".join(f'<th scope="col" class="number">{_text(key)}</th>' for key in keys)
    lines = []
    for k, run in enumerate(runs):
        last = run.metrics.last()
        values = [last.get(key, last.get(f"{key}_mean")) for key in keys]
        cells = "".join(f'<td class="number">{"" if v is None else number(v)}</td>' for v in values)
        dot = f'<span class="dot" style="background:{colour(k)}"></span>'
        lines.append(
            f'<tr><th scope="row">{dot}{_text(run.name)}</th>'
            f'<td><span class="badge {run.state}">{run.state}</span></td>'
            f'<td class="number">{run.steps:,}</td>{cells}</tr>'
        )
    found = [
        '<h2>Last figures</h2><div class="wide"><table><thead><tr><th scope="col">run</th><th scope="col">state</th>'
        f'<th scope="col" class="number">steps</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    ]
    rows = differences(runs)
    if rows:
        head = "".join(f'<th scope="col">{_text(run.name)}</th>' for run in runs)
        lines = [
            f'<tr><th scope="row">{_text(key)}</th>' + "".join(f"<td>{_text(value)}</td>" for value in values) + "</tr>"
            for key, values in rows
        ]
        table = f'<table class="facts"><thead><tr><th scope="col">key</th>{head}</tr></thead><tbody>{"".join(lines)}'
        text = f"<h2>What differs in their configurations</h2><div class='wide'>{table}</tbody></table></div>"
    else:
        text = "<h2>What differs in their configurations</h2><p>They are the same.</p>"
    return [*found, text]


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all runs' configurations, with these values; at most 200."""
    every = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for one in every for key in one)
    missing = object()
    found = []
    for key in keys:
        values = [one.get(key, missing) for one in every]
        texts = ["not given" if value is missing else shown(value) for value in values]
        if not key.startswith(SILENT) and len(set(texts)) > 1:
            found.append((key, texts))
    return found[:200]


# Charts, pictures, tables


def _section(section: Section, first: int) -> str:
    charts = "".join(_chart(chart, f"c{first + k}") for k, chart in enumerate(section.charts))
    return f'<h2>{_text(section.title)}</h2><div class="charts">{charts}</div>'


def _chart(chart: Chart, key: str) -> str:
    legend = [_entry(line.label, line.ink, line.dashes, line.marked) for line in chart.lines if line.label]
    legend += [_entry(level.label, colour(level.run), (0, (2, 2))) for level in chart.levels]
    shows = len(legend) > 1 or bool(chart.levels)
    entries = f'<ul class="legend">{"".join(legend)}</ul>' if shows else ""
    ends = [f"{line.label or chart.y} {number(line.y[-1])}" for line in chart.lines[:12]]
    words = f"{chart.title}: {chart.y} over {chart.x}; at the end {', '.join(ends)}"
    return (
        f'<figure class="chart" role="group" aria-label="{_text(chart.title)}"><h3>{_text(chart.title)}</h3>'
        f'<p class="soft">{_text(chart.text)}</p>'
        f'<div role="img" aria-label="{_text(words)}">{chart.svg(key)}</div>{entries}'
        f"<details><summary>numbers</summary>{_numbers(chart)}</details></figure>"
    )


def _entry(label: str, ink: str, dashes: Any, marked: bool = False) -> str:
    pattern = "" if dashes == "solid" else f' stroke-dasharray="{" ".join(str(2 * x) for x in dashes[1])}"'
    line = f'<line x1="1" y1="5" x2="27" y2="5" stroke="{ink}" stroke-width="2.5"{pattern}/>'
    dot = f'<circle cx="14" cy="5" r="3.5" fill="{ink}"/>' if marked else ""
    return f'<li><svg viewBox="0 0 28 10" aria-hidden="true">{line}{dot}</svg>{_text(label)}</li>'


def _numbers(chart: Chart) -> str:
    """A table of each line: evenly chosen points, with the last."""
    found = [_table_of(line, chart) for line in chart.lines]
    levels = "".join(f"<p>{_text(level.label)}: {level.y!r}</p>" for level in chart.levels)
    return levels + "".join(found)


def _table_of(line: Line, chart: Chart) -> str:
    n = len(line.x)
    most = min(n, max(4, TABLE // max(1, len(chart.lines))))
    chosen = sorted({round(k * (n - 1) / max(1, most - 1)) for k in range(most)})
    error = line.error is not None
    head = f"<th>{_text(chart.x)}</th><th>{_text(chart.y)}</th>{'<th>±</th>' if error else ''}"
    rows = "".join(
        f"<tr><td>{line.x[i]!r}</td><td>{line.y[i]!r}</td>"
        + (f"<td>{line.error[i]!r}</td>" if line.error is not None else "")
        + "</tr>"
        for i in chosen
    )
    caption = f"<caption>{_text(line.label)}</caption>" if line.label else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _strip(strip: Strip, named: str) -> str:
    figures = "".join(
        f'<figure><img src="{picture.address}" width="{picture.width}" height="{picture.height}" '
        f'alt="{_text(picture.alt)}">'
        + (f"<figcaption>{_text(picture.caption)}</figcaption>" if picture.caption else "")
        + "</figure>"
        for picture in reversed(strip.pictures)
    )
    many = len(strip.pictures) > 1
    kind = "strip" if many else "strip alone"
    text = f"{strip.text} The newest first." if many else strip.text
    scrolls = ' tabindex="0" role="region" aria-label="pictures over time"' if many else ""
    return (
        f'<h2>{_text(named + strip.title)}</h2><p class="soft">{_text(text)}</p>'
        f'<div class="{kind}"{scrolls}>{figures}</div>'
    )


def _tables(run: Run, named: str) -> list[str]:
    found = []
    for title, table in (("Figures of test", run.tested), ("Figures of validate", run.validated)):
        last = table.last()
        if last:
            rows = "".join(
                f"<tr><th scope='row'>{_text(key)}</th><td class='number'>{number(value)}</td></tr>"
                for key, value in last.items()
                if "_by_t/" not in key
            )
            found.append(f'<h2>{title}{_text(named)}</h2><div class="wide"><table>{rows}</table></div>')
    for name, title in (("samplers.csv", "Samplers, as a table"), ("averages/sweep.csv", "Averages, as a table")):
        lines = small_table(run, name)
        if len(lines) > 1:
            head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in lines[0])
            rows = "".join("<tr>" + "".join(f"<td>{_text(_cell(x))}</td>" for x in row) + "</tr>" for row in lines[1:])
            table_ = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            found.append(f'<h2>{title}{_text(named)}</h2><div class="wide">{table_}</div>')
    return found


def _cell(text: str) -> str:
    try:
        return number(float(text))
    except (ValueError, OverflowError):
        return text


def _notes(runs: Sequence[Run], share: float) -> list[str]:
    lines = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in dict.fromkeys(run.notes)][:60]
    if share < 1:
        lines.append("the page has room for a part of the points and pictures: the extremes and the newest are here")
    if not lines:
        return []
    return ['<h2>Left out</h2><ul class="notes">' + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"]
