"""The page: whole, shut off from the world, with the run's own figures, whatever the run's folder holds."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from diffusion_lightning.report import page
from diffusion_lightning.report.chart import Chart, Line
from diffusion_lightning.report.charts import sections
from diffusion_lightning.report.run import Run
from diffusion_lightning.report.table import Column

from ..support.runs import CONFIG, Page, check_page, rows, write_csv, write_picture, write_run


def made(*folders: Path) -> Page:
    out = folders[0] / "report.html"
    size = page.write([Run(folder) for folder in folders], out)
    assert size == out.stat().st_size < page.LARGEST
    return Page(out)


def written(folder: Path) -> set[tuple[float, float]]:
    """All points (x, figure) of the run's tables."""
    found = set()
    for name, x in (("metrics.csv", "step"), ("test.csv", "step"), ("bound.csv", "t"), ("samplers.csv", "steps"),
                    ("averages/sweep.csv", "sigma_rel")):  # fmt: skip
        with (folder / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, text in row.items():
                    if text and key not in (x, "sampler"):
                        scale = 100 if key == "throughput/mfu" else 1
                        found.add((float(row[x]), scale * float(text)))
    return found


def numbers(found: Page) -> list[tuple[float, float]]:
    """The points in the tables beside the charts."""
    chart = re.findall(r"<summary>numbers</summary>(.*?)</details>", found.source, re.DOTALL)
    cells = [re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td>", text) for text in chart]
    return [(float(x), float(y)) for one in cells for x, y in one]


def test_a_page_is_whole_and_every_figure_is_the_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    found = made(run)
    check_page(found)
    points = numbers(found)
    assert len(points) > 200
    assert set(points) <= written(run)
    last = rows()[-1]
    assert (400.0, last["val/fd_digits"]) in points  # the newest of each is among them
    assert (400.0, 0.4) in points  # of test.csv, and the floor beside it
    assert "held-out real images: 0.2" in found.text
    for said in ("12,345 trained", "67,890 floating-point", "cpu, a processor", "abc", "UNet", "Digits"):
        assert said in found.text
    assert "finished" in found.text
    assert len(found.named("img")) == 4 + 1 + 1  # samples over time, the chain, closest pairs
    for title in ("Loss", "Loss by t, training", "Learning rate", "Samplers", "Averages: val/fd_digits"):
        assert title in found.texts


def test_the_drawn_line_has_the_places_of_its_values(tmp_path: Path) -> None:
    """In the SVG: x is linear in the step and y in the logarithm of the value, over all points of the line."""
    run = Run(write_run(tmp_path / "one"))
    chart = sections([run])[0].charts[0]
    assert (chart.title, chart.log_y) == ("Loss", True)
    svg = chart.svg("k")
    for k, line in enumerate(chart.lines):
        path = re.search(rf'<g id="k-line{k}">\s*<path d="([^"]*)"', svg)
        assert path is not None
        drawn = np.array([pair.split() for pair in re.findall(r"[ML] ([-\d.]+ [-\d.]+)", path[1])], float)
        assert len(drawn) == len(line.x)
        for axis, values in ((0, np.array(line.x)), (1, np.log(line.y))):
            slope, start = np.polyfit(values, drawn[:, axis], 1)
            assert abs(slope * values + start - drawn[:, axis]).max() < 0.01  # of 446 points of width
            assert slope > 0 if axis == 0 else slope < 0  # an SVG's y grows downwards


def test_two_runs_have_common_axes_the_same_colours_and_a_table_of_what_differs(tmp_path: Path) -> None:
    model = {"class_path": "diffusion_lightning.modules.Diffusion", "init_args": {"network": {
        "class_path": "diffusion_lightning.networks.UNet", "init_args": {"channels": 16}}}}  # fmt: skip
    one, two = write_run(tmp_path / "a/one"), write_run(tmp_path / "b/two", {"model": model, "extra": "<b>"}, 200)
    found = made(one, two)
    check_page(found)
    assert ["model.init_args.network.init_args.channels", "8", "16"] in found.rows
    assert ["extra", "not given", "<b>"] in found.rows
    assert not any(row[:1] == ["data.init_args.batch_size"] for row in found.rows)  # the same in both
    for section in sections([Run(one), Run(two)]):
        for chart in section.charts:
            colours = {line.label.partition(",")[0]: line.ink for line in chart.lines if line.colour is None}
            if set(colours) == {"one", "two"}:
                assert colours == {"one": "#0072b2", "two": "#e69f00"}
    loss = sections([Run(one), Run(two)])[0].charts[0]
    assert [line.label for line in loss.lines] == ["one, training", "two, training", "one, validation",
                                                   "two, validation"]  # fmt: skip


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "run", steps=200) for part in ("a", "b")]
    runs = [Run(folder) for folder in folders]
    page.write(runs, tmp_path / "both.html")
    assert len({run.name for run in runs}) == 2


