"""Scores a checkpoint of configs/digits.yaml: the three figures of docs/getting-started.md.

    python -m benchmarks.digits [CKPT]

Over 512 samples (seed 0, all T steps of algorithm 2): on how many the shipped classifier is at least 90% confident,
and the smallest and largest share of a digit. And the Fréchet distance of the first 297 of them to the 1,500 training
images, beside its floor: the distance of the 297 held-out images, which neither the classifier nor the reference saw.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.samplers import Ancestral


class Figures(NamedTuple):
    """What a checkpoint's samples are worth."""

    confident: float
    rarest: float
    commonest: float
    distance: float
    floor: float


def figures(ckpt: str | Path) -> Figures:
    """The figures of 512 samples of a checkpoint."""
    data, net = Digits(), DigitsNet()
    distance = FrechetDistance(net)
    distance.update(images.to_uint8(data.reference("train")[:]), real=True)

    def to_train(x: torch.Tensor) -> float:
        distance.reset()
        distance.update(images.to_uint8(x), real=False)
        return float(distance.compute())

    samples = diffusion_lightning.load(ckpt).generate(512, Ancestral())
    chance, digit = net.classify(images.to_uint8(samples))[1].softmax(1).max(1)
    share = torch.bincount(digit, minlength=10) / len(digit)
    return Figures(
        confident=float((chance >= 0.9).double().mean()),
        rarest=float(share.min()),
        commonest=float(share.max()),
        distance=to_train(samples[: Digits.held_out]),
        floor=to_train(data.reference("val")[:]),
    )


def main(ckpt: str = "runs/digits/checkpoints/last.ckpt") -> None:
    found = figures(ckpt)
    ratio = found.distance / found.floor
    print(f"confident    {found.confident:.3f} of 512 samples (wanted: at least 0.900)")
    print(f"classes      {found.rarest:.3f} to {found.commonest:.3f} each (wanted: 0.040 to 0.200)")
    print(f"fd_digits    {found.distance:.3f}, {ratio:.2f} times the floor {found.floor:.3f} (wanted: at most 2)")


if __name__ == "__main__":
    main(*sys.argv[1:])
