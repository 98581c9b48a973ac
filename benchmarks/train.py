"""A training step of ours, the command's whole `fit` included, against the peers' own loops, in one run.

    python -m benchmarks train --size digits|cifar10 --against diffusers,lucidrains

The recipe's network on the recipe's batch (16 for cifar10 on a CPU), in float32 and under bf16 autocast: forward,
loss, backward, clip, optimizer and average, with whatever each loop does beside these (loading, logging, callbacks),
without evaluations. Each is a process of its own; they take turns, a step each and on a GPU ten, which may be prepared
while the GPU is at those before, while the others wait; medians.
diffusers has a network of the same shape, whose loss is compared with ours on the same weights, images and noise;
denoising-diffusion-pytorch has its own, of the nearest width.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from diffusion_lightning.callbacks.throughput import peak
from diffusion_lightning.cli import main as command
from diffusion_lightning.cli.defaults import WATCHES
from diffusion_lightning.modules.base.shapes import operations
from diffusion_lightning.networks import UNet

from . import peers
from .measure import complete, machine, options, report, seconds, wait
from .measure import peers as named
from .peers import Task

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = {"digits": "digits", "cifar10": "cifar10_ddpm"}
PRECISIONS = {"float32": ("32-true", torch.float32), "bfloat16": ("bf16-mixed", torch.bfloat16)}
IMAGES = 2048  # made ones, in the place of CIFAR-10
WARM = 2


class Turns(Callback):
    """Waits before every turn of optimizer steps until it is told to go on, and tells how long a step took."""

    talk: ClassVar[Connection]
    turn: ClassVar[int]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 0:
            self.talk.send(facts(module.denoiser.network, module.shape))  # type: ignore[union-attr, arg-type]
            self._wait()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step % self.turn == 0:
            wait(str(module.device))
            self.talk.send(((time.perf_counter() - self._since) / self.turn, memory(str(module.device))))
            self._wait()

    def _wait(self) -> None:
        if not self.talk.recv():
            raise SystemExit
        self._since = time.perf_counter()


def serve(talk: Connection, who: str, size: str, task: Task, root: Path) -> None:
    """A process: the facts of its network, then, for every turn it is told to take, a step's seconds and the memory."""
    if who == "ours":
        Turns.talk, Turns.turn = talk, task.turn
        command(["fit", "--config", str(write_config(size, task, root))])
        return
    peer = peers.made(who, task, network(size), root / "images")
    talk.send(facts(peer.network, task.shape))
    answer(talk, peer.step, task)


def answer(talk: Connection, step: Callable[[], None], task: Task) -> None:
    """Takes a turn of steps whenever told to, and tells the seconds of a step and the memory."""
    while talk.recv():
        talk.send((seconds(step, task.device, task.turn), memory(task.device)))


def memory(device: str) -> int:
    """The most bytes that this process has held so far, on a GPU where it trains there."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def facts(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in net.parameters()), "operations": 3 * operations(net, shape)}


def write_images(size: str, root: Path) -> None:
    """The training images as a folder of PNGs, for the peers, and as an .npz, for ours."""
    if size == "digits":
        pixels = (load_digits().images[:1500] / 16 * 255).round().astype(np.uint8)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    folder = root / "images"
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    np.savez(root / "images.npz", images=pixels)


def recipe(size: str) -> dict[str, Any]:
    """The recipe with all that it leaves out, and watched by nothing."""
    return complete(CONFIGS / f"{RECIPES[size]}.yaml") | dict.fromkeys(WATCHES)


def network(size: str) -> UNet:
    """The recipe's, fresh."""
    torch.manual_seed(0)
    return UNet(**recipe(size)["model"]["init_args"]["network"]["init_args"])


def write_config(
    size: str, task: Task, root: Path, callbacks: Sequence[str] = ("LossByTimestep", "Throughput"), name: str = "ours"
) -> Path:
    """The recipe at this batch and precision, as long as asked for and without evaluations."""
    config = recipe(size)
    config["trainer"] |= {
        "default_root_dir": str(root / f"{name}-{task.precision}"), "max_steps": task.steps, "limit_val_batches": 0,
        "logger": False, "accelerator": "gpu" if task.device.startswith("cuda") else "cpu",
        "precision": PRECISIONS[task.precision][0],
        "callbacks": [{"class_path": path} for path in (*callbacks, "benchmarks.train.Turns")],
    }  # fmt: skip
    config["checkpoint"] = {"every_n_train_steps": task.steps + 1}
    config["model"]["init_args"] |= {"lr_scheduler": None, "compile": task.device.startswith("cuda")}
    if size != "digits":
        config["data"] = {"class_path": "Arrays", "init_args": {"path": str(root / "images.npz"), "flip": task.flip}}
    config["data"]["init_args"]["batch_size"] = task.batch
    path = root / f"{name}-{task.precision}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@torch.no_grad()
