"""Whether a change left every bit where it was: twenty steps and some samples, by an earlier commit and by this tree.

    uv run python -m benchmarks identical COMMIT

Three small trainings, each by both sides in processes of their own: `digits` as configured; an IDDPM hybrid with
loss-aware times and two batches a step; a class-conditional DiT. Compared are the logged losses, all weights with their
average, and samples. Bits differ between processors, so both sides run here, one after the other, half a minute each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from .measure import machine

ROOT = Path(__file__).parent.parent
NAMES = ("losses", "weights", "average", "samples")
IDDPM = [
    "--model.network.out_channels", "2", "--model.schedule.T", "40", "--model.timesteps", "LossAware",
    "--model.timesteps.history", "1", "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "64",
]  # fmt: skip
DIT = [
    "--model.network", "DiT", "--model.network.in_channels", "1", "--model.network.size", "8", "--model.network.patch",
    "2", "--model.network.width", "64", "--model.network.depth", "2", "--model.network.heads", "2",
    "--model.conditioner", "ClassLabels", "--model.conditioner.classes", "10", "--model.conditioner.width", "64",
]  # fmt: skip
CASES = {"digits": [], "IDDPM hybrid": IDDPM, "class-conditional DiT": DIT}
STEPS = [
    "--trainer.max_steps", "20", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "10",
    "--trainer.logger", "false", "--trainer.callbacks", "[]", "--trainer.enable_progress_bar", "false",
    "--checkpoint.monitor", "null", "--model.lr_scheduler", "null", "--model.compile", "false",
]  # fmt: skip

WORK = """
import hashlib, json, sys
from pathlib import Path

import torch
from diffusion_lightning import load
from diffusion_lightning.cli import main
from diffusion_lightning.samplers import DDIM, Ancestral


def digest(tensors):
    found = hashlib.sha256()
    for x in tensors.values():  # without their names, which a change may have made better ones
        found.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


config, folder, out, *words = sys.argv[1:]
main(["fit", "--config", config, "--trainer.default_root_dir", folder, *words])
last = Path(folder, "checkpoints/last.ckpt")
checkpoint, model = torch.load(last, weights_only=True), load(last)
rows = Path(folder, "metrics.csv").read_text().splitlines()
head = rows[0].split(",")
kept = [head.index(name) for name in ("step", "train/loss", "val/loss")]
losses = [",".join(row.split(",")[k] for k in kept) for row in rows]
samples = {name: model.generate(4, sampler) for name, sampler in (("ddim", DDIM(5)), ("ancestral", Ancestral(5)))}
Path(out).write_text(json.dumps({
    "losses": hashlib.sha256("\\n".join(losses).encode()).hexdigest(),
    "weights": digest(checkpoint["state_dict"]),
    "average": digest(checkpoint["callbacks"]["EMA"]["average"]),
    "samples": digest(samples),
    "last": rows[-1] and losses[-1],
}))
"""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks identical", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit", help="the earlier one")
    commit = parser.parse_args(words).commit
    print(machine("cpu"))
    with tempfile.TemporaryDirectory() as at:
        before = Path(at, "before")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", before, commit], cwd=ROOT, check=True)
        try:
            config = before / "configs/digits.yaml"
            same = [compared(case, config, Path(at), {"before": before, "after": ROOT}) for case in CASES]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    raise SystemExit(0 if all(same) else f"not every bit is that of {commit}")


def compared(case: str, config: Path, at: Path, sides: dict[str, Path]) -> bool:
    """Runs a case by both sides, with the earlier configuration; prints a row, and says whether all is the same."""
    found, named = [], yaml.safe_load(config.read_text(encoding="utf-8"))
    watched = [word for key in ("grid", "metrics", "chain") if key in named for word in (f"--{key}", "null")]
    for side, tree in sides.items():
        out, folder = at / "out.json", at / f"{side} {case}"
        subprocess.run(
            [sys.executable, "-c", WORK, config, folder, out, *STEPS, *watched, *CASES[case]],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found.append(json.loads(out.read_text(encoding="utf-8")))
    rows = [f"{name} {'the same' if found[0][name] == found[1][name] else 'DIFFERENT'}" for name in NAMES]
    print(f"{case}: {', '.join(rows)} (last row: {found[1]['last']})", flush=True)
    return all(found[0][name] == found[1][name] for name in NAMES)
