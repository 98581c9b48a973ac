"""Folders such as runs leave, written by hand, and a page read as a browser reads it."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_steps": 400, "default_root_dir": "runs/one"},
    "model": {
        "class_path": "diffusion_lightning.modules.Diffusion",
        "init_args": {"network": {"class_path": "diffusion_lightning.networks.UNet", "init_args": {"channels": 8}}},
    },
    "data": {"class_path": "diffusion_lightning.data.Digits", "init_args": {"batch_size": 32}},
    "checkpoint": {"monitor": "val/fd_digits", "mode": "min"},
}
ABOUT = {"parameters": 12345, "operations": 67890, "device": "cpu, a processor", "git_commit": "abc", "world_size": 2}


def rows(steps: int = 400) -> list[dict[str, Any]]:
    """Rows of a metrics.csv: the loss every 10 steps, validations every 100."""
    found: list[dict[str, Any]] = []
    for step in range(9, steps, 10):
        bands = {f"train_by_t/{a:04d}-{a + 99:04d}": 1 / (1 + step) + a / 1000 for a in range(1, 1000, 100)}
        loss = 1 / (1 + step / 50) + 0.05 * math.sin(step)
        row = {"step": step, "train/loss": loss, "train/lr": 1e-3, "train/grad_norm": 0.5 + loss, **bands}
        found.append({**row, "throughput/images_per_sec": 900 + step, "throughput/mfu": 0.4})
        if (step + 1) % 100 == 0:
            values = {"val/loss": loss + 0.01, "val/fd_digits": 500 / (step + 1), "val/precision_digits": 0.9}
            kid = {"val/kid_digits_mean": 3 / (step + 1), "val/kid_digits_std": 0.002}
            found.append({"step": step + 1, **values, **kid, "val/class_rarest_index_digits": 4})
    return found


def write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in table for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(table)


def write_picture(path: Path, shape: tuple[int, ...] = (40, 60), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def write_run(folder: Path, changes: dict[str, Any] | None = None, steps: int = 400) -> Path:
    """A whole run: figures of training and test, pictures, the bound, samplers and averages."""
    write_csv(folder / "metrics.csv", rows(steps))
    test = {"test/bits_per_dim": 3.1, "test/fd_digits": 0.4, "test/fd_digits_error": 0.03, "floor/fd_digits": 0.2}
    write_csv(folder / "test.csv", [{"step": steps, **test}])
    write_csv(folder / "bound.csv", [{"t": t, "bits_per_dim": 2 / t} for t in range(1, 101)])
    table = [{"sampler": s, "steps": n, "fd_digits": 3 / n, "seconds_per_image": n}
             for s in ("DDIM", "Heun") for n in (5, 10, 20)]  # fmt: skip
    write_csv(folder / "samplers.csv", table)
    sweep = [{"sigma_rel": s, "val/fd_digits": 1 + s} for s in (0.05, 0.1, 0.2)]
    write_csv(folder / "averages/sweep.csv", sweep)
    for step in range(100, steps + 1, 100):
        write_picture(folder / f"samples/step={step}.png", seed=step)
    write_picture(folder / f"chains/step={steps}.png", (30, 80, 3))
    write_picture(folder / "closest_pairs.png")
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(changes or {})}), encoding="utf-8")
    (folder / "about.json").write_text(json.dumps(ABOUT), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """A page's elements, its texts, the rows of its tables, and what is wrong with it."""

    VOID = frozenset(("meta", "img", "br", "path", "use", "line", "stop", "rect", "input"))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and {"td", "th"} & set(self._open[-3:]) and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(found: Page) -> None:
    """No broken reference, no address of elsewhere, no script, no picture without words."""
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "link", "foreignobject")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "srcset", "action", "data", "poster"):
            if name in attributes and attributes[name].startswith("#"):
                assert attributes[name][1:] in ids
            elif name in attributes:
                assert attributes[name].startswith("data:image/webp;base64,")
        for value in attributes.values():
            for reference in re.findall(r"url\(([^)]*)\)", value):
                assert reference.strip("'\"").lstrip("#") in ids
    assert "://" not in re.sub(r"base64,[^\"]*", "", found.source)
    assert re.search(r"@import|url\((?!#)", found.source) is None
    assert all(picture["alt"] for picture in found.named("img"))
    roles = [attributes for _, attributes in found.elements if attributes.get("role") == "img"]
    assert all(attributes["aria-label"] for attributes in roles)
    assert len(roles) == sum("chart" in a.get("class", "") for a in found.named("figure"))
