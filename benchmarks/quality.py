"""Equal time, whose images are better: digits trained for two minutes by each, from start to end of its loop.

    python -m benchmarks quality --against diffusers,lucidrains [--seconds 120] [--seeds 3] [--samples 2000]

Ours is configs/digits.yaml with as many steps as fit into the time, told by a few steps beforehand; diffusers' example
and denoising-diffusion-pytorch have their own loops and defaults, networks of the same size (the former the same one),
and batches of the same size. All sample by algorithm 2 in as many steps. What counts is the time in which a loop
trains: starting, sampling and scoring are left out for all. Each is scored by the shipped classifier of digits: the
Fréchet distance of its samples to the training images. One after another on all cores; seeds in turn.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.samplers import Ancestral

from . import peers
from .measure import machine, options, report
from .measure import peers as named
from .peers import Task
from .train import network, recipe, write_images

TRIAL = 100  # steps by which the speed is told
NAMES = {"diffusers": "diffusers", "lucidrains": "denoising-diffusion-pytorch"}


class Clock(Callback):
    """The seconds from the first step's start to the last one's end, as a file."""

    def __init__(self, path: str) -> None:
        self.path, self._since = Path(path), 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._since = self._since or time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.path.write_text(str(time.perf_counter() - self._since), encoding="utf-8")


def fit(root: Path, steps: int, seed: int) -> float:
    """Ours: seconds that its loop took."""
    config = recipe("digits")
    config["seed_everything"] = seed
    config["trainer"] |= {
        "default_root_dir": str(root), "max_steps": steps, "limit_val_batches": 0, "logger": False,
        "callbacks": [{"class_path": "benchmarks.quality.Clock", "init_args": {"path": str(root / "seconds")}}],
    }  # fmt: skip
    config["checkpoint"] = {"every_n_train_steps": steps}
    config["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] = steps
    root.mkdir(parents=True)
    (root / "quality.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command(["fit", "--config", str(root / "quality.yaml")])
    return float((root / "seconds").read_text(encoding="utf-8"))


def ours(root: Path, seconds: float, seed: int, n: int, sampling: int) -> tuple[Tensor, int, float]:
    """Images, optimizer steps and seconds."""
    each = fit(root / "trial", TRIAL, seed) / TRIAL
    steps = int(seconds / each)
    took = fit(root / "run", steps, seed)
    model = diffusion_lightning.load(root / "run/checkpoints/last.ckpt")
    return images.to_uint8(model.generate(n, Ancestral(sampling), seed=seed, batch_size=500)), steps, took


def theirs(
    name: str, folder: Path, seconds: float, seed: int, n: int, batch: int, sampling: int
) -> tuple[Tensor, int, float]:
    """The same for a peer."""
    seed_everything(seed, verbose=False)
    fresh = network("digits")
    trial = peers.made(name, Task((1, 8, 8), batch, "float32", "cpu", TRIAL, False), fresh, folder)
    trial.step()
    since = time.perf_counter()
    for _ in range(TRIAL):
        trial.step()
    planned = int(seconds / ((time.perf_counter() - since) / TRIAL))  # its rate falls over the whole of its run
    seed_everything(seed, verbose=False)
    peer = peers.made(name, Task((1, 8, 8), batch, "float32", "cpu", planned, False), network("digits"), folder)
    steps, since = 0, time.perf_counter()
    while time.perf_counter() - since < seconds:
        peer.step()
        steps += 1
    took = time.perf_counter() - since
    return peer.sample(n, sampling), steps, took


def distance(samples: Tensor) -> float:
    found = FrechetDistance(DigitsNet())
    found.update(images.to_uint8(Digits().reference("train")[:]), real=True)
    found.update(samples, real=False)
    return float(found.compute())


def main(args: Sequence[str]) -> None:
    parser = options("quality", sizes=("digits",))
    parser.add_argument("--seconds", type=float, default=120.0, help="of training; 120")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, the median of which counts; 3")
    parser.add_argument("--samples", type=int, default=2000, help="scored; 2000")
    parser.add_argument("--sampling", type=int, default=100, help="steps of algorithm 2, for all; 100")
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "SEED"), help="one run of one, for this program itself")
    given = parser.parse_args(args)
    batch = given.batch or recipe("digits")["data"]["init_args"]["batch_size"]
    if given.alone:
        who, seed = given.alone[0], int(given.alone[1])
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            made: tuple[Tensor, int, float]
            if who == "ours":
                made = ours(root, given.seconds, seed, given.samples, given.sampling)
            else:
                write_images("digits", root)
                made = theirs(who, root / "images", given.seconds, seed, given.samples, batch, given.sampling)
        print(f"RESULT {distance(made[0])} {made[1]} {made[2]}")
        return
    rows: list[dict[str, Any]] = []
    found: dict[str, list[list[float]]] = {who: [] for who in ("ours", *named(given.against))}
    for seed in range(given.seeds):
        for who, runs in found.items():
            words = [
                "quality", "--alone", who, str(seed), "--seconds", str(given.seconds), "--samples", str(given.samples),
                "--batch", str(batch), "--sampling", str(given.sampling),
            ]  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks", *words], capture_output=True, encoding="utf-8", check=False
            )
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
            if line is None:
                raise RuntimeError(f"{who} failed: {done.stderr}")
            runs.append([float(word) for word in line.split()[1:]])
            print(f"seed {seed}, {who}: fd_digits {runs[-1][0]:.3f} after {runs[-1][1]:.0f} steps", flush=True)
    for who, runs in found.items():
        rows.append({
            "trained by": NAMES.get(who, who),
            "seconds": median(run[2] for run in runs),
            "steps": int(median(run[1] for run in runs)),
            "fd_digits, median": median(run[0] for run in runs),
            "of each seed": ", ".join(f"{run[0]:.3f}" for run in runs),
        })  # fmt: skip
    report("quality-digits", machine("cpu") | {"samples": given.samples}, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
