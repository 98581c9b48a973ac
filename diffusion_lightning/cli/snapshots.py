"""The snapshots of a run's averages, and averages of any length as sums of them."""

import math
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints, frozen
from ..callbacks.base import profiles
from ..callbacks.power_ema import LENGTHS

MISFIT = 0.1  # how far a sum's profile may lie from that of its length, relative to it, both as √∫f² dτ


class Snapshots:
    """The files in `averages/` of a run's folder.

    Args:
        root: the run's folder.

    Raises:
        ValueError: if it is not there, or holds none, or one that `PowerEMA` did not write.
    """

    def __init__(self, root: Path) -> None:
        self.root, folder = root, root / "averages"
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}, but averages are made of a run's snapshots: give its folder")
        named = [(path.stem.removeprefix("step="), path) for path in folder.glob("step=*.ckpt")]
        self.files = dict(sorted((int(step), path) for step, path in named if step.isdigit()))
        if not self.files:
            raise ValueError(
                f"{folder} holds no snapshots: train with --trainer.callbacks+ PowerEMA, which writes them"
            )
        self.lengths = {step: _lengths(checkpoints.read(path), step, path) for step, path in self.files.items()}
        self.kept = [(profiles.exponent(x), step) for step, lengths in self.lengths.items() for x in lengths]

    @property
    def last(self) -> int:
        """The step of the last one."""
        return max(self.files)

    @property
    def own(self) -> list[float]:
        """The lengths of the averages in the last one."""
        return self.lengths[self.last]

    @cached_property
    def contents(self) -> list[int]:
        """The checksums of all that is in them."""
        found = []
        for path in self.files.values():
            with zipfile.ZipFile(path) as file:
                found += [entry.CRC for entry in file.infolist()]
        return found

    def misfit(self, lengths: list[float], step: int) -> Tensor:
        """(len(lengths),): √(∫(f - Σ x_i·f_i)² dτ/∫f² dτ), how far the sum for each length lies from what it is of."""
        wanted = [(profiles.exponent(length), step) for length in lengths]
        x = profiles.weights(self.kept, wanted)
        (gamma, t), (gamma_w, t_w) = (torch.tensor(of, dtype=torch.float64).T for of in (self.kept, wanted))
        square = profiles.overlaps(gamma_w, t_w, gamma_w, t_w).diagonal()
        both = (x * profiles.overlaps(gamma, t, gamma_w, t_w)).sum(0)
        own = (x * (profiles.overlaps(gamma, t, gamma, t) @ x)).sum(0)
        return ((square - 2 * both + own).clamp(min=0) / square).sqrt()

    def span(self, step: int) -> tuple[float, float]:
        """The shortest and the longest average at a step that sums of these snapshots come near to."""
        tried = torch.logspace(-3, math.log10(0.999 * profiles.LONGEST), 200, dtype=torch.float64)
        near = tried[self.misfit(tried.tolist(), step) <= MISFIT].tolist()
        near += [length for length in self.own if float(self.misfit([length], step)[0]) <= MISFIT]
        if not near:
            raise ValueError(
                f"the {len(self.files)} snapshots in {self.root / 'averages'} come near to no average at step {step}: "
                f"give --step {self.last}"
            )
        return min(near), max(near)

    def check(self, length: float, step: int) -> None:
        """Raise ValueError if no sum of these snapshots comes near to an average of this length."""
        if float(self.misfit([length], step)[0]) > MISFIT:
            shortest, longest = self.span(step)
            raise ValueError(
                f"sigma_rel is {length:g}, but sums of the {len(self.files)} snapshots in {self.root / 'averages'} "
                f"come near to averages from {shortest:.2g} to {longest:.2g} at step {step}: give one of these, or "
                "train with a smaller every_n_train_steps of PowerEMA"
            )

    def averaged(self, length: float, step: int, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of the average of a length at a step, float32: a sum of snapshots, one in memory at a time.

        Args:
            length: its σ_rel.
            step: at which it ends.
            like: the weights of the run's model.

        Raises:
            ValueError: if the snapshots are of other weights, or the sum is not finite.
        """
        shares = iter(profiles.weights(self.kept, [(profiles.exponent(length), step)])[:, 0].tolist())
        total: dict[str, Tensor] = {}
        for at, path in self.files.items():
            tensors = checkpoints.read(path)["state_dict"]
            for track in range(len(self.lengths[at])):
                share, prefix = next(shares), f"{track}."
                own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
                _check_same(own, total or own, like, path)
                for name, x in own.items():
                    total[name] = total.get(name, torch.zeros_like(x, dtype=torch.float32)) + share * x.float()
        if broken := [name for name, x in total.items() if not x.isfinite().all()]:
            raise ValueError(
                f"the average of {broken[0]} is not finite (NaN or infinite), since a snapshot in "
                f"{self.root / 'averages'} is not: move those away from which on it is not"
            )
        return total

    def checkpoint(self, last: dict[str, Any], length: float, step: int) -> dict[str, Any]:
        """The content of a checkpoint of an average.

        Args:
            last: that of the run's last one, which has the configuration and what is not averaged.
            length: the average's σ_rel.
            step: at which it ends.
        """
        weights: dict[str, Tensor] = last["state_dict"]
        found = self.averaged(length, step, weights)
        kept = (checkpoints.CONFIG, checkpoints.CLASSES, checkpoints.LIGHTNING, frozen.KEY)
        return {
            **{key: last[key] for key in kept if key in last},
            "state_dict": weights | {name: x.to(weights[name].dtype) for name, x in found.items()},
            "global_step": step,
            "epoch": 0,
            checkpoints.IMPORTED: f"{self.root}, averaged at step {step} with sigma_rel {length:g}",
        }


def _lengths(file: dict[str, Any], step: int, path: Path) -> list[float]:
    lengths = file.get(LENGTHS)
    if not isinstance(lengths, list) or not lengths or not all(isinstance(x, float) for x in lengths):
        raise ValueError(f"{path} states no lengths of its averages, so it is no snapshot: move it away")
    if len(set(lengths)) < len(lengths) or file.get("global_step") != step:
        raise ValueError(
            f"{path} says that it holds averages of lengths {lengths} at step {file.get('global_step')}, which is not "
            "one of each at the step of its name: move it away"
        )
    return lengths


def _check_same(own: dict[str, Tensor], first: dict[str, Tensor], like: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError unless an average's tensors are those of the others, and of the run's model."""
    shapes = {name: list(x.shape) for name, x in like.items()}
    for name in [*own, *(name for name in first if name not in own)]:
        here, there = list(own[name].shape) if name in own else None, shapes.get(name)
        if here != there or name not in first:
            raise ValueError(
                f"{path} is no snapshot of this run: its {name} is {here or 'missing'}, but in the others, or in the "
                f"run's last checkpoint, it is {there if name in first else 'missing'}; move it away"
            )
    if not own:
        raise ValueError(f"{path} states more averages than it holds: move it away")