def test_more_runs_than_can_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tells 28 runs apart, but 29 are given"):
        page.write([Run(tmp_path)] * 29, tmp_path / "x.html")


HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&<!--$\\frac{1}{0}$\x1b[31m\u202e"


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    """Names of keys, samplers, classes in the configuration, values, the folder's own name, about.json."""
    folder = write_run(tmp_path / "a<script>b&\"'$x_1$", {f"key {HOSTILE}": HOSTILE, "trainer": {"max_steps": HOSTILE}})
    write_csv(folder / "metrics.csv", [{"step": i, HOSTILE: i, f"val/{HOSTILE}": 1 + i, f"train_by_t/{HOSTILE}": 2 + i}
                                       for i in range(3)])  # fmt: skip
    write_csv(folder / "samplers.csv", [{"sampler": HOSTILE, "steps": 3, HOSTILE: 1.0}])
    (folder / "about.json").write_text(json.dumps({"device": HOSTILE, "parameters": HOSTILE, "versions": {HOSTILE: 1}}))
    found = made(folder)
    check_page(found)
    assert "alert(1)" in found.text  # as a text
    assert "\x1b" not in found.source
    assert "\u202e" not in found.source


def damage(folder: Path, kind: str) -> None:
    if kind == "cut":
        data = (folder / "metrics.csv").read_bytes()
        (folder / "metrics.csv").write_bytes(data[: len(data) - 40])
    elif kind == "binary":
        (folder / "metrics.csv").write_bytes(bytes(range(256)) * 50)
    elif kind == "infinite":
        table: list[dict[str, Any]] = [
            {"step": i, "train/loss": v, "val/loss": v}
            for i, v in enumerate([1.7e308, float("inf"), float("nan"), -1.7e308, 1.0])
        ]
        write_csv(folder / "metrics.csv", table)
    elif kind == "empty files":
        for path in folder.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    elif kind == "folders in the place of files":
        for name in ("metrics.csv", "test.csv", "config.yaml", "about.json", "closest_pairs.png"):
            (folder / name).unlink()
            (folder / name).mkdir()
    elif kind == "no pictures":
        for path in folder.rglob("*.png"):
            path.write_bytes(b"<svg onload=alert(1)>")
    elif kind == "a bomb":
        (folder / "config.yaml").write_text("a: &a [x,x,x]\nb: &b [*a,*a]\nc: [*b,*b,*b]\n")
        (folder / "about.json").write_text("[" * 100_000)
    elif kind == "links":
        secret = folder.parent / "secret.csv"
        secret.write_text("step,secret\n1,42\n")
        write_picture(folder.parent / "secret.png")
        leads = dict.fromkeys(("config.yaml", "about.json", "test.csv", "bound.csv"), secret)
        leads |= {"closest_pairs.png": secret.with_suffix(".png"), "samplers.csv": folder / "samplers.csv"}
        for name, to in leads.items():
            (folder / name).unlink()
            (folder / name).symlink_to(to)
    elif kind == "types":
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": [1], "checkpoint": "x", "model": 3}))
        (folder / "about.json").write_text('["a", 1]')
    elif kind == "a monitor that is no name":
        monitor = {"checkpoint": {"monitor": ["a"], "mode": {}}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **monitor}))
    elif kind == "steps":
        write_csv(
            folder / "metrics.csv", [{"step": s, "train/loss": 1.0} for s in ("x", "", "1e400", "-5", "7", "nan")]
        )
    else:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "config.yaml":
                path.unlink()


KINDS = ("links", "cut", "binary", "infinite", "empty files", "folders in the place of files", "no pictures", "a bomb",
         "types", "a monitor that is no name", "steps", "gone")  # fmt: skip


@pytest.mark.tried("Full disks and broken folders")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_has_a_page_that_says_what_is_left_out(tmp_path: Path, kind: str) -> None:
    folder = write_run(tmp_path / "one")
    damage(folder, kind)
    found = made(folder)
    check_page(found)
    noted = kind in ("binary", "infinite", "no pictures", "a bomb", "folders in the place of files")
    assert not noted or "Left out" in found.text
    if kind == "links":
        assert "secret" not in found.text.replace("secret.csv", "")
        assert "config.yaml is left out: it leads out of the run's folder" in found.text
        assert "samplers.csv is left out: it leads to itself" in found.text
    if kind == "cut":  # all but the row that was being written
        assert (400.0, rows()[-1]["val/fd_digits"]) not in numbers(found)
        assert (399.0, rows()[-2]["train/loss"]) in numbers(found)


