"""A network made ready for its device before training or evaluation: memory, memory format, code, shards."""

from typing import Any

from torch import nn

from ...distributed import fsdp
from . import compiling, memory


def prepare(network: nn.Module, trainer: Any, compiled: bool) -> None:
    """Set a network's fastest memory format, if it has `set_memory_format(device, reduced, compiled)`.

    Args:
        network: a module's.
        trainer: whose device and precision it is for.
        compiled: whether it is to be compiled for training.
    """
    device = trainer.strategy.root_device
    if device.type == "cpu":
        memory.keep_freed()
    if (set_memory_format := getattr(network, "set_memory_format", None)) is not None:
        set_memory_format(device, not str(trainer.precision).startswith(("32", "64")), compiled)


def configure(module: Any, network: nn.Module, parts: list[tuple[nn.Module, str]], compiles: bool) -> None:
    """Compile a network if `compiles`; shard a module's parts, once, if the strategy is FSDP2's."""
    trainer, sharded = module.trainer, fsdp.shards(module.trainer)
    if compiles:
        # A recorded backward pass gives gradients that live until the next one, and cannot be added to.
        graphs = trainer.accumulate_grad_batches == 1 and trainer.world_size == 1
        compiling.compile_network(network, trainer.strategy.root_device, sharded, graphs)
    if sharded and not module.whole.parts:
        module.whole.parts = fsdp.shard(module, parts, module.device_mesh["data_parallel"])
