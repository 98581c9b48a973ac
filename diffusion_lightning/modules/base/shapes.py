"""A network as shapes alone: its output shape and operations are found without its memory."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from ...conditioning.base import Embedded, cast


def without_memory(network: nn.Module) -> nn.Module:
    """A copy on the device "meta", where a tensor has a shape and a type, and an operation computes no more."""
    return copy.deepcopy(network, {id(x): _empty(x) for x in chain(network.parameters(), network.buffers())})


def _empty(x: Tensor) -> Tensor:
    empty = torch.empty_like(x, device="meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def operations(network: nn.Module, shape: Sequence[int], c: Embedded = None) -> int:
    """Operations of a network on one image of `shape` (C, H, W): matmuls and convolutions, two a multiply-add.

    Counted from its definition, even if a device saves some. Attention is counted, elementwise operations are not. If
    PyTorch can follow the shapes alone, no numbers are computed.
    """
    try:
        return _counted(without_memory(network), torch.device("meta"), shape, c)
    except Exception:  # whatever an operation raises that must see numbers
        return _counted(network, next(network.parameters()).device, shape, c)


def _counted(network: nn.Module, device: torch.device, shape: Sequence[int], c: Embedded) -> int:
    image, index = torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.long, device=device)
    was_training = network.training
    network.eval()
    try:
        # Gradients as in training: without, PyTorch's own layers of transformers are one operation that is not counted.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            network.forward(image, index, cast(c, device=device))  # not by a call, which may be compiled
    finally:
        network.train(was_training)
    return counter.get_total_flops()


def made_on_meta(make: Callable[[], Any], parameters: int, name: str) -> Any:
    """The module that a file describes, made on the device "meta", where tensors have a shape and no memory.

    Raises:
        ValueError: if it cannot be made, or has far more parameters (tensors) than the number given.
    """
    try:
        with _at_most(parameters), torch.device("meta"):
            return make()
    except (RuntimeError, TypeError, ArithmeticError, LookupError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be made ({reason}): use another checkpoint") from error


@contextmanager
def _at_most(n: int) -> Iterator[None]:
    """Raise ValueError in the block as soon as it has made twice as many parameters as a file holds."""
    made = 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > 2 * n + 16:  # a tensor of several names, or one that is replaced while the network is made
            raise ValueError(f"the record describes a network of more parameters than the {n} that the file holds")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
