"""Lightning's private parts that this package needs: every access, each with its reason.

A new version of Lightning is tried here first; `tests/test_floors.py` allows such names nowhere else.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer

RESTORES = "lightning.pytorch.trainer.connectors.checkpoint_connector"  # the module that restores a checkpoint


def leave_signals(trainer: Trainer) -> None:
    """Keeps Lightning from handling signals.

    Its handlers would leave without a checkpoint, or requeue with one in the middle of a step; and every batch it asks
    the first process for its flag, for which each step waits for the device.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that ends now is one after which Lightning validates: its own rule, of four options."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def count_steps_as_done(trainer: Trainer) -> None:
    """Set the step with which loggers label their rows to the optimizer's.

    A checkpoint that was saved after Lightning had counted the batch, as at the end of a run that ends with a
    validation, is counted again if a run goes on from it.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def restored_step(trainer: Trainer) -> int | None:
    """The step of the checkpoint that is being restored, before the loops have it; None for a fresh run."""
    return trainer._checkpoint_connector._loaded_checkpoint.get("global_step")


def has_trainer(module: LightningModule) -> bool:
    """Whether a module is attached to a trainer; `module.trainer` raises if it is not."""
    return module._trainer is not None


def timeout(trainer: Trainer) -> timedelta | None:
    """How long processes wait for each other; None if a strategy has no such limit."""
    return getattr(trainer.strategy, "_timeout", None)


def set_timeout(trainer: Trainer, limit: timedelta) -> None:
    """Sets it before the processes have met; a strategy takes it at its construction alone."""
    strategy: Any = trainer.strategy
    strategy._timeout = limit


class Sizes(NamedTuple):
    """Over how many devices a `ModelParallelStrategy` shares the batch, and cuts layers; or `auto`."""

    data: int | str
    tensor: int | str


def parallel_sizes(strategy: Any) -> Sizes:
    """As the user gave them, before the processes meet."""
    return Sizes(strategy._data_parallel_size, strategy._tensor_parallel_size)


def shard_over_all(strategy: Any, devices: int) -> None:
    """Shards over all devices, and writes checkpoints of one file that any number of them can read.

    `auto` means a shard a node, and the format of files is the strategy's own choice otherwise.
    """
    strategy._data_parallel_size, strategy._tensor_parallel_size = devices, 1
    strategy._save_distributed_checkpoint = False


def graph_is_static(strategy: Any) -> bool:
    """Whether DDP's `static_graph` is set: every step's graph is the first one's."""
    return bool(strategy._ddp_kwargs.get("static_graph"))
