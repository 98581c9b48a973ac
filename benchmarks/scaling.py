"""What a second process brings, and what it changes: time per step and losses, 1 process against 2 on two cores.

    python -m benchmarks.scaling [rounds]

Real fits of the command's own, of the digits config at a global batch of 128 and of DDPM's CIFAR-10 network (35.7M
parameters, no dropout) at 8, on made images; float32, every process with one core, and one process with both beside
them. Each process times its own steps, the first ones aside. Interleaved, medians; seconds are this machine's, ratios
travel. Where there is a GPU, also float32 against `bf16-mixed` on it, at 128.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning.cli.defaults import WATCHES

from .measure import complete

CONFIGS = Path(__file__).parent.parent / "configs"


class Setting(NamedTuple):
    """How a network is trained."""

    name: str
    processes: int = 1
    threads: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"


class Network(NamedTuple):
    """What is trained, for how many steps after the first `WARM`."""

    name: str
    config: str
    batch: int
    steps: int


WARM = 3
ON_CORES = (
    Setting("1 process, 1 thread"),
    Setting("2 processes, 1 thread each", processes=2),
    Setting("1 process, 2 threads", threads=2),
)
ON_A_GPU = (
    Setting("1 GPU, float32", accelerator="gpu"),
    Setting("1 GPU, bf16-mixed", accelerator="gpu", precision="bf16-mixed"),
)
SMALL = (Network("digits", "digits", 128, 60), Network("CIFAR-10", "cifar10_ddpm", 8, 4))
LARGE = (Network("digits", "digits", 128, 200), Network("CIFAR-10", "cifar10_ddpm", 128, 60))


class StepTimes(Callback):
    """Writes the seconds of each optimizer step, without the first `WARM`, into a file."""

    def __init__(self, path: str) -> None:
        self.path, self.ends = Path(path), list[float]()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            steps = [b - a for a, b in zip(self.ends[WARM:], self.ends[WARM + 1 :], strict=False)]
            self.path.write_text("\n".join(map(str, steps)), encoding="utf-8")


def write_config(network: Network, setting: Setting, images: Path, folder: Path) -> Path:
    """The network's recipe with its global batch shared among the processes, short, and without evaluation."""
    config = complete(CONFIGS / f"{network.config}.yaml") | dict.fromkeys(WATCHES)
    config["trainer"] |= {
        "default_root_dir": str(folder), "max_steps": WARM + 1 + network.steps, "limit_val_batches": 0,
        "log_every_n_steps": 1, "logger": False, "enable_progress_bar": False, "accelerator": setting.accelerator,
        "devices": setting.processes, "strategy": "ddp" if setting.processes > 1 else "auto",
        "precision": setting.precision,
        "callbacks": [{"class_path": "benchmarks.scaling.StepTimes", "init_args": {"path": str(folder / "seconds")}}],
    }  # fmt: skip
    config["model"]["init_args"]["network"]["init_args"]["dropout"] = 0.0  # its masks depend on who draws them
    config["model"]["init_args"]["lr_scheduler"] = None  # after a warm-up's first steps the losses would tell nothing
    if network.config != "digits":
        config["data"] = {"class_path": "Arrays", "init_args": {"path": str(images)}}
    config["data"]["init_args"]["batch_size"] = network.batch // setting.processes
    folder.mkdir(parents=True)
    path = folder / "scaling.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def fit(configs: list[str]) -> None:
    """One process of a setting: the fits of all networks."""
    from diffusion_lightning.cli import main as command

    for config in configs:
        command(["fit", "--config", config])


def launch(setting: Setting, configs: list[Path]) -> None:
    """The processes of a setting, by torchrun where they are several."""
    words = ["-m", "benchmarks.scaling", "fit", *map(str, configs)]
    if setting.processes > 1:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(setting.processes), *words]
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": str(setting.threads)}, capture_output=True,
        encoding="utf-8", check=False, cwd=CONFIGS.parent,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{setting.name} failed: {done.stderr}")


def losses(folder: Path) -> torch.Tensor:
    """`train/loss` of each step."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return torch.tensor([float(row["train/loss"]) for row in csv.DictReader(file)], dtype=torch.float64)


def measure(settings: Sequence[Setting], networks: Sequence[Network], images: Path, root: Path, rounds: int) -> None:
    """All settings in turn, round after round, and a table whose first setting is what the others are held against."""

    def folder(network: Network, setting: Setting, number: int) -> Path:
        return root / f"{networks.index(network)}-{settings.index(setting)}-{number}"

    def times(network: Network, setting: Setting) -> float:
        runs = [folder(network, setting, number) for number in range(rounds)]
        return median(float(line) for run in runs for line in (run / "seconds").read_text(encoding="utf-8").split())

    for number in range(rounds):
        for setting in settings:
            launch(setting, [write_config(n, setting, images, folder(n, setting, number)) for n in networks])
            for network in networks:  # half a gigabyte each
                shutil.rmtree(folder(network, setting, number) / "checkpoints")
    for network in networks:
        base, expected = times(network, settings[0]), losses(folder(network, settings[0], 0))
        for setting in settings:
            seconds, found = times(network, setting), losses(folder(network, setting, 0))
            difference = ((found - expected) / expected).abs().max()
            print(
                f"| {network.name}, {network.batch} | {setting.name} | {1e3 * seconds:.1f} ms | {base / seconds:.2f}× "
                f"| {'—' if setting == settings[0] else f'{difference:.1e}'} |",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["fit"]:
        return fit(sys.argv[2:])
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print("| network, global batch | trained by | time per step | speed | largest relative difference of a loss |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        np.savez(images, images=np.random.default_rng(0).integers(0, 256, (1024, 32, 32, 3), np.uint8))
        measure(ON_CORES, SMALL, images, Path(folder) / "cores", rounds)
        if torch.cuda.is_available():
            measure(ON_A_GPU, LARGE, images, Path(folder) / "gpu", rounds)


if __name__ == "__main__":
    main()
