"""Latents beside pixels: scenes of digits by latent diffusion, and by diffusion of pixels in the same wall-clock time.

    python -m benchmarks latent_scenes --out DIR [--n 500] [--only latents]

Trains the recipe `latent_scenes_stage`, then `latent_scenes` on its latents, and then `scenes` for so many steps as
take as long as the two together, a rate that its first steps tell. Of n samples each, at guidance 3 by DPMSolver in 20
steps, for captions that training has and as many that it never sees:

- cells: of the places where the caption puts a digit, the share that the shipped classifier reads with ≥ 90%
  confidence;
- match: the share of samples that show what their captions say (`CaptionMatch`);
- fd_digits: the Fréchet distance of these cells, over the classifier's features, to those of real held-out scenes.

And the stage's PSNR on held-out scenes. DIR gets the runs, and a sheet of samples of each, latents.png and pixels.png.
A run that is there already is not trained again.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import files, images
from diffusion_lightning.cli import main as command
from diffusion_lightning.data import DigitScenes
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.images.scenes import CELL, SCENES
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.metrics.caption_match import small
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DPMSolver

from .measure import machine, report
from .scenes import captions, match

STEPS, SCALE, WARM, TIMED = 20, 3.0, 20, 60
CONFIDENT = 0.9


def fit(config: str, folder: Path, *options: str) -> float:
    """Train a recipe into a folder, unless an earlier call has done so; the seconds that it took."""
    took = folder / "seconds"
    if not took.exists():
        start = time.perf_counter()
        command(["fit", "--config", config, "--trainer.default_root_dir", str(folder), *options])
        took.write_text(str(time.perf_counter() - start), encoding="utf-8")
    return float(took.read_text(encoding="utf-8"))


def cells(x: Tensor, said: Sequence[str]) -> Tensor:
    """Bytes (N, 1, 8, 8): the places of bytes (B, 1, 32, 32) where their captions put a digit."""
    found = []
    for image, caption in zip(x, said, strict=True):
        found += [image[:, top : top + CELL, left : left + CELL] for top, left in SCENES[caption].corners]
    return small(torch.stack(found))


def figures(x: Tensor, said: Sequence[str], real: Tensor) -> dict[str, Any]:
    """What samples in [-1, 1] or bytes are worth; `real` are the cells of real scenes."""
    own, net = cells(images.to_uint8(x), said), DigitsNet()
    distance = FrechetDistance(net)
    distance.update(real, real=True)
    distance.update(own[: len(real)], real=False)
    chance = net.classify(own)[1].softmax(1).amax(1)
    share = match(x, said)
    return {
        "cells read": float((chance >= CONFIDENT).double().mean()),
        "match, seen pairs": share.get("seen"),
        "match, unseen pairs": share.get("unseen"),
        "fd_digits": float(distance.compute()),
    }


def psnr(model: Diffusion, x: Tensor) -> float:
    """Of reconstructions of images in [-1, 1], in dB, the mean over the images."""
    draw = Draw(0, "evaluation", 0, torch.arange(len(x)))
    again = model.first_stage.decode(model.first_stage.encode(x, draw))
    return float((10 * (4 / (again - x).square().flatten(1).mean(1)).log10()).mean())


def sheet(x: Tensor, said: Sequence[str], picture: Path) -> None:
    made = images.grid(images.to_uint8(x), columns=8, captions=list(said))
    with files.written(picture) as stream:
        Image.fromarray(made.squeeze(-1).numpy()).save(stream, "PNG")


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks latent_scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the pictures go")
    parser.add_argument("--n", type=int, default=500, help="samples of each kind of captions; 500")
    parser.add_argument("--only", choices=("latents",), help="leave out the training on pixels")
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    stage, latents, pixels = (given.out / name for name in ("stage", "latents", "pixels"))

    took = {"stage": fit("latent_scenes_stage", stage)}
    took["latents"] = fit("latent_scenes", latents, "--model.init_args.first_stage.init_args.model", str(stage))
    runs = {"latents": (latents, took["stage"] + took["latents"])}
    if given.only is None:
        runs["pixels"] = (pixels, pixels_for(pixels, runs["latents"][1]))

    data = DigitScenes()
    scenes, y = data.read("test")
    held_out = [data.captions[i] for i in y.tolist()]  # type: ignore[index]
    real, said, rows = cells(scenes, held_out), captions(given.n), []
    for name, (folder, seconds) in runs.items():
        model = diffusion_lightning.load(folder)
        x = model.generate(2 * given.n, DPMSolver(STEPS, clip=model.own_sampler().clip), said, SCALE, batch_size=100)
        row = {"diffusion of": name, "minutes": seconds / 60, "steps": model.steps_done, **figures(x, said, real)}
        rows.append(row | {"PSNR of the stage, dB": psnr(model, data.scaled(scenes)) if name == "latents" else None})
        sheet(x[:32], said[:32], given.out / f"{name}.png")
    ceiling = figures(*_training(2 * given.n), real)
    rows.append({"diffusion of": "real training scenes", "minutes": None, "steps": None, **ceiling,
                 "PSNR of the stage, dB": None})  # fmt: skip
    report("latent_scenes", machine("cpu") | {"guidance": SCALE}, rows, None)


def _training(n: int) -> tuple[Tensor, list[str]]:
    """Training scenes and their captions."""
    data = DigitScenes(n)
    scenes, y = data.read("train")
    return scenes, [data.captions[i] for i in y.tolist()]  # type: ignore[index]


def pixels_for(folder: Path, seconds: float) -> float:
    """Train the recipe `scenes` for about so many seconds; how many it took."""
    short = ["--trainer.max_steps", str(WARM + TIMED), "--trainer.limit_val_batches", "0"]
    start = fit("scenes", folder / "rate", "--trainer.max_steps", str(WARM), *short[2:])
    rate = (fit("scenes", folder / "longer", *short) - start) / TIMED
    steps = max(100, int((seconds - start) / rate))
    return fit("scenes", folder, "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps))
