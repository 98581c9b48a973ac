"""How fast images are scored, and what computing in bfloat16 does to an FID.

    python -m benchmarks score [--n 500] [--batch 16] [--weights FILE]

Batches of bytes through Inception, ours in float32 and in bfloat16 and torch-fidelity's, in turn. Then the FID between
two sets of n photographic pictures of 32×32 pixels, cut from the two that scikit-learn ships, in both precisions. Where
Inception's weights are not at hand random ones take their place, which cost the same.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lightning.extractors import InceptionV3
from diffusion_lightning.metrics import FrechetDistance
from tests.support.weights import random_weights

from .measure import interleaved, machine, options, report


def cuttings(name: str, n: int, size: int = 32) -> Tensor:
    """Squares of one of scikit-learn's photographs, bytes (n, 3, size, size)."""
    photograph = load_sample_image(name)
    draw = np.random.default_rng(0)
    top, left = (draw.integers(0, side - size, n) for side in photograph.shape[:2])
    squares = [photograph[a : a + size, b : b + size] for a, b in zip(top, left, strict=True)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def fid(extractor: InceptionV3, sets: Sequence[Tensor], batch: int, device: str) -> float:
    found = FrechetDistance(extractor, allow_few=True).to(device)
    for real, images in enumerate(sets):
        for block in images.split(batch):
            found.update(block.to(device), real=bool(real))
    return float(found.compute()[found.name])


@torch.inference_mode()
def main(args: Sequence[str]) -> None:
    parser = options("score", sizes=("cifar10",))
    parser.add_argument("--n", type=int, help="pictures in each of the two sets; 500, and 5,000 on a GPU")
    parser.add_argument("--weights", type=Path, help="of Inception; random ones where none are given")
    given = parser.parse_args(args)
    on_gpu = given.device.startswith("cuda")
    batch, rounds = given.batch or (256 if on_gpu else 16), given.rounds or (20 if on_gpu else 7)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(given.weights or random_weights(Path(folder) / "inception.pth"))
        exact, half = (InceptionV3(weights, name).to(given.device) for name in ("float32", "bfloat16"))
        theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
        theirs.to(given.device)
    sets = [cuttings(name, given.n or (5000 if on_gpu else 500)) for name in ("china.jpg", "flower.jpg")]
    images = sets[0][:batch]
    sides: dict[str, Callable[[], Any]] = {
        "torch-fidelity, float32": lambda: theirs(images.to(given.device)),
        "ours, float32": lambda: exact(images.to(given.device)),
        "ours, bfloat16": lambda: half(images.to(given.device)),
    }
    found = interleaved(sides, rounds, given.device)
    base = found["torch-fidelity, float32"]
    distances = {
        "ours, float32": fid(exact, sets, batch, given.device),
        "ours, bfloat16": fid(half, sets, batch, given.device),
    }
    truth = distances["ours, float32"]
    rows = [
        {
            "scored by": name, "images/s": batch / value, "of torch-fidelity's time": value / base,
            "FID": distances.get(name), "FID moves by": abs(distances[name] / truth - 1) if name in distances else None,
        }
        for name, value in found.items()
    ]  # fmt: skip
    about = {"batch": batch, "pictures a set": len(sets[0]), "weights": str(given.weights or "random")}
    report("score", machine(given.device) | about, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
