"""Guidance on the digits: every kind at every scale, from one model, as a table and a picture of curves.

    python -m benchmarks guidance --out DIR [--seeds 3] [--only NAME ...]

The model is `eps` of `python -m benchmarks objectives`; its guide is the same after 200 steps of a training of its own,
and its classifier the recipe `digits_classifier`. Samples are of each class in turn, drawn by DPMSolver in 20 steps and
scored as in `objectives`.

DIR/NAME-SEED.jsonl gets a line for each (kind, scale): what is there is not made again, and several of these commands,
each with its own --only, share the work.
"""

import argparse
import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml

from diffusion_lightning import files, loading
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import Digits
from diffusion_lightning.guidance import AutoGuidance, ClassifierFree, ClassifierGuided, Guidance
from diffusion_lightning.samplers import DPMSolver

from .measure import line, machine
from .objectives import PART, PARTS, Cells, Scores, spread, train
from .train import CONFIGS, WATCHES, complete

SCALES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
STEPS, GUIDE_STEPS = 20, 200
INTERVAL = (0.2, 2.0)  # of σ: no guidance while an image is little but noise, and none of its last details


class Kind(NamedTuple):
    """Its name in a table, and what makes it: of a scale, the guide and the classifier."""

    label: str
    make: Callable[[float, Any, Any], Guidance]


KINDS = {
    "free": Kind("classifier-free", lambda scale, guide, classifier: ClassifierFree(scale)),
    "interval": Kind(
        f"classifier-free, σ in ({INTERVAL[0]:g}, {INTERVAL[1]:g}]",
        lambda scale, guide, classifier: ClassifierFree(scale, INTERVAL),
    ),
    "rescaled": Kind(
        "classifier-free, rescaled by 0.7", lambda scale, guide, classifier: ClassifierFree(scale, rescale=0.7)
    ),
    "auto": Kind("autoguidance", lambda scale, guide, classifier: AutoGuidance(guide, scale)),
    "classifier": Kind(
        "by a classifier, scale - 1", lambda scale, guide, classifier: ClassifierGuided(classifier, scale - 1)
    ),
}


def model_of(kind: str, seed: int, out: Path, steps: int | None) -> Path:
    """The checkpoint of the model, the guide or the classifier of a seed, trained if it is not there."""
    root = out / f"{kind}-{seed}"
    if (root / "last.ckpt").exists():
        return root / "last.ckpt"
    if kind == "model":
        train("eps", seed, root, steps)
    elif kind == "guide":
        train("eps", 1000 + seed, root, steps or GUIDE_STEPS)
    else:
        train_classifier(seed, root, steps)
    return root / "last.ckpt"


def train_classifier(seed: int, root: Path, steps: int | None) -> None:
    config = complete(CONFIGS / "digits_classifier.yaml") | dict.fromkeys(WATCHES)
    config["trainer"] |= {"default_root_dir": str(root / "run"), "limit_val_batches": 0, "logger": False,
                          "enable_progress_bar": False}  # fmt: skip
    if steps:
        config["trainer"]["max_steps"] = steps
    config |= {"seed_everything": seed, "checkpoint": {"every_n_train_steps": config["trainer"]["max_steps"]}}
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "classifier.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        command(["fit", "--config", str(root / "classifier.yaml")])
    (root / "run/checkpoints/last.ckpt").replace(root / "last.ckpt")
    shutil.rmtree(root / "run")


def measure(names: Sequence[str], seed: int, out: Path, cells: Cells, scores: Scores, steps: int | None) -> None:
    """All cells of a seed that are not there yet."""
    missing = [(name, scale) for name in names for scale in SCALES
               if not cells.of(objective=name, seed=seed, scale=scale)]  # fmt: skip
    if not missing:
        return
    model, guide, classifier = (
        loading.module(model_of(kind, seed, out, steps)) for kind in ("model", "guide", "classifier")
    )
    for name, scale in missing:
        since = time.perf_counter()
        guidance = KINDS[name].make(scale, guide, classifier)
        x = model.generate(PART * PARTS, DPMSolver(STEPS), guidance=guidance, seed=seed, batch_size=PART)  # type: ignore[operator]
        cells.add({"objective": name, "seed": seed, "scale": scale, **scores.of(x),
                   "seconds": time.perf_counter() - since})  # fmt: skip
    print(f"seed {seed}: {len(missing)} cells of {', '.join(names)}", flush=True)


def tables(cells: Cells, floor: dict[str, float]) -> str:
    """The distance at every scale, then each kind at its best scale, as tables of Markdown."""
    every = [f"| guidance | {' | '.join(f'{scale:g}' for scale in SCALES)} |", "|---|" + "---|" * len(SCALES)]
    best = ["| guidance | best scale | fd_digits | precision | recall |", "|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        by = {scale: found for scale in SCALES if (found := cells.of(objective=name, scale=scale))}
        if not by:
            continue
        every.append(f"| {kind.label} | {' | '.join(spread([c['fd_digits'] for c in by[s]]) for s in by)} |")
        scale = min(by, key=lambda scale: mean(cell["fd_digits"] for cell in by[scale]))
        values = [spread([cell[key] for cell in by[scale]]) for key in floor]
        best.append(f"| {kind.label} | {scale:g} | {' | '.join(values)} |")
    best.append(f"| real images held out | | {' | '.join(f'{value:.3f}' for value in floor.values())} |")
    return "\n".join(every) + "\n\n" + "\n".join(best)


def draw(cells: Cells, floor: dict[str, float], picture: Path) -> None:
    """Distance, precision and recall over the scale, a curve for each kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=90, layout="constrained")
    for axes, key in zip(figure.subplots(1, 3), floor, strict=True):
        for name, kind in KINDS.items():
            found = {scale: cells.of(objective=name, scale=scale) for scale in SCALES}
            points = [(scale, mean(cell[key] for cell in of)) for scale, of in found.items() if of]
            if points:
                axes.semilogx(*zip(*points, strict=True), "o-", markersize=4, label=kind.label)
        axes.axhline(floor[key], color="0.5", linestyle=":", label="real images held out")
        axes.set_xticks(SCALES[::2], [f"{scale:g}" for scale in SCALES[::2]])
        axes.minorticks_off()
        axes.set(xlabel="scale of guidance; 1 is none", title=key)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    with files.written(picture) as stream:
        FigureCanvasAgg(figure).print_png(stream)


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks guidance")
    parser.add_argument("--out", type=Path, required=True, help="what has been measured, and the models")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; 3")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS, help="all")
    parser.add_argument("--steps", type=int, help="of the optimizer, of every model; the recipes'")
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    cells, scores = Cells(given.out), Scores()
    for seed in range(given.seeds):
        measure(given.only, seed, given.out, cells, scores, given.steps)
    floor = scores.of(Digits().reference("val")[:])
    draw(cells, floor, given.out / "guidance.png")
    print("\n" + line(machine("cpu")) + "\n" + tables(cells, floor) + f"\n\ncurves: {given.out / 'guidance.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
