"""What each metric says of samples that are honest, lack a class, or are copies: on the digits, in seconds.

    python -m benchmarks.faults

The 297 held-out digits stand for the samples of a perfect model; the reference are the 1,500 training images.
"""

import torch

from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import (
    KID,
    ClassCoverage,
    FrechetDistance,
    InceptionScore,
    NearestNeighbours,
    PrecisionRecall,
)
from diffusion_lightning.metrics.evaluation import Evaluation

COLUMNS = {
    "fd_digits": "`fd_digits`",
    "kid_digits_mean": "`kid_digits_mean`",
    "is_digits_mean": "`is_digits_mean`",
    "precision_digits": "`precision_digits`",
    "recall_digits": "`recall_digits`",
    "class_coverage_digits": "`class_coverage_digits`",
    "copies_pixels": "`copies_pixels`",
}


def faulty() -> dict[str, torch.Tensor]:
    """Sets of samples, honest and not, as bytes."""
    data = Digits()
    real, held, y = images.to_uint8(data.reference()[:]), images.to_uint8(data.reference("val")[:]), data.read("val")[1]
    return {
        "held-out digits": held,
        "without the nines": held[y != 9],
        "a tenth copied": torch.cat([held[:267], real[::50]]),
        "one digit a class": held[torch.stack([(y == k).nonzero()[0, 0] for k in range(10)])].repeat(30, 1, 1, 1)[:297],
    }


def figures(samples: torch.Tensor) -> dict[str, float]:
    """All metrics of one set."""
    net = DigitsNet()
    metrics = [
        FrechetDistance(net),
        KID(net, subset_size=100),
        InceptionScore(net),
        PrecisionRecall(net),
        ClassCoverage(net),
        NearestNeighbours(net),
    ]
    evaluation = Evaluation(list(metrics), images.to_uint8(Digits().reference()[:]))
    return {key: float(value) for key, value in evaluation.score(samples).items()}


def main() -> None:
    print("| samples | " + " | ".join(COLUMNS.values()) + " |\n|" + "---|" * (1 + len(COLUMNS)))
    for name, samples in faulty().items():
        found = figures(samples)
        print(f"| {name} | " + " | ".join(f"{found[key]:.3f}" for key in COLUMNS) + " |")


if __name__ == "__main__":
    main()
