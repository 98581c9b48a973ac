"""A network as shapes alone: what it returns and counts can be known without its memory."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


def without_memory(network: nn.Module) -> nn.Module:
    """A copy on the device "meta", where a tensor has a shape and a type, and an operation computes no more."""
    return copy.deepcopy(network, {id(x): _empty(x) for x in chain(network.parameters(), network.buffers())})


def _empty(x: Tensor) -> Tensor:
    empty = torch.empty_like(x, device="meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
