"""Leave a run on a signal, at an optimizer step that is saved first; nothing is done twice or lost."""

import signal
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.trainer.states import TrainerFn

from ..distributed import internals, preemption


class Saves(Protocol):
    """The interface of what writes checkpoints and registers them with `preemption.keeps`: `Checkpoint`."""

    def save(self, trainer: Trainer) -> None: ...


class Preemption(CheckpointBase):
    """On SIGUSR1, SIGTERM, SIGHUP or Ctrl-C, save `last.ckpt` after this step or the next, and leave.

    The processes agree: each step they add up their flags, on the CPU and in the background, and look at the sum a
    step later, so that no step waits for it. A signal in a validation, sampling included, is answered at once: it
    began with a checkpoint and is done again. The command then requeues the job (SLURM) or exits with status 75, or 130
    after a Ctrl-C.

    It is a checkpointing callback, since these come after all others, and is added after `Checkpoint`.

    Args:
        checkpoint: saves; None if nothing is trained, so that the run is left at once.
    """

    def __init__(self, checkpoint: Saves | None = None) -> None:
        self.checkpoint = checkpoint
        self._sum: tuple[torch.Tensor, Any] | None = None
        self._agreed = self._leaving = False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        internals.leave_signals(trainer)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        limit = internals.timeout(trainer)  # a group has its own, of half an hour
        self._group: Any = dist.new_group(backend="gloo", timeout=limit) if trainer.world_size > 1 else None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step
        preemption.hold()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, done = trainer.global_step, self._step
        if step == done:
            return
        self._step = step
        self._agreed = self._any_signalled()
        if self._agreed and step != trainer.max_steps and not internals.validation_follows(trainer):
            if self.checkpoint is not None:
                self.checkpoint.save(trainer)
            self._leaving = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._leaving:  # by now the saved step is logged
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> NoReturn:
        raise preemption.Preempted(f" at step {trainer.global_step}")

    def _any_signalled(self) -> bool:
        """Whether any rank had a signal by the step before."""
        if self._group is None:
            return preemption.signalled()
        signalled = False
        if self._sum is not None:
            total, work = self._sum
            work.wait()
            signalled = bool(total)
        total = torch.tensor(float(preemption.signalled()))
        self._sum = total, dist.all_reduce(total, group=self._group, async_op=True)
        return signalled

    # A validation: begun with a checkpoint, repeated as a whole

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            if self._agreed:
                self._leave(trainer)
            preemption.release()

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Last of the callbacks, and before anything is logged.
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            preemption.hold()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._sum is not None:
            self._sum[1].wait()
        preemption.finish()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        preemption.finish()
        if isinstance(exception, preemption.Preempted):
            for logger in trainer.loggers:
                if hasattr(logger, "preempting") and trainer.state.fn == TrainerFn.FITTING:
                    logger.preempting(trainer.global_step)
            launcher: Any = trainer.strategy.launcher
            if launcher is not None:  # the processes that Lightning started
                launcher.kill(signal.SIGTERM)
                if watched := getattr(launcher, "procs", []):  # by Lightning, which kills this one once they are over
                    launcher.procs = [*watched]
                    watched.clear()
