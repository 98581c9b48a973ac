"""Edits of held-out digits: a picture of each action, and how exact each is.

    python -m benchmarks edits --ckpt CKPT --out DIR

Writes DIR/edit_interpolate.png, edit_inpaint.png, edit_vary.png, edit_invert.png, edit_denoise.png and film.webp, by
the samplers that `edit` takes for the checkpoint of the recipe `digits`, and prints the figures as a table: means over
the first 16 held-out images, in grey levels of 0 … 255. It takes six minutes on one core.
"""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images, random
from diffusion_lightning.cli.edit import as_picture
from diffusion_lightning.data import Digits
from diffusion_lightning.edits import Edits, rms
from diffusion_lightning.samplers import DDIM, Ancestral, Sampler, UniformLogSNR

SIGMA = 0.5
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
STEPS = (50, 250, 1000)  # of inversion
N = 16  # images that figures are means over


def held_out(n: int) -> Tensor:
    """The first n held-out digits, (n, 1, 8, 8) in [-1, 1]."""
    data = Digits()
    return data.scaled(data.read("test")[0])[:n]


def hole() -> Tensor:
    """What is known of a digit, (1, 8, 8): all but the 4×4 pixels in its middle."""
    known = torch.ones(1, 8, 8)
    known[:, 2:6, 2:6] = 0
    return known


def save(path: Path, rows: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
    """Rows of captioned images (C, H, W) as one picture."""
    captions, shown = zip(*(one for row in rows for one in row), strict=True)
    sheet = images.grid(images.to_uint8(torch.stack(shown)), columns=len(rows[0]), captions=captions)
    images.write_sheet(sheet, path, {"made by": "python -m benchmarks edits"})


def interpolation(model: Any, x: Tensor, out: Path) -> list[tuple[str, str]]:
    """Between pairs of digits."""
    edits, rows, errors = Edits(model, DDIM(min(50, model.T))), [], []
    for k in range(N // 2):
        made = edits.interpolate(x[2 * k], x[2 * k + 1], 8)
        errors += [rms(made[0], x[2 * k]), rms(made[-1], x[2 * k + 1])]
        names = ["A", "A again", *(f"{i}/7" for i in range(1, 7)), "B again", "B"]
        rows.append(list(zip(names, [x[2 * k], *made, x[2 * k + 1]], strict=True)))
    save(out / "edit_interpolate.png", rows[:4])
    return [(f"interpolation, both ends made again, DDIM of {edits.sampler.steps} steps: rms", f"{mean(errors):.2f}")]


def inpainting(model: Any, x: Tensor, out: Path, sampler: Sampler) -> list[tuple[str, str]]:
    """Of digits without their middle."""
    edits, known, rows, changes = Edits(model, sampler), hole(), [], []
    for image in x[:4]:
        made = edits.inpaint(image, known, 4)
        off = (images.to_uint8(made).int() - images.to_uint8(image).int()).abs()
        changes.append(int((off * known.int()).max()))
        row = [("picture", image), ("hole", torch.where(known.bool(), image, torch.zeros_like(image)))]
        rows.append(row + [(f"sample {i}", one) for i, one in enumerate(made)])
    save(out / "edit_inpaint.png", rows)
    return [("inpaint, 16 samples of 4 pictures: largest change of a known pixel", str(max(changes)))]


def variation(model: Any, x: Tensor, out: Path, sampler: Sampler) -> list[tuple[str, str]]:
    """At rising strengths, those of a picture of one noise."""
    rows, changes = [], dict[float, list[float]]()
    for seed, image in enumerate(x):
        edits = Edits(model, sampler, seed=seed)
        made = {strength: edits.vary(image, strength, 1)[0] for strength in STRENGTHS}
        for strength, one in made.items():
            eight_bits = (images.from_uint8(images.to_uint8(y)) for y in (one, image))
            changes.setdefault(strength, []).append(rms(*eight_bits))
        rows.append([("picture", image), *((f"s = {strength}", one) for strength, one in made.items())])
    save(out / "edit_vary.png", rows[:4])
    return [(f"vary, strength {strength}: rms change", f"{mean(found):.2f}") for strength, found in changes.items()]


def inversion(model: Any, x: Tensor, out: Path) -> list[tuple[str, str]]:
    """There and back, in few steps and many."""
    found, rows = [], [[("picture", image)] for image in x[:4]]
    steps = [n for n in STEPS if n <= model.T] or [model.T]
    for n in steps:
        made = [Edits(model, DDIM(n)).invert(image) for image in x]
        found.append((f"invert, DDIM of {n} steps: rms", f"{mean(map(rms, (b for _, b in made), x)):.3f}"))
        for row, (x_T, again) in zip(rows, made, strict=False):
            row += [(f"x_T, {n} steps", as_picture(x_T, again)), (f"again, {n} steps", again)]
    save(out / "edit_invert.png", rows)
    return found


def denoising(model: Any, x: Tensor, out: Path) -> list[tuple[str, str]]:
    """Of digits with noise of SIGMA."""
    edits, rows, before, after = Edits(model), [], [], []
    eps = random.normal(x.shape[1:], 0, "benchmark: noise", 0, torch.arange(len(x)))
    for image, noise in zip(x, eps, strict=True):
        noisy = image + SIGMA * noise
        clean = edits.denoise(noisy, SIGMA)
        before.append(rms(noisy, image))
        after.append(rms(clean, image))
        rows.append([("picture", image), (f"sigma {SIGMA}", noisy), ("denoised", clean)])
    save(out / "edit_denoise.png", [a + b for a, b in zip(rows[:4], rows[4:8], strict=True)])
    t, _ = edits.time(SIGMA)
    return [
        (f"denoise, sigma {SIGMA} (t = {t}): rms before", f"{mean(before):.1f}"),
        (f"denoise, sigma {SIGMA}: rms after", f"{mean(after):.1f}"),
    ]


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks edits", description=__doc__)
    parser.add_argument("--ckpt", required=True, help="of the recipe digits")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    given = parser.parse_args(words)
    model = diffusion_lightning.load(given.ckpt)
    if tuple(model.shape) != (1, 8, 8):
        raise ValueError(
            f"{given.ckpt} draws images of {list(model.shape)}, but digits are [1, 8, 8]: give one of these"
        )
    x = held_out(N)
    drawn_by = Ancestral(min(300, model.T), spacing=UniformLogSNR())  # that of the recipe's grid of samples
    found = [
        *inpainting(model, x, given.out, drawn_by),
        *variation(model, x, given.out, drawn_by),
        *interpolation(model, x, given.out),
        *inversion(model, x, given.out),
        *denoising(model, x, given.out),
    ]
    film = Edits(model, drawn_by).film(16, 48)
    frames = [images.grid(images.to_uint8(frame)) for frame in film]
    images.write_film(given.out / "film.webp", frames, quality=60)
    print(f"{platform.machine()}, torch {torch.__version__}; {N} held-out digits, grey levels of 0 … 255\n")
    width = max(len(name) for name, _ in found)
    print(f"| {'action':<{width}} | grey levels |\n|{'-' * (width + 2)}|-------------|")
    for name, value in found:
        print(f"| {name:<{width}} | {value} |")
