"""Objectives at equal training: the digits by ε, v, EDM, flows and x_0 with v's loss, each by its best sampler.

    python -m benchmarks objectives --out DIR [--seeds 3] [--only NAME ...]

The network, data, optimizer and steps of configs/digits.yaml for all, with classes, dropped in a tenth of the examples;
only what an objective is made of differs. Each is trained on every seed and drawn from by every sampler in 10, 20 and
50 evaluations of the network at most (`Heun` has two a step). Samples are scored by the shipped classifier of digits,
in two parts of 297, as many as there are held-out images; the values are the means over the parts.

DIR/NAME-SEED.jsonl gets a line for each (sampler, evaluations): what is there is not made again, and several of these
commands, each with its own --only, share the work. The checkpoints of the first seed stay as DIR/NAME/last.ckpt.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import files, images
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance, PrecisionRecall
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler

from .measure import line, machine
from .train import recipe

EVALUATIONS = (10, 20, 50)
PART, PARTS = Digits.held_out, 2
STD = 0.75  # of the digits' pixels, which lie in [-1, 1]

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "Ancestral": lambda n: Ancestral(n),
    "DDIM": lambda n: DDIM(n),
    "DPMSolver": lambda n: DPMSolver(n),
    "Heun": lambda n: Heun(n // 2),
    "Heun in τ": lambda n: Heun(n // 2, variable="tau"),
}


class Objective(NamedTuple):
    """Its name in a table, and what it changes in the recipe's model."""

    label: str
    changes: dict[str, Any]


