"""`diffusion-lightning average`: an average of a run's weights whose length is chosen after the training."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints
from ..callbacks.base import profiles
from ..callbacks.checkpoint import AtomicIO
from ..callbacks.power_ema import LENGTHS
from ..files import check_file


def main(given: Namespace) -> None:
    """Writes a checkpoint of the average, which `load`, `predict` and `validate` take."""
    root, out = Path(given.run), Path(given.out)
    check_file(out)
    last = checkpoints.read(root / "checkpoints/last.ckpt")
    files = snapshots(root)
    step = given.step if given.step is not None else max(files)
    average = averaged(files, given.sigma_rel, step)
    weights: dict[str, Tensor] = last["state_dict"]
    if stray := sorted(average.keys() - weights.keys()):
        raise ValueError(
            f"the snapshots in {root / 'averages'} hold {stray[0]}, which the run's last checkpoint has not: use "
            "snapshots and a checkpoint of one run"
        )
    weights |= {name: x.to(weights[name].dtype) for name, x in average.items()}
    made = {key: last[key] for key in (checkpoints.CONFIG, checkpoints.CLASSES, checkpoints.LIGHTNING) if key in last}
    source = f"{root}, averaged at step {step} with sigma_rel {given.sigma_rel:g}"
    made |= {"state_dict": weights, "global_step": step, "epoch": 0, checkpoints.IMPORTED: source}
    AtomicIO().save_checkpoint(made, out)
    print(f"wrote {out}: {source}, of {len(files)} snapshots")


def snapshots(root: Path) -> dict[int, Path]:
    """The files of a run's snapshots by their steps.

    Raises:
        ValueError: if there are none.
    """
    found = {
        int(path.stem.removeprefix("step=")): path
        for path in (root / "averages").glob("step=*.ckpt")
        if path.stem.removeprefix("step=").isdigit()
    }
    if not found:
        raise ValueError(
            f"{root / 'averages'} holds no snapshots: train with --trainer.callbacks+ PowerEMA, which writes them"
        )
    return dict(sorted(found.items()))


def averaged(files: dict[int, Path], sigma_rel: float, step: int) -> dict[str, Tensor]:
    """The parameters of the average of a length at a step, float32: a sum of snapshots, one in memory at a time."""
    lengths = {at: _lengths(checkpoints.read(path), path) for at, path in files.items()}
    kept = [(profiles.exponent(length), at) for at in files for length in lengths[at]]
    shares = iter(profiles.weights(kept, [(profiles.exponent(sigma_rel), step)])[:, 0].tolist())
    total: dict[str, Tensor] = {}
    for at, path in files.items():
        tensors = checkpoints.read(path)["state_dict"]
        for track in range(len(lengths[at])):
            share, prefix = next(shares), f"{track}."
            for name in (name for name in tensors if name.startswith(prefix)):
                own, x = name.removeprefix(prefix), tensors[name].float()
                total[own] = total.get(own, torch.zeros_like(x)) + share * x
    return total


def _lengths(file: dict[str, Any], path: Path) -> list[float]:
    lengths = file.get(LENGTHS)
    if not isinstance(lengths, list) or not lengths or not all(isinstance(x, float) for x in lengths):
        raise ValueError(f"{path} states no lengths of its averages, so it is no snapshot: move it away")
    return lengths
