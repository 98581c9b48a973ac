"""What other busy processes cost a small network, with the command's settings of threads and without, in one run.

    python -m benchmarks shared [--busy 0 1 2] [--rounds 3] [--seconds 2]

The network of configs/digits.yaml: a training step at batch 128, and 64 images in 20 steps of DDIM. Beside it so many
processes that do nothing but use a core each. Each side is a process of its own: as the command sets its threads, as
torch does by itself, and on one thread; in turns, medians. Ratios are to torch's own on the idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from diffusion_lightning.distributed import (
    threads,  # and nothing here that loads torch, before which the settings are made
)

ROOT = Path(__file__).parent.parent
SIDES = {"the command's": {}, "torch's own": {}, "one thread": {"OMP_NUM_THREADS": "1"}}
WORK = ("ms a step", "ms of 64 images")
FEWEST, LONGEST = 3, 3  # turns of each, unless they take so many times the seconds asked for


def work(side: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step and of the images in this process, and its number of threads."""
    if side == "the command's":
        threads.settle()
    import torch

    from diffusion_lightning.modules import Diffusion
    from diffusion_lightning.modules.base import memory
    from diffusion_lightning.random import Draw
    from diffusion_lightning.records import read
    from diffusion_lightning.samplers import DDIM

    from .measure import complete

    memory.keep_freed()
    torch.manual_seed(0)
    model: Any = read(complete(ROOT / "configs/digits.yaml")["model"], Diffusion, "model").make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    x_0, sample, sampler = torch.rand(128, 1, 8, 8) * 2 - 1, torch.arange(128), DDIM(20)

    def step() -> None:
        model._losses(x_0, 1 + sample, Draw(0, "training", 0, sample)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    made = [_median(step, seconds), _median(lambda: model.generate(64, sampler), seconds)]
    return dict(zip(WORK, made, strict=True)) | {"threads": torch.get_num_threads()}


def _median(do: Callable[[], Any], seconds: float) -> float:
    do()
    found: list[float] = []
    while sum(found) < 1e3 * seconds or (len(found) < FEWEST and sum(found) < LONGEST * 1e3 * seconds):
        start = time.perf_counter()
        do()
        found.append(1e3 * (time.perf_counter() - start))
    return median(found)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that use a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(side: str, seconds: float) -> dict[str, Any]:
    """What a process of a side measures; it has none of this environment's own settings of threads."""
    clean = {k: v for k, v in os.environ.items() if k.partition("_")[0] not in ("OMP", "GOMP", "KMP", "MKL")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shared", "work", side, str(seconds)],
        capture_output=True, encoding="utf-8", check=False, cwd=ROOT, env={**clean, **SIDES[side]},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(args: Sequence[str]) -> None:
    if args[:1] == ["work"]:
        print(json.dumps(work(args[1], float(args[2]))))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks shared")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="processes beside it, each in turn")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement, at least")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    given = parser.parse_args(args)
    found: dict[tuple[int, str], list[dict[str, Any]]] = {key: [] for key in product(given.busy, SIDES)}
    for _ in range(given.rounds):
        for (count, side), values in found.items():
            with busy(count):
                values.append(measured(side, given.seconds))

    from .measure import machine, report

    medians = {key: {name: median(x[name] for x in values) for name in WORK} for key, values in found.items()}
    base = medians[given.busy[0], "torch's own"]
    rows: list[dict[str, Any]] = []
    for (count, side), value in medians.items():
        row: dict[str, Any] = {"busy": count, "threads as": side, "threads": found[count, side][0]["threads"]}
        for name in WORK:
            row |= {name: value[name], f"{name}, ratio": value[name] / base[name]}
        rows.append(row)
    facts = machine("cpu")
    del facts["threads"]  # of this process, which measures nothing
    report("shared", facts | {"rounds": given.rounds}, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
