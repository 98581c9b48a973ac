"""Steps against quality: the digits' teachers and their students, at equal numbers of network calls.

    python -m benchmarks few_steps --out DIR [--seeds 3]

Trains, for each seed, the recipes `digits_v` and its `digits_progressive`, `digits_edm` and its `digits_consistency`.
Of each and every number of calls, 594 samples are scored in two parts of 297, as many as there are held-out images; a
teacher is drawn from by the deterministic sampler that is best at that number, of 1,000 calls by DDIM. Seconds are of
64 images at once, one thread, the numbers of calls in turn.

DIR/SEED.jsonl gets a line for each (method, calls): what is there is not made again. DIR/few_steps.png has the distance
over the calls, a line a method.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import diffusion_lightning
from diffusion_lightning import files
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import Digits
from diffusion_lightning.samplers import DDIM, Consistency, DPMSolver, Heun, Sampler

from .measure import interleaved, line, machine
from .objectives import PART, PARTS, Scores, spread

CALLS = (1, 2, 4, 8, 50, 1000)
STUDENTS = (1, 2, 4, 8, 16, 32, 64)  # steps of digits_progressive's
EVERY = tuple(sorted({*CALLS, *STUDENTS}))
STAGE = 500  # optimizer steps of digits_progressive's stages
BETWEEN = {1: None, 2: [1.2], 4: [10.0, 3.0, 1.5], 8: [40.0, 20.0, 10.0, 6.0, 4.0, 2.5, 1.5]}
KEYS = ("fd_digits", "precision", "recall")

# What a method is drawn by in so many calls: its checkpoint, and the samplers of which the best counts.
Drawn = tuple[str, list[Sampler]]
TEACHER: dict[str, Callable[[int], Sampler]] = {
    "DDIM": lambda n: DDIM(n), "DPMSolver": lambda n: DPMSolver(n), "Heun": lambda n: Heun(max(1, n // 2)),
}  # fmt: skip


def drawn(method: str, n: int) -> Drawn | None:
    """How a method is drawn from in n calls; None if it is not."""
    if method == "progressive" and n in STUDENTS:
        stage = len(STUDENTS) - STUDENTS.index(n)
        return f"digits_progressive/checkpoints/step={STAGE * stage}.ckpt", [DDIM(n, clip=None)]
    if method == "consistency" and n in BETWEEN:
        return "digits_consistency/checkpoints/last.ckpt", [Consistency(n, BETWEEN[n])]
    if method in ("digits_v", "digits_edm") and n in CALLS:
        return f"{method}/checkpoints/last.ckpt", [make(n) for make in TEACHER.values()][: 1 if n > 50 else 3]
    return None


METHODS = {"digits_v": "teacher, v", "progressive": "progressive distillation", "digits_edm": "teacher, EDM",
           "consistency": "consistency tuning"}  # fmt: skip


def fit(name: str, root: Path, seed: int, *options: str) -> None:
    """Trains a recipe into root/name, unless that is done."""
    if (root / name / "done").exists():
        return
    words = ["fit", "--config", name, "--seed_everything", str(seed), "--trainer.default_root_dir", str(root / name)]
    words += ["--trainer.limit_val_batches", "0", "--trainer.logger", "false", "--ckpt_path", "last"]
    words += ["--grid", "null", "--metrics", "null", "--chain", "null", "--checkpoint.monitor", "null", *options]
    with contextlib.redirect_stdout(io.StringIO()):
        command(words)
    (root / name / "done").write_text("", encoding="utf-8")


def trained(root: Path, seed: int) -> None:
    """All four of a seed."""
    for teacher, student in (("digits_v", "digits_progressive"), ("digits_edm", "digits_consistency")):
        fit(teacher, root, seed)
        fit(student, root, seed, "--init_from", str(root / teacher))


def measure(root: Path, seed: int, scores: Scores) -> list[dict[str, Any]]:
    """The lines of a seed; those that a file has already are read."""
    path = root.parent / f"{seed}.jsonl"
    found = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for method in METHODS:
        for n in EVERY:
            how = drawn(method, n)
            if how is None or any((cell["method"], cell["calls"]) == (method, n) for cell in found):
                continue
            model, best = diffusion_lightning.load(root / how[0]), dict[str, Any]()
            for sampler in how[1]:
                x = model.generate(PART * PARTS, sampler, seed=seed, batch_size=PART)
                values = {"sampler": type(sampler).__name__, **scores.of(x)}
                best = values if not best or values["fd_digits"] < best["fd_digits"] else best
            found.append({"method": method, "calls": n, **best})
            print(
                f"seed {seed}: {METHODS[method]}, {n} calls: {best['fd_digits']:.3f} by {best['sampler']}", flush=True
            )
            files.write_text(path, "".join(json.dumps(row) + "\n" for row in found))
    return found


def seconds(root: Path) -> dict[int, float]:
    """Of 64 images in so many calls, those of all methods being of one network."""
    torch.set_num_threads(1)
    model = diffusion_lightning.load(root / "digits_progressive/checkpoints/last.ckpt")
    return interleaved({str(n): lambda n=n: model.generate(64, DDIM(n)) for n in EVERY}, rounds=3)  # type: ignore[misc, return-value]


def picture(cells: list[dict[str, Any]], floor: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=120)
    for (method, label), color, marker in zip(
        METHODS.items(), ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), "osDv", strict=True
    ):
        by = {n: [c["fd_digits"] for c in cells if (c["method"], c["calls"]) == (method, n)] for n in EVERY}
        calls = [n for n in EVERY if by[n]]
        spreads = [stdev(by[n]) if len(by[n]) > 1 else 0 for n in calls]
        axes.errorbar(calls, [mean(by[n]) for n in calls], spreads, label=label, color=color, marker=marker, capsize=3)
    axes.axhline(floor, color="gray", linestyle=":", label="real images held out")
    axes.set(xscale="log", yscale="log", xlabel="network calls for an image", ylabel="Fréchet distance of digits")
    axes.set_xticks(CALLS, [str(n) for n in CALLS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks few_steps")
    parser.add_argument("--out", type=Path, required=True, help="the runs, what has been measured, and the picture")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; 3")
    given = parser.parse_args(args)
    scores, cells = Scores(), list[dict[str, Any]]()
    for seed in range(given.seeds):
        root = given.out / f"seed{seed}"
        root.mkdir(parents=True, exist_ok=True)
        trained(root, seed)
        cells += measure(root, seed, scores)
    floor, took = scores.of(Digits().reference("val")[:]), seconds(given.out / "seed0")
    print("\n" + line(machine("cpu")) + "\n")
    print(f"| method | calls | {' | '.join(KEYS)} | 64 images, s |\n|---|---|---|---|---|---|")
    for method, label in METHODS.items():
        for n in EVERY:
            own = [cell for cell in cells if (cell["method"], cell["calls"]) == (method, n)]
            if own:
                values = " | ".join(spread([cell[key] for cell in own]) for key in KEYS)
                print(f"| {label} | {n} | {values} | {took[str(n)]:.3f} |")  # type: ignore[index]
    print(f"| real images held out | | {' | '.join(f'{floor[key]:.3f}' for key in KEYS)} | |")
    picture(cells, floor["fd_digits"], given.out / "few_steps.png")


if __name__ == "__main__":
    main(sys.argv[1:])