def made(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": kind, "init_args": arguments}


FLOW = {"schedule": "RectifiedFlow", "parameterization": "Flow", "rescale_timesteps": True}
OBJECTIVES = {
    "eps": Objective("ε, cosine", {}),
    "v": Objective("v, cosine", {"parameterization": "Velocity"}),
    "x0_v_loss": Objective(
        "x_0 with the loss of v, cosine",
        {"parameterization": "X0", "weighting": made("LossIn", space="Velocity", floor=0.05)},
    ),
    "edm": Objective(
        "EDM, ln σ normal",
        {"schedule": "LogSigma", "parameterization": made("EDM", sigma_data=STD),
         "timesteps": made("LogNormal", mean=-1.2, std=1.2)},
    ),
    "flow": Objective("flow, uniform τ", FLOW),
    "flow_logit_normal": Objective(
        "flow, logit-normal τ", {**FLOW, "timesteps": made("LogNormal", mean=0.0, std=1.0)}
    ),
}  # fmt: skip


class Cells:
    """What has been measured: in a folder, a file for each (objective, seed), of one JSON line a cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[dict[str, Any]] = [
            json.loads(row)
            for path in sorted(folder.glob("*.jsonl"))
            for row in path.read_text(encoding="utf-8").splitlines()
        ]

    def of(self, **about: Any) -> list[dict[str, Any]]:
        """Those cells that have these values."""
        return [cell for cell in self.found if all(cell[key] == value for key, value in about.items())]

    def add(self, cell: dict[str, Any]) -> None:
        self.found.append(cell)
        rows = self.of(objective=cell["objective"], seed=cell["seed"])
        path = self.folder / f"{cell['objective']}-{cell['seed']}.jsonl"
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def train(name: str, seed: int, root: Path, steps: int | None = None) -> float:
    """Fits an objective, its checkpoint to `root`/last.ckpt; the seconds that this took."""
    config = recipe("digits")
    model, trainer = config["model"]["init_args"], config["trainer"]
    model |= OBJECTIVES[name].changes
    model["conditioner"] = made("ClassLabels", classes=10, dropout=0.1)
    if steps:
        trainer["max_steps"] = steps
    model["lr_scheduler"]["init_args"]["total_steps"] = trainer["max_steps"]
    trainer |= {"default_root_dir": str(root / "run"), "limit_val_batches": 0, "logger": False,
                "enable_progress_bar": False}  # fmt: skip
    config |= {"seed_everything": seed, "checkpoint": {"every_n_train_steps": trainer["max_steps"]}}
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "objective.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    since = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        command(["fit", "--config", str(root / "objective.yaml")])
    (root / "run/checkpoints/last.ckpt").replace(root / "last.ckpt")
    shutil.rmtree(root / "run")
    return time.perf_counter() - since


class Scores:
    """The metrics against the 1,500 training images."""

    def __init__(self) -> None:
        net = DigitsNet()
        self.distance, self.covered = FrechetDistance(net), PrecisionRecall(net)
        for metric in (self.distance, self.covered):
            metric.update(images.to_uint8(Digits().reference("train")[:]), real=True)

    def of(self, x: Tensor) -> dict[str, float]:
        """Of images (n, 1, 8, 8), the means over parts of 297."""
        parts = [self._part(images.to_uint8(part)) for part in x.split(PART)]
        return {key: mean(part[key] for part in parts) for key in parts[0]}

    def _part(self, x: Tensor) -> dict[str, float]:
        for metric in (self.distance, self.covered):
            metric.reset()
            metric.update(x, real=False)
        both = self.covered.compute()
        return {"fd_digits": float(self.distance.compute()),
                **{key.removesuffix("_digits"): float(value) for key, value in both.items()}}  # fmt: skip


def measure(name: str, seed: int, out: Path, cells: Cells, scores: Scores, steps: int | None = None) -> None:
    """All cells of an objective's seed that are not there yet."""
    wanted = [(sampler, n) for sampler in SAMPLERS for n in EVALUATIONS]
    missing = [(sampler, n) for sampler, n in wanted
               if not cells.of(objective=name, seed=seed, sampler=sampler, evaluations=n)]  # fmt: skip
    if not missing:
        return
    root = out / (name if seed == 0 else f"{name}-{seed}")
    took = 0.0 if (root / "last.ckpt").exists() else train(name, seed, root, steps)
    model = diffusion_lightning.load(root / "last.ckpt")
    for sampler, n in missing:
        since = time.perf_counter()
        x = model.generate(PART * PARTS, SAMPLERS[sampler](n), seed=seed, batch_size=PART)
        values = scores.of(x)
        cells.add({"objective": name, "seed": seed, "sampler": sampler, "evaluations": n, **values,
                   "training_seconds": took, "seconds": time.perf_counter() - since})  # fmt: skip
    best = min(cells.of(objective=name, seed=seed), key=lambda cell: cell["fd_digits"])
    print(f"{name}, seed {seed}: trained in {took:.0f} s; {best['fd_digits']:.3f} by {best['sampler']}, "
          f"{best['evaluations']} evaluations", flush=True)  # fmt: skip
    if seed:
        shutil.rmtree(root)


def spread(values: Sequence[float]) -> str:
    """The mean and the standard deviation over seeds."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def tables(cells: Cells, floor: dict[str, float]) -> str:
    """Each objective by its best sampler, then the distance by every sampler, as tables of Markdown."""
    best = ["| objective | evaluations | best sampler | fd_digits | precision | recall |", "|---|---|---|---|---|---|"]
    every = [f"| objective | sampler | {' | '.join(map(str, EVALUATIONS))} |", "|---|---|" + "---|" * len(EVALUATIONS)]
    for name, objective in OBJECTIVES.items():
        label, rows = objective.label, dict[str, list[str]]()
        for n in EVALUATIONS:
            by = {sampler: found for sampler in SAMPLERS
                  if (found := cells.of(objective=name, sampler=sampler, evaluations=n))}  # fmt: skip
            for sampler, found in by.items():
                rows.setdefault(sampler, []).append(f"{mean(cell['fd_digits'] for cell in found):.3f}")
            if by:
                sampler = min(by, key=lambda sampler: mean(cell["fd_digits"] for cell in by[sampler]))
                values = [spread([cell[key] for cell in by[sampler]]) for key in floor]
                best.append(f"| {label} | {n} | {sampler} | {' | '.join(values)} |")
        every += [f"| {label} | {sampler} | {' | '.join(found)} |" for sampler, found in rows.items()]
    best.append(f"| real images held out | | | {' | '.join(f'{value:.3f}' for value in floor.values())} |")
    return "\n".join(best) + "\n\n" + "\n".join(every)


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks objectives")
    parser.add_argument("--out", type=Path, required=True, help="what has been measured, and the first checkpoints")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; 3")
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES, help="all")
    parser.add_argument("--steps", type=int, help="of the optimizer; the recipe's")
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    cells, scores = Cells(given.out), Scores()
    for seed in range(given.seeds):
        for name in given.only:
            measure(name, seed, given.out, cells, scores, given.steps)
    print("\n" + line(machine("cpu")) + "\n" + tables(cells, scores.of(Digits().reference("val")[:])))


if __name__ == "__main__":
    main(sys.argv[1:])
