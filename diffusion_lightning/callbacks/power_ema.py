"""Averages of the weights from whose snapshots one of any length is made after the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..distributed.fsdp import gathered, like_shards, local
from ..files import written
from .base import profiles
from .base.folder import dispensable

LENGTHS = "sigma_rel"  # of the averages in a snapshot, whose tensors' names begin with their place among these


class PowerEMA(Callback):
    """Keeps θ̄ ← β_k·θ̄ + (1 - β_k)·θ, β_k = (1 - 1/k)^(γ+1), for each of two γ, and writes snapshots of both.

    The averages' lengths are fractions of the training so far, and the initial weights never count. A snapshot,
    `averages/step=<n>.ckpt` in the run's folder, holds both in half precision; where there are more than `keep`, every
    second one goes and the distance doubles. `diffusion-lightning average` makes an average of any length of them.
    Beside `EMA`, which validations and samples see.

    Paper: Analyzing and improving the training dynamics of diffusion models. Karras et al., 2023, arXiv 2312.02696,
    section 3.

    Args:
        sigma_rel: the relative deviation of each average, in (0, 0.2887): 0.05 is some tenth of the training so far.
        every_n_train_steps: optimizer steps between two snapshots, at least 1.
        keep: how many snapshots stay, at least 2.
    """

    def __init__(
        self, sigma_rel: Sequence[float] = (0.05, 0.10), every_n_train_steps: int = 1000, keep: int = 32
    ) -> None:
        if every_n_train_steps < 1 or keep < 2:
            raise ValueError(
                f"every_n_train_steps is {every_n_train_steps} and keep is {keep}, but an average of any length is "
                "made of several snapshots: give every_n_train_steps ≥ 1 and keep ≥ 2"
            )
        self.sigma_rel = [float(x) for x in sigma_rel]
        self.gammas = [profiles.exponent(x) for x in self.sigma_rel]
        self.every_n_train_steps, self.keep = every_n_train_steps, keep
        self.averages: list[dict[str, Tensor]] = []
        self.updates = 0

    def distance(self, step: int) -> int:
        """Steps between two snapshots of a run at a step: the first doubling by which no more than `keep` stay."""
        distance = self.every_n_train_steps
        while step // distance > self.keep:
            distance *= 2
        return distance

    @torch.no_grad()
    def update(self, module: LightningModule) -> None:
        """One step of each average."""
        self.updates += 1
        parameters = dict(module.named_parameters())
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            kept = [local(x) for x in average.values()]
            current = [local(parameters[name].detach()).float() for name in average]
            torch._foreach_lerp_(kept, current, 1 - profiles.decay(gamma, self.updates))

    # After a checkpoint was restored

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        start = {name: p.detach().float().clone() for name, p in module.named_parameters() if p.requires_grad}
        sources = self.averages or [start for _ in self.gammas]
        shapes = {name: p.shape for name, p in start.items()}
        if any({name: x.shape for name, x in source.items()} != shapes for source in sources):
            raise ValueError(
                "the checkpoint's averages of PowerEMA are of other parameters than the model's: resume with the model "
                "that the checkpoint was made with"
            )
        self.averages = [
            {name: like_shards(source[name], of=p).clone() for name, p in start.items()} for source in sources
        ]
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self._thin(trainer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.update(module)
        if self._step % self.distance(self._step) == 0:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """A collective call if the parameters are sharded."""
        whole = [gathered(average) for average in self.averages]
        if trainer.is_global_zero:
            halves = {
                f"{track}.{name}": x.half().cpu() for track, average in enumerate(whole) for name, x in average.items()
            }
            file = folder(trainer) / f"step={self._step}.ckpt"
            with dispensable(file), written(file) as stream:
                torch.save({"state_dict": halves, "global_step": self._step, LENGTHS: self.sigma_rel}, stream)
            self._thin(trainer, self._step)

    def _thin(self, trainer: Trainer, step: int) -> None:
        """Removes the snapshots that are too many, and those of steps that a resumed run does again."""
        for path in folder(trainer).glob("step=*.ckpt"):
            at = int(path.stem.removeprefix("step="))
            if at > step or at % self.distance(step):
                path.unlink()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """A collective call if the parameters are sharded; then only rank 0 has the averages."""
        return {
            "updates": self.updates,
            "sigma_rel": self.sigma_rel,
            "averages": [gathered(average) for average in self.averages],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        lengths, updates, averages = (state_dict.get(key) for key in ("sigma_rel", "updates", "averages"))
        if lengths != self.sigma_rel:
            raise ValueError(
                f"the checkpoint's averages have sigma_rel {lengths}, but this run's have {self.sigma_rel}: give the "
                "earlier lengths"
            )
        if type(updates) is not int or updates < 0 or not _are_tensors(averages, len(self.sigma_rel)):
            raise ValueError(
                f"the checkpoint's state of PowerEMA is no {len(self.sigma_rel)} averages and a number of updates: use "
                "another checkpoint"
            )
        self.updates = updates
        self.averages = [{name: x.float() for name, x in average.items()} for average in averages]


def _are_tensors(averages: Any, number: int) -> TypeGuard[list[dict[str, Tensor]]]:
    return (
        isinstance(averages, list)
        and len(averages) == number
        and all(isinstance(average, dict) for average in averages)
        and all(isinstance(x, Tensor) and x.is_floating_point() for average in averages for x in average.values())
    )


def folder(trainer: Trainer) -> Path:
    """Where a run's snapshots lie."""
    return Path(trainer.default_root_dir) / "averages"
