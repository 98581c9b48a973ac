"""What cached latents cost: the cache of a set, killed and gone on with, and the wait of a training step for data.

    python -m benchmarks latents [--n 50000] [--device cuda]

On made images of 32×32 in color and a small autoencoder of random weights (diffusers' AutoencoderKL, factor 4, latents
of 3×8×8): (a) a process that computes the cache is killed by SIGKILL half way, and this one goes on: how many images
are encoded in all, the seconds, and the bytes of an image; (b) the seconds of fetching a batch of cached latents
against a step of a DiT (12 layers of width 384), and against encoding the batch on the fly. Interleaved, medians;
seconds are this machine's, shares travel.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lightning.data import Arrays, Latents
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT
from diffusion_lightning.networks.base.moments import Moments
from diffusion_lightning.random import Draw
from diffusion_lightning.schedules import Linear

from .measure import interleaved, machine, report


class Counting(Pretrained):
    """Counts the images that it encodes, and writes the count down; kills its process after so many.

    Args:
        model: see `Pretrained`.
        kill_after: images; None kills nothing.
    """

    def __init__(self, model: str, kill_after: int | None = None) -> None:
        super().__init__(model)
        self.kill_after, self.encoded, self.file = kill_after, 0, Path(model) / "encoded"

    def moments(self, image: Tensor) -> Moments:
        found = super().moments(image)
        self.encoded += len(image)
        if self.kill_after is not None and self.encoded >= self.kill_after:
            self.file.write_text(str(self.encoded), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def made(folder: Path, n: int) -> tuple[Path, Path]:
    """A set of n images and an autoencoder, in files."""
    import diffusers

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, 32, 32, 3), np.uint8)
    np.savez(folder / "set.npz", images=images)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=32, latent_channels=3, sample_size=32,
        mid_block_add_attention=False, scaling_factor=1.0,
    ).save_pretrained(folder / "stage")  # fmt: skip
    return folder / "set.npz", folder / "stage"


def latents(path: Path, model: Path, device: str, batch: int = 64, kill_after: int | None = None) -> Latents:
    return Latents(Arrays(path, batch_size=batch, held_out=0.0), Counting(str(model), kill_after).to(device))


def compute(path: Path, model: Path, device: str, kill_after: int | None) -> None:
    warnings.simplefilter("ignore")
    latents(path, model, device, kill_after=kill_after).moments("train")


def cache(path: Path, model: Path, n: int, device: str) -> dict[str, Any]:
    """The cache, killed half way and gone on with: a row."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=compute, args=(path, model, device, n // 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"the process ended with {process.exitcode} before it was killed"
    before = int((model / "encoded").read_text(encoding="utf-8")) - 1  # one image for the shape
    data = latents(path, model, device)
    stage: Any = data.first_stage
    start = time.perf_counter()
    kept = data.moments("train")
    seconds, after = time.perf_counter() - start, stage.encoded - 1
    again = latents(path, model, device)
    start = time.perf_counter()
    again.moments("train")
    reopened = time.perf_counter() - start
    return {
        "images": n,
        "encoded before the kill": before,
        "encoded after it": after,
        "encoded twice": before + after - n,
        "images a second": after / seconds,
        "bytes an image": kept.rows.nbytes // n,
        "opened again, s": reopened,
    }


def share(path: Path, model: Path, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """What fetching a batch of cached latents takes of a step: a row."""
    data = latents(path, model, device, batch)
    data.setup("fit")
    stage: Any = data.first_stage
    network = DiT(in_channels=3, size=8, patch=1, width=384, depth=12, heads=6)
    module = Diffusion(network, Linear(1000), first_stage=stage).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    batches: Iterator[Any] = iter(_endless(data))
    taken: list[Any] = [None]
    draw = Draw(0, "training", 0, torch.arange(batch, device=device))
    images = data.reference("train")[:batch].to(device)

    def load() -> None:
        moved = data.transfer_batch_to_device(next(batches), torch.device(device), 0)
        taken[0] = data.on_after_batch_transfer(moved, 0)

    def step() -> None:
        x_0 = stage.encode(taken[0][0].float(), draw)
        t, eps = torch.randint(1, 1001, (batch,), device=device), torch.randn_like(x_0)
        prediction = module.denoiser(module.schedule.q_sample(x_0, t, eps), t)
        (prediction.output - eps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    sides = {"load": load, "step": step, "encode": lambda: stage.encode(images, draw)}
    found = interleaved(sides, rounds, device)
    whole = found["load"] + found["step"]
    return {
        "batch": batch,
        "fetching latents, ms": 1e3 * found["load"],
        "step, ms": 1e3 * whole,
        "waits": f"{found['load'] / whole:.2%}",
        "encoding on the fly, ms": 1e3 * found["encode"],
    }


def _endless(data: Latents) -> Iterator[Any]:
    while True:
        yield from data.train_dataloader()


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks latents")
    parser.add_argument("--n", type=int, default=50_000, help="images of the set; 50000")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9, help="of which the medians are taken")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(args)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIFFUSION_LIGHTNING_CACHE"] = str(Path(folder) / "cache")
        path, model = made(Path(folder), given.n)
        facts = machine(given.device)
        report("latents_cache", facts, [cache(path, model, given.n, given.device)], None)
        report("latents", facts, [share(path, model, given.batch, given.rounds, given.device)], None)


if __name__ == "__main__":
    main(sys.argv[1:])
