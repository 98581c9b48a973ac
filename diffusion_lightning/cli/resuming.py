"""Going on from a checkpoint: what it was trained with is held against the configuration before anything is touched."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from .. import checkpoints, loading
from ..callbacks import StatedAnew
from ..callbacks.checkpoint import VALIDATION
from ..distributed.internals import RESTORES
from ..modules.base.checks import check_rate
from . import changes, run_folder
from .errors import raised_in


class Resumed:
    """The checkpoint that `fit` goes on from.

    Args:
        path: the checkpoint.
        config: the configuration of `fit`; what a run only begins with is taken over from the checkpoint's.
        parser: the one that made it.

    Raises:
        ValueError: if the checkpoint cannot be read, holds no training, or belongs to another one.
    """

    def __init__(self, path: str, config: Namespace, parser: LightningArgumentParser) -> None:
        self.path, self.checkpoint = path, run_folder.opened(path)
        self.step = self.checkpoint.get("global_step", 0)
        self.allowed: list[str] = config.allow_changed or []
        if checkpoints.IMPORTED in self.checkpoint:
            raise ValueError(
                f"{path} holds imported weights and no training to go on with: start from them by --init_from"
            )
        if not self.checkpoint.get("optimizer_states"):
            raise ValueError(
                f"{path} holds weights, but no state of an optimizer to go on with: start from them by --init_from, or "
                "use another checkpoint"
            )
        self.was: dict[str, Any] = {}
        self.now: dict[str, Any] = {}
        if checkpoints.CONFIG in self.checkpoint:
            was = checkpoints.config(self.checkpoint, path)
            config.init_from = was.get("init_from")
            self.now = yaml.safe_load(run_folder.Record(parser, config).text)
            self.was = changes.shared(was, self.now)
        self._checked(None)
        self.over = self._over(config.trainer)

    def _checked(self, world: int | None) -> list[changes.Change]:
        """The changes, each of which can be applied or is allowed; `world` devices, None as the configuration says."""
        if not self.was:
            return []
        batch = changes.global_batch(self.was, self.now, self.checkpoint.get(checkpoints.WORLD), world)
        others = (x for x in changes.compared(self.was, self.now) if x.key not in {y.key for y in batch})
        found = [*others, *batch]
        changes.check(found, self.allowed, self.path, self.step)
        return found

    def _over(self, trainer: Namespace) -> str | None:
        """In words, that the run has all the steps or epochs that it is configured for; None if it has not."""
        loops = self.checkpoint.get("loops", {}).get("fit_loop", {})
        validation = loops.get(VALIDATION, {}).get("total", {})
        if trainer.fast_dev_run or validation.get("started", 0) > validation.get("processed", 0):
            return None
        if 0 < (trainer.max_steps or 0) <= self.step:
            return (
                f"{self.path} is at step {self.step}, already at max_steps {trainer.max_steps}, and nothing was done: "
                "to train longer, give a larger --trainer.max_steps"
            )
        epochs = loops.get("epoch_progress", {}).get("current", {}).get("processed", 0)
        if 0 < (trainer.max_epochs or 0) <= epochs:
            return (
                f"{self.path} has seen {epochs} epochs, already max_epochs {trainer.max_epochs}, and nothing was done: "
                "to train longer, give a larger --trainer.max_epochs"
            )
        return None

    def apply(self, trainer: Trainer, module: LightningModule) -> None:
        """Has the trainer take from the configuration what has changed, and says it in one table.

        Raises:
            ValueError: if a step takes another number of images, the learning rate cannot be stated anew, or the
                weights are another model's.
        """
        loading.check_fits(module, self.checkpoint, self.path)
        found = self._checked(trainer.world_size)
        keys, kinds = {x.key for x in found}, {x.kind for x in found}
        anew = changes.OPTIMIZER in keys or changes.Kind.ANEW in kinds
        if (schedule := changes.rate_schedule(module)) is not None:
            if anew:
                changes.check_stated_anew(schedule, self.path)
            else:
                self._check_schedule(schedule)
        batches = not keys.isdisjoint((*changes.BATCHES, changes.ACCUMULATE))
        trainer.callbacks.insert(0, StatedAnew(anew, changes.OPTIMIZER in keys, batches))  # type: ignore[attr-defined]
        if found and trainer.is_global_zero:
            print(changes.table(found, self.path, self.step), flush=True)

    def _check_schedule(self, schedule: Any) -> None:
        """Raise ValueError if the state of the learning rate's schedule is none of this schedule's."""
        kept = self.checkpoint.get("lr_schedulers")
        if not kept:
            raise ValueError(
                f"{self.path} keeps no place in the learning rate's schedule, but this run has one: use another "
                "checkpoint, or start from its weights by --init_from"
            )
        _check_alike(schedule.state_dict(), kept[0], "lr_schedulers.0", self.path)


def check_length(trainer: Trainer, module: LightningModule) -> None:
    """Raise ValueError if the learning rate's schedule ends before the run does."""
    check_rate(getattr(changes.rate_schedule(module), "total_steps", None), trainer.max_steps)


def _check_alike(own: Any, kept: Any, where: str, path: str) -> None:
    """Raise ValueError if a state that was kept is of other kinds than one's own; numbers may differ, texts may not."""
    number = isinstance(own, int | float) and not isinstance(own, bool)
    kind: Any = (int, float) if number else type(own)
    if own is not None and (not isinstance(kept, kind) or (isinstance(own, str) and own != kept)):
        raise ValueError(
            f"{where} in {path} is {str(kept)[:60]}, but this run's is {str(own)[:60]}: use another checkpoint"
        )
    if isinstance(own, dict):
        for key in own.keys() & kept.keys():
            _check_alike(own[key], kept[key], f"{where}.{key}", path)
    elif isinstance(own, list):
        for index, (mine, theirs) in enumerate(zip(own, kept, strict=False)):
            _check_alike(mine, theirs, f"{where}.{index}", path)


@contextlib.contextmanager
def restoring(path: str | None) -> Iterator[None]:
    """Turns what fails while Lightning restores a checkpoint into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
        sentence = isinstance(error, ValueError) and raised_in(error) == __package__.partition(".")[0]
        if path is None or sentence or RESTORES not in modules:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"the checkpoint {path} holds no state of a training that can be restored ({reason}): use another, or "
            f"start from its weights by --init_from {path}"
        ) from error
