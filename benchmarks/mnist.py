"""Trains configs/mnist.yaml, unless its run is there, prints what came of it and keeps its picture.

    python -m benchmarks.mnist [options of fit]

The options change the config. On a GPU none are needed; on two CPU cores fewer steps make it bearable, and less
precision where they have units for it:
`--trainer.max_steps 800 --trainer.val_check_interval 800 --trainer.precision bf16-mixed`.
"""

import shutil
import sys
from pathlib import Path

import torch
import yaml

from diffusion_lightning import images
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import MNIST
from diffusion_lightning.extractors import MNISTNet
from diffusion_lightning.metrics import FrechetDistance

from .choices import last_row

HERE = Path(__file__).parent
CONFIG, PICTURE = HERE.parent / "configs/mnist.yaml", HERE / "results/mnist.png"
N = 1000  # samples in the config's validation


def floor(root: str) -> float:
    """The distance of the first N test images, which a perfect model's samples would have on the average."""
    data, distance = MNIST(root=root), FrechetDistance(MNISTNet())
    for part in data.read("train")[0].split(1000):
        distance.update(part, real=True)
    distance.update(images.to_uint8(data.reference("test")[:N]), real=False)
    return float(distance.compute())


def main(*options: str) -> None:
    run = Path(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["trainer"]["default_root_dir"])
    if "--trainer.default_root_dir" in options:
        run = Path(options[options.index("--trainer.default_root_dir") + 1])
    last = run / "checkpoints/last.ckpt"
    if not last.exists():
        command(["fit", "--config", str(CONFIG), *options])
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    minutes = (last.stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60  # written at the start and at the end
    steps, data = config["trainer"]["max_steps"], config["data"]["init_args"]
    shutil.copy(run / f"samples/step={steps}.png", PICTURE)

    row = last_row(run / "metrics.csv")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    print("| device, precision | steps | minutes | `val/fd_mnist` (floor) | precision | recall | classes | copies |")
    print("|---|---|---|---|---|---|---|---|")
    assert data["batch_size"] == 128
    figures = " | ".join(f"{float(row[f'val/{key}']):.3f}" for key in (
        "precision_mnist", "recall_mnist", "class_coverage_mnist", "copies_pixels"))  # fmt: skip
    print(
        f"| {device}, {config['trainer']['precision'] or '32-true'} | {steps:,} | {minutes:.0f} "
        f"| {float(row['val/fd_mnist']):.3f} ({floor(data['root']):.3f}) | {figures} |"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
