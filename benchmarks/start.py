"""How long one waits: for an answer of the command, and for the first step of a training.

    python -m benchmarks start [--rounds 2]

From the start of a process, as a person at a terminal feels it; medians of runs in turn, the first of which, that
reads the files from the disk and makes Python's bytecode, does not count.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .measure import machine, options, report
from .train import CONFIGS

SAID = "FIRST STEP"


class FirstStep(Callback):
    """Says when the first step is over."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        print(SAID, time.time(), flush=True)


def waited(words: Sequence[str], root: str, fresh: bool) -> float:
    """Seconds to the first step's end, or to the end of a command that does not train; `fresh` compiles all anew."""
    folder = ["--trainer.default_root_dir", root] if "fit" in words else []
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    if fresh:
        env["TORCHINDUCTOR_CACHE_DIR"] = f"{root}/compiled"
    since = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", *words, *folder],
        capture_output=True, encoding="utf-8", check=False, env=env,
    )  # fmt: skip
    end = time.time()
    said = [line for line in done.stdout.splitlines() if SAID in line]
    if "fit" in words and not said:
        raise RuntimeError(f"{' '.join(words)} trained nothing: {done.stderr}")
    return (float(said[0].split()[-1]) if said else end) - since


def main(args: Sequence[str]) -> None:
    given = options("start", sizes=("digits",)).parse_args(args)
    trains = [
        "fit", "--config", str(CONFIGS / "digits.yaml"), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0",
        "--trainer.logger", "false", "--trainer.callbacks+", "benchmarks.start.FirstStep",
    ]  # fmt: skip
    commands = {
        "--version": ["--version"],
        "a wrong subcommand": ["fti"],
        "score --help": ["score", "--help"],
        "export --help": ["export", "--help"],
        "selftest --help": ["selftest", "--help"],
        "fit, digits.yaml, to the first step's end": trains,
        "the same, compiled for the first time": [*trains, "--model.init_args.compile", "true"],
        "the same, compiled before": [*trains, "--model.init_args.compile", "true"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + (given.rounds or 2)):
        for name, words in commands.items():
            with tempfile.TemporaryDirectory() as root:
                found[name].append(waited(words, root, name.endswith("first time")))
    rows = [{"command": name, "seconds": median(values[1:])} for name, values in found.items()]
    report("start", machine("cpu"), rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
