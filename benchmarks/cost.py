"""What a step of the command's `fit` costs beside a bare loop: exact draws, callbacks, Lightning's loop, in one run.

    python -m benchmarks cost --size digits|cifar10 [--precision float32|bfloat16]

The same network, optimizer, clip and average on images in memory, each in a process of its own, a step each in turn,
on a GPU ten: a loop of a dozen lines with PyTorch's draws; the same with draws that are functions of (seed, step,
sample); `fit` without callbacks; `fit` with those of the recipe that act in training. A row's share is what it adds to
the one above.
"""

import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lightning import random
from diffusion_lightning.cli import main as command
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base import memory as kept
from diffusion_lightning.schedules import Cosine

from .gains import Step
from .measure import machine, options, report
from .peers import Task
from .train import PRECISIONS, WARM, Turns, answer, facts, measure, recipe, write_config, write_images

SIDES = {
    "a bare loop": "the step itself",
    "the same with exact draws": "exact draws",
    "fit without callbacks": "Lightning's loop, the order of the images, the metrics",
    "fit": "callbacks",
}


class Bare:
    """The loop that one would write by hand."""

    def __init__(self, size: str, task: Task, images: Tensor, exact: bool) -> None:
        reduced = PRECISIONS[task.precision][1] is torch.bfloat16
        self.step = Step(size, task.batch, task.device, reduced)
        self.module = Diffusion(self.step.net, Cosine(), task.shape).to(task.device)
        if task.device.startswith("cuda"):
            self.module.compile()
        self.images, self.exact, self.done = images.to(task.device), exact, 0
        kept.keep_freed()

    def __call__(self) -> None:
        step, device = self.step, self.images.device
        b = len(step.x_t)
        x_0 = self.images[torch.randint(len(self.images), (b,), device=device)].float() / 127.5 - 1
        if self.exact:
            random.seed_generator(device, random.state(0, "training: dropout", self.done, 0, 0))
            sample = torch.arange(b, device=device)
            t, _ = self.module.timesteps(self.module.schedule, random.Draw(0, "training", self.done, sample), b)
            eps = random.normal(x_0.shape[1:], 0, "training: eps", self.done, sample)
        else:
            t, eps = torch.randint(1, 1001, (b,), device=device), torch.randn_like(x_0)
        step.x_t, step.index, step.eps = self.module.schedule.q_sample(x_0, t, eps), t - 1, eps
        step()
        self.done += 1


def serve(talk: Connection, who: str, size: str, task: Task, root: Path) -> None:
    """A process, as the one of `train`."""
    if who.startswith("fit"):
        Turns.talk, Turns.turn = talk, task.turn
        callbacks = ("LossByTimestep", "Throughput") if who == "fit" else ()
        command(["fit", "--config", str(write_config(size, task, root, callbacks, who.replace(" ", "_")))])
        return
    pixels = np.load(root / "images.npz")["images"]
    images = torch.from_numpy(pixels).view(len(pixels), *pixels.shape[1:3], -1).movedim(3, 1).contiguous()
    loop = Bare(size, task, images, "exact" in who)
    talk.send(facts(loop.step.net, task.shape))
    answer(talk, loop, task)


def main(args: Sequence[str]) -> None:
    parser = options("cost")
    parser.add_argument("--precision", default="float32", choices=tuple(PRECISIONS))
    given = parser.parse_args(args)
    small, config = given.size == "digits", recipe(given.size)
    on_gpu = given.device.startswith("cuda")
    batch, turn = given.batch or (128 if small or on_gpu else 16), 10 if on_gpu else 1
    rounds = given.rounds or (100 if small else 7)
    shape = tuple(config["model"]["init_args"]["shape"])
    task = Task(shape, batch, "", given.device, turn * (WARM + rounds) + 1, False, turn)
    with tempfile.TemporaryDirectory() as root:
        write_images(given.size, Path(root))
        found = measure(given.size, task, [(who, given.precision) for who in SIDES], Path(root), serve)
        for side in found:
            side.stop()
    times = [median(side.times[WARM:]) for side in found]
    rows: list[dict[str, Any]] = [
        {"trained by": side.who, "adds": SIDES[side.who], "ms a step": 1e3 * time, "share": (time - before) / times[0]}
        for side, time, before in zip(found, times, [0.0, *times], strict=False)
    ]
    about = {"size": given.size, "batch": batch, "precision": given.precision, "rounds": rounds}
    report(f"cost-{given.size}-{given.precision}", machine(given.device) | about, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
