"""Text and image: how often samples of scenes of digits show what their captions say, over the scale of guidance.

    python -m benchmarks scenes --ckpt runs/scenes --out DIR [--n 500]

For each scale, n captions of pairs of digits that training has and n of pairs that it never sees, drawn by DPMSolver in
20 steps, and the share that `CaptionMatch` finds right. Real held-out scenes are the ceiling: there the classifier of
the digits alone errs. DIR gets the curves, scenes.png, and at the best scale a sheet of samples, samples.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import files, images
from diffusion_lightning.data import DigitScenes
from diffusion_lightning.images.scenes import SCENES
from diffusion_lightning.metrics import CaptionMatch
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DPMSolver

from .measure import line, machine

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
STEPS, SHOWN = 20, 32
SIDES = ("seen", "unseen")
Shares = dict[float, dict[str, float]]


def captions(n: int) -> list[str]:
    """N captions of two digits that training has, then n that it never sees, each group in turn."""
    pairs = {text: scene for text, scene in SCENES.items() if len(scene.digits) == 2}
    found = []
    for seen in (True, False):
        of = [text for text, scene in pairs.items() if scene.seen == seen]
        order = torch.randperm(len(of), generator=torch.Generator().manual_seed(0)).tolist()
        found += [of[order[i % len(of)]] for i in range(n)]
    return found


def match(x: Tensor, said: Sequence[str]) -> dict[str, float]:
    """The shares of `CaptionMatch` for images in [-1, 1] or bytes, seen and unseen, of those that there are."""
    metric = CaptionMatch()
    metric.update(images.to_uint8(x), said)
    found = metric.compute()
    return {side: float(found[key]) for side in SIDES if (key := f"caption_match_{side}") in found}


def ceiling() -> dict[str, float]:
    """The shares of real held-out scenes."""
    data = DigitScenes()
    scenes, y = data.read("test")
    return match(scenes, [data.captions[i] for i in y.tolist()])  # type: ignore[index]


def draw(shares: Shares, real: dict[str, float], picture: Path) -> None:
    """The share over the scale, a curve for pairs that training has and one for those that it has not."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for side, color in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
        label = "pairs that training has" if side == "seen" else "pairs that training never sees"
        axes.plot(list(shares), [100 * of[side] for of in shares.values()], "o-", color=color, label=label)
        axes.axhline(100 * real[side], color=color, linestyle=":", linewidth=1)
    axes.set(xlabel="scale of guidance; 1 is none, 0 no condition", ylabel="samples that match, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(title="dotted: real scenes", loc="lower right")
    with files.written(picture) as stream:
        FigureCanvasAgg(figure).print_png(stream)


def table(shares: Shares, real: dict[str, float]) -> str:
    rows = [f"| {scale:g} | {of['seen']:.1%} | {of['unseen']:.1%} |" for scale, of in shares.items()]
    head = ["| scale of guidance | pairs that training has | pairs that it never sees |", "|---|---|---|"]
    return "\n".join([*head, *rows, f"| real held-out scenes | {real['seen']:.1%} | {real['unseen']:.1%} |"])


def measured(model: Diffusion, n: int, scales: Sequence[float]) -> tuple[Shares, Tensor]:
    """The shares by scale, and the samples of the best one, by the mean of both shares."""
    said, shares, best = captions(n), {}, (-1.0, torch.empty(0))
    for scale in scales:
        x = model.generate(2 * n, DPMSolver(STEPS), said, scale, batch_size=min(100, 2 * n))
        shares[scale] = match(x, said)
        best = max(best, (sum(shares[scale].values()), x), key=lambda pair: pair[0])
        print(f"scale {scale:g}: {shares[scale]['seen']:.1%} and {shares[scale]['unseen']:.1%}", flush=True)
    return shares, best[1]


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scenes")
    parser.add_argument("--ckpt", required=True, help="a run's folder or checkpoint, such as runs/scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    parser.add_argument("--n", type=int, default=500, help="samples of each of the two, by scale; 500")
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    real = ceiling()
    shares, x = measured(diffusion_lightning.load(given.ckpt), given.n, SCALES)
    draw(shares, real, given.out / "scenes.png")
    half = min(SHOWN // 2, given.n)
    some = [*range(half), *range(given.n, given.n + half)]
    said = captions(given.n)
    sheet = images.grid(images.to_uint8(x[some]), columns=8, captions=[said[i] for i in some])
    with files.written(given.out / "samples.png") as stream:
        Image.fromarray(sheet.squeeze(-1).numpy()).save(stream, "PNG")
    print(f"\n{line(machine('cpu'))}\n{table(shares, real)}\n\ncurves: {given.out / 'scenes.png'}")