def same_loss(size: str, shape: tuple[int, int, int]) -> str:
    """Ours and diffusers' on the same weights, images, noise and times, without dropout, in float32 on the CPU."""
    from .peers.diffusers import twin

    ours = network(size)
    draw = torch.Generator().manual_seed(0)
    for p in ours.parameters():
        p.copy_(0.02 * torch.randn(p.shape, generator=draw))
    theirs = twin(ours)
    x_t, eps = (torch.randn(16, *shape, generator=draw) for _ in range(2))
    index = torch.randint(0, 1000, (16,), generator=draw)
    here, there = F.mse_loss(ours.eval()(x_t, index), eps), F.mse_loss(theirs.eval()(x_t, index).sample, eps)
    return f"ours {float(here):.7f}, diffusers' {float(there):.7f}"


class Side:
    """A process that trains."""

    def __init__(self, who: str, precision: str, start: Callable[[Connection], Any]) -> None:
        self.who, self.precision = who, precision
        self.talk, there = get_context("spawn").Pipe()
        self.process: Any = start(there)
        self.facts: dict[str, int] = self._answer()
        self.times: list[float] = []
        self.memory = 0

    def _answer(self) -> Any:
        while not self.talk.poll(1):
            if not self.process.is_alive():
                raise RuntimeError(f"{self.who} in {self.precision} has failed")
        return self.talk.recv()

    def take(self) -> None:
        """A turn."""
        self.talk.send(True)
        value, self.memory = self._answer()
        self.times.append(value)

    def stop(self) -> None:
        self.talk.send(False)
        self.process.join(60)


def measure(
    size: str, task: Task, sides: list[tuple[str, str]], root: Path, serve: Callable[..., None] = serve
) -> list[Side]:
    """All sides, (who, precision), trained in turns, each by a process that serves."""

    def process(who: str, precision: str) -> Callable[[Connection], Any]:
        def start(there: Connection) -> Any:
            given = (there, who, size, task._replace(precision=precision), root)
            started = get_context("spawn").Process(target=serve, args=given)
            started.start()
            return started

        return start

    running = [Side(who, precision, process(who, precision)) for who, precision in sides]
    for _ in range((task.steps - 1) // task.turn):
        for side in running:
            side.take()
    return running


def main(args: Sequence[str]) -> None:
    parser = options("train")
    parser.add_argument("--precision", default="float32,bfloat16", help="which of float32, bfloat16")
    given = parser.parse_args(args)
    config = recipe(given.size)
    on_gpu = given.device.startswith("cuda")
    batch = given.batch or (16 if given.size == "cifar10" and not on_gpu else config["data"]["init_args"]["batch_size"])
    rounds, turn = given.rounds or (60 if given.size == "digits" else 10 if on_gpu else 7), 10 if on_gpu else 1
    shape = tuple(config["model"]["init_args"]["shape"])
    flip = config["data"]["init_args"].get("flip", False)
    task = Task(shape, batch, "", given.device, turn * (WARM + rounds) + 1, flip, turn)
    who = named(given.against)
    sides = [(name, precision) for precision in given.precision.split(",") for name in ("ours", *who)]
    with tempfile.TemporaryDirectory() as root:
        write_images(given.size, Path(root))
        found = measure(given.size, task, sides, Path(root))
        rows = [row(side, batch, given.device) for side in found]
        for side in found:
            side.stop()
    times = {(side.who, side.precision): median(side.times[WARM:]) for side in found}
    for line, side in zip(rows, found, strict=True):
        for precision in given.precision.split(","):  # how much of diffusers' step in either precision
            other = times.get(("diffusers", precision))
            line[f"of diffusers' {precision}"] = times[side.who, side.precision] / other if other else None
    if "diffusers" in who:
        print(f"\nthe loss on the same weights, images and noise: {same_loss(given.size, shape)}")
    report(
        f"train-{given.size}", machine(given.device) | {"size": given.size, "batch": batch, "rounds": rounds},
        rows, given.json,
    )  # fmt: skip


def row(side: Side, batch: int, device: str) -> dict[str, Any]:
    """A line of the table."""
    value = median(side.times[WARM:])
    work = side.facts["operations"]
    return {
        "trained by": {"lucidrains": "denoising-diffusion-pytorch"}.get(side.who, side.who),
        "precision": side.precision,
        "parameters": side.facts["parameters"],
        "GFLOP an image": work / 1e9,
        "ms a step": 1e3 * value,
        "images/s": batch / value,
        "MFU": work * batch / value / peak(torch.device(device), PRECISIONS[side.precision][1]),
        "GiB": side.memory / 2**30,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
