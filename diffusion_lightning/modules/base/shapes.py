"""A network as shapes alone: its output shape and operations are found without its memory."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
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