@pytest.mark.slow
def test_a_page_stays_small(tmp_path: Path) -> None:
    """Of large pictures fewer are shown, and the newest is among them."""
    folder = tmp_path / "one"
    write_csv(folder / "metrics.csv", [{"step": 1, "train/loss": 1.0}])
    for step in range(12):
        write_picture(folder / f"samples/step={step}.png", (1000, 1000, 3), seed=step)
    found = made(folder)
    check_page(found)
    assert "the page has room for a part" in found.text
    assert any("step 11" in picture["alt"] for picture in found.named("img"))


@pytest.mark.parametrize(("lines", "share"), [(1, 1.0), (1, 0.1), (28, 1.0), (100, 0.05)])
def test_a_thinned_line_keeps_its_ends_and_extremes(lines: int, share: float) -> None:
    y = np.random.default_rng(0).random(5000)
    y[[1234, 4321]] = 7, -7
    every = [Line("", list(range(5000)), y.tolist()) for _ in range(lines)]
    Chart("", "", "", every).thinned(share)
    for line in every:
        assert 20 <= len(line.x) <= max(20, 300 * share, 6000 * share / lines)
        assert {7, -7, y[0], y[-1]} <= set(line.y)
        assert [y[int(x)] for x in line.x] == line.y
        assert line.x == sorted(line.x)


def test_charts_are_pictures_of_different_names(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    same = [{"step": s, "val/a b": 1.0, "val/a-b": 2.0, "val/a_b": 3.0, "own/ü": 1.0, "own/é": 2.0} for s in (1, 2)]
    write_csv(folder / "metrics.csv", same)
    found = page.pictures([Run(folder)], tmp_path / "png")
    assert len(set(found)) == len(found) == len(list((tmp_path / "png").glob("*.png")))
    for path in found:
        with Image.open(path) as image:
            assert image.width > 600


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", steps=100)
    own = tmp_path / "own.html"
    own.write_text("mine")
    with pytest.raises(ValueError, match=r"own\.html is there already and is no report"):
        page.write([Run(folder)], own)
    assert own.read_text() == "mine"
    with pytest.raises(ValueError, match=r"ends in \.html"):
        page.write([Run(folder)], folder / "metrics.csv")
    made(folder)
    made(folder)  # a report is made anew


def test_the_state_of_a_run(tmp_path: Path) -> None:
    from diffusion_lightning import files

    folder = write_run(tmp_path / "one", steps=200)
    assert Run(folder).state == "stopped"
    (folder / ".lock").write_text("{}")
    assert Run(folder).state == "killed"
    with files.locked(folder, "wait"):
        assert Run(folder).state == "training"
    assert Run(folder).state == "stopped"
    assert Run(write_run(tmp_path / "two", steps=400)).state == "finished"
    # Of rows of training alone, which count from 0; and a length in epochs, whose end `fit` has written down.
    write_csv(tmp_path / "two/metrics.csv", [{"step": 399, "train/loss": 1.0}])
    for path in (tmp_path / "two/samples").iterdir():
        path.unlink()
    assert Run(tmp_path / "two").state == "finished"
    epochs = write_run(tmp_path / "three", {"trainer": {"max_steps": -1, "max_epochs": 2}})
    assert Run(epochs).state == "stopped"
    (epochs / "about.json").write_text(json.dumps({"ended": True, "steps": 412}))
    assert (Run(epochs).state, Run(epochs).steps) == ("finished", 412)


def test_the_best_value_of_a_figure(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "one"))
    assert run.watched == "val/fd_digits"
    assert run.best(run.watched) == ("val/fd_digits", 500 / 400, 400)
    run.metrics.columns["val/precision_digits"] = Column()
    column = run.metrics.columns["val/precision_digits"]
    column.x.extend([1, 2, 3])
    column.y.extend([0.1, 0.9, 0.5])
    assert run.best("val/precision_digits") == ("val/precision_digits", 0.9, 2)  # more of it is better
    largest = {"checkpoint": {"monitor": "val/fd_digits", "mode": "max"}}
    run = Run(write_run(tmp_path / "two", largest))
    assert run.best(run.watched) == ("val/fd_digits", 5.0, 100)
    assert Run(tmp_path).best(Run(tmp_path).watched) is None
