"""Is the number of classes that a GAN draws limited? GAN and diffusion on 1, 2, 5 and 10 classes, in equal time.

    python -m benchmarks classes --out DIR [--data FILE.npz] [--seeds 3] [--seconds 420] [--classes 1 2 5 10]

Two models without conditions, of as many parameters: the recipe `digits_gan` (both networks together), and `digits_edm`
with 16 features in the place of 32. Each trains on the images of the first k classes for the optimizer steps that take
so many seconds on one thread: both are timed first, side by side. Twelve times on the way samples are scored, which
does not count. As many trainings run at once as there are cores. The data are the shipped digits, or any labelled file
of `data.Arrays` that the digits' classifier reads.

Printed are, of 1,000 samples against the training images of the same classes: coverage (classes drawn out of k), the
rarest class's share times k, precision, recall, `fd` and the share of copies; a mean over seeds, with its deviation.
DIR/cells.jsonl gets a line for each training, and DIR/rates.json the steps a second; what is there is not made again,
so that a run that is stopped goes on.
DIR/classes.png has recall, coverage and the rarest class against k, DIR/curves.png the distance over the time.
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import files, images
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import ClassCoverage, FrechetDistance, NearestNeighbours, PrecisionRecall
from diffusion_lightning.samplers import Heun

from .measure import line, machine
from .objectives import spread
from .train import CONFIGS, WATCHES, complete

METHODS = {"gan": ("GAN", "digits_gan"), "diffusion": ("diffusion", "digits_edm")}
COLORS = {"gan": "#D55E00", "diffusion": "#0072B2"}
N, PARTS, WARM, POINTS = 1000, 4, 40, 12
KEYS = {"coverage": "class_coverage_digits", "rarest": "class_rarest_digits", "precision": "precision_digits",
        "recall": "recall_digits", "fd": "fd_digits", "copies": "copies_features_digits"}  # fmt: skip


def data_of(path: Path | None) -> tuple[Tensor, Tensor]:
    """Bytes (N, C, H, W) and labels (N,): the digits' training images, or a file's."""
    if path is None:
        x, y = Digits().read("train")
        return images.to_uint8(Digits().scaled(x)), y
    names = images.contents(path) if path.is_file() else {}
    if not {"images", "labels"} <= names.keys():
        raise ValueError(f"{path} is no .npz with images and labels, which tell the classes apart: give one of both")
    held = np.load(path, allow_pickle=False)
    return torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])


def config(method: str, data: Path, seed: int, root: Path, steps: int) -> dict[str, Any]:
    """A recipe on a file of images, for so many optimizer steps, watched by the distance alone."""
    found = complete(CONFIGS / f"{METHODS[method][1]}.yaml") | dict.fromkeys(WATCHES)
    model = found["model"]["init_args"]
    if method == "gan":
        model["gamma_steps"] = model["lr_scheduler"]["init_args"]["steps"] = steps
    else:
        model["lr_scheduler"]["init_args"]["total_steps"] = steps
        model["network"]["init_args"]["channels"] = 16
    batch = found["data"]["init_args"]["batch_size"]
    sampler = {"class_path": "Heun", "init_args": {"steps": 18}} if method == "diffusion" else None
    distance = {"class_path": "FrechetDistance", "init_args": {"extractor": "DigitsNet"}}
    return found | {
        "seed_everything": seed,
        "data": {"class_path": "Arrays", "init_args": {"path": str(data), "held_out": 0.05, "batch_size": batch}},
        "checkpoint": {"every_n_train_steps": steps},
        "metrics": {"n": 250, "batch_size": 250, "sampler": sampler, "metrics": [distance]},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": steps, "val_check_interval": max(1, steps // POINTS),
            "check_val_every_n_epoch": None, "default_root_dir": str(root), "logger": False, "num_sanity_val_steps": 0,
            "enable_progress_bar": False, "log_every_n_steps": 50,
            "gradient_clip_val": found["trainer"].get("gradient_clip_val"),
        },
    }  # fmt: skip


def fit(given: dict[str, Any], root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "classes.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        command(["fit", "--config", str(root / "classes.yaml")])


def rate(method: str, data: Path, root: Path) -> float:
    """Optimizer steps a second."""
    torch.set_num_threads(1)
    took = []
    for steps in (WARM, 4 * WARM):
        given = config(method, data, 0, root, steps)
        given["trainer"]["limit_val_batches"], given["metrics"] = 0, None
        since = time.perf_counter()
        fit(given, root)
        took.append(time.perf_counter() - since)
    return 3 * WARM / (took[1] - took[0])


def rates(out: Path, data: Path, pool: Executor) -> dict[str, float]:
    """Of both methods, timed side by side."""
    path = out / "rates.json"
    if not path.exists():
        found = {method: pool.submit(rate, method, data, out / f"rate_{method}") for method in METHODS}
        files.write_text(path, json.dumps({method: future.result() for method, future in found.items()}))
    return json.loads(path.read_text(encoding="utf-8"))


def score(x: Tensor, real: Tensor) -> dict[str, float]:
    """Of bytes (N, 1, 8, 8) against those of the training set."""
    net = DigitsNet()
    found: dict[str, float] = {}
    for metric in (FrechetDistance(net), PrecisionRecall(net), ClassCoverage(net), NearestNeighbours(net)):
        metric.update(x, real=False)
        metric.update(real, real=True)
        value = metric.compute()
        found |= {metric.name: float(value)} if isinstance(value, Tensor) else {k: float(v) for k, v in value.items()}
    return {key: found[name] for key, name in KEYS.items()}


def cell(method: str, k: int, seed: int, steps: int, data: Path, out: Path) -> dict[str, Any]:
    """One training, scored."""
    torch.set_num_threads(1)
    root = out / f"{method}{k}_{seed}"
    fit(config(method, data, seed, root, steps), root)
    with (root / "metrics.csv").open(newline="", encoding="utf-8") as file:
        curve = [
            (int(row["step"]), float(row["val/fd_digits"])) for row in csv.DictReader(file) if row.get("val/fd_digits")
        ]
    model = diffusion_lightning.load(root)
    torch.set_num_threads(1)
    sampler = Heun(18) if method == "diffusion" else None
    x = images.to_uint8(model.generate(N, sampler, seed=seed, batch_size=N // PARTS))
    real = torch.from_numpy(np.load(data, allow_pickle=False)["images"])
    return {"method": method, "classes": k, "seed": seed, "steps": steps, "curve": curve,
            "parameters": sum(p.numel() for p in model.parameters()), **score(x, real)}  # fmt: skip


def pictures(cells: list[dict[str, Any]], counts: Sequence[int], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), dpi=120, sharex=True)
    for axis, key in zip(axes, ("recall", "coverage", "rarest"), strict=True):
        for size, (method, (label, _)) in zip((9, 5), METHODS.items(), strict=True):  # both seen where they are equal
            of = [[c[key] for c in cells if (c["method"], c["classes"]) == (method, k)] for k in counts]
            spreads = [stdev(values) if len(values) > 1 else 0 for values in of]
            axis.errorbar(counts, [mean(values) for values in of], spreads, marker="o", markersize=size, capsize=3,
                          color=COLORS[method], label=label)  # fmt: skip
        words = {"coverage": "classes drawn, of k", "rarest": "rarest class's share, times k"}
        axis.set(xlabel="classes k", ylabel=words.get(key, key), ylim=(0, 1.08))
        axis.set_xticks(list(counts))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out / "classes.png")
    plt.close(figure)
    figure, axes = plt.subplots(1, len(counts), figsize=(2.6 * len(counts), 3), dpi=120, sharey=True, squeeze=False)
    for axis, k in zip(axes[0], counts, strict=True):
        for method, (label, _) in METHODS.items():
            own = [c for c in cells if (c["method"], c["classes"]) == (method, k)]
            for c in own:
                axis.plot([s / c["steps"] for s, _ in c["curve"]], [fd for _, fd in c["curve"]], color=COLORS[method],
                          marker=".", label=label if c is own[0] else None)  # fmt: skip
        axis.set(yscale="log", xlabel="part of the time", title=f"{k} class{'es' if k > 1 else ''}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("Fréchet distance")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out / "curves.png")
    plt.close(figure)


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks classes")
    parser.add_argument("--out", type=Path, required=True, help="what has been measured, and the pictures")
    parser.add_argument("--data", type=Path, help="an .npz with images and labels; the digits")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; 3")
    parser.add_argument("--seconds", type=float, default=420, help="of training; 420")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--at_once", type=int, default=os.cpu_count(), help="trainings side by side; as many as cores")
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    x, y = data_of(given.data)
    data = {k: given.out / f"classes{k}.npz" for k in given.classes}
    for k, place in data.items():
        np.savez(place, images=x[y < k].numpy())  # without labels, which no model here looks at
    path = given.out / "cells.jsonl"
    cells = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(c["method"], c["classes"], c["seed"]) for c in cells}
    with ProcessPoolExecutor(given.at_once, multiprocessing.get_context("forkserver")) as pool:
        speed = rates(given.out, data[max(data)], pool)
        steps = {method: POINTS * max(1, int(given.seconds * speed[method] / POINTS)) for method in METHODS}
        left = [
            pool.submit(cell, method, k, seed, steps[method], data[k], given.out)
            for seed in range(given.seeds) for k in data for method in METHODS if (method, k, seed) not in done
        ]  # fmt: skip
        for future in as_completed(left):
            cells.append(last := future.result())
            files.write_text(path, "".join(json.dumps(row) + "\n" for row in cells))
            scores = ", ".join(f"{key} {last[key]:.3f}" for key in KEYS)
            print(f"seed {last['seed']}, {last['classes']} classes, {last['method']}: {scores}", flush=True)
    print("\n" + line(machine("cpu")) + "\n")
    print(f"| classes | method | parameters | steps | {' | '.join(KEYS)} |\n|" + "---|" * (4 + len(KEYS)))
    for k in given.classes:
        for method, (label, _) in METHODS.items():
            own = [c for c in cells if (c["method"], c["classes"]) == (method, k)]
            values = " | ".join(spread([c[key] for c in own]) for key in KEYS)
            print(f"| {k} | {label} | {own[0]['parameters']:,} | {own[0]['steps']:,} | {values} |")
    pictures(cells, given.classes, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
