"""Settings that a resumed run takes from its configuration and not from the checkpoint."""

import copy
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"}


class StatedAnew(Callback):
    """Puts the optimizer's arguments, the schedule of the learning rate and the place in the epoch as configured.

    Lightning restores all three from the checkpoint: the arguments that the optimizer had, the schedule as it was, and
    the number of batches done, which means another place where a step takes another number of them.

    The schedule is stepped from its beginning as often as the optimizer was, so that the rate from step k on is that
    of a run that had this schedule from its first step, whatever the schedule (a few microseconds a step).

    Args:
        rate: the optimizer's arguments and the schedule.
        state: the optimizer's state too, which begins empty: it is of another class.
        batches: the place in the epoch.
    """

    def __init__(self, rate: bool = False, state: bool = False, batches: bool = False) -> None:
        self.rate, self.state, self.batches = rate or state, state, batches
        self._arguments: list[list[dict[str, Any]]] = []

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.rate:
            module.keeps_rate = False  # type: ignore[assignment]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.rate:
            checkpoint["lr_schedulers"] = []
        if self.state:
            checkpoint["optimizer_states"] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Before a state is restored; of optimizers and schedules at step 0."""
        groups = [optimizer.param_groups for optimizer in trainer.optimizers]
        self._arguments = [[{k: copy.copy(v) for k, v in g.items() if k != "params"} for g in gs] for gs in groups]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            _check_moments(optimizer)
        if self.rate:
            self._restate(trainer)
        if self.batches:
            _place(trainer)

    def _restate(self, trainer: Trainer) -> None:
        for optimizer, arguments in zip(trainer.optimizers, self._arguments, strict=True):
            if self.state:
                optimizer.state.clear()
            for group, mine in zip(optimizer.param_groups, arguments, strict=True):
                group.update(mine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that a schedule was stepped before its optimizer
            for config in trainer.lr_scheduler_configs:
                done = trainer.global_step if config.interval == "step" else trainer.current_epoch
                for _ in range(done // config.frequency):
                    config.scheduler.step()  # type: ignore[call-arg]


def _check_moments(optimizer: Any) -> None:
    """Raise ValueError if a restored mean over steps is not of its weights' shape; other state is the optimizer's own.

    torch looks at none of it until a step fails.
    """
    for weights, state in optimizer.state.items():
        for name in MOMENTS & state.keys():
            kept = state[name]
            if kept is not None and getattr(kept, "shape", None) != weights.shape:
                raise ValueError(
                    f"the checkpoint's {name} of the optimizer is {list(getattr(kept, 'shape', ()))}, but its weights "
                    f"are {list(weights.shape)}: use another checkpoint, or start from its weights by --init_from"
                )


def _place(trainer: Trainer) -> None:
    """Counts the batches done as if all steps had taken as many as one takes now."""
    accumulate = trainer.accumulate_grad_batches
    progress = trainer.fit_loop.epoch_loop.batch_progress
    unfinished = progress.total.ready - progress.total.completed  # 1 where the batch's own end saved it
    steps, batches = trainer.global_step, trainer.num_training_batches
    within = steps % max(1, int(batches) // accumulate) if batches != float("inf") else steps
    counts: Any
    for counts, done in ((progress.total, steps), (progress.current, within)):
        counts.ready = counts.started = counts.processed = done * accumulate
        counts.completed = done * accumulate - unfinished
    progress.is_last_batch = False
