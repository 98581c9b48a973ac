"""Modules of which only shapes are wanted, made without memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


def made_on_meta(make: Callable[[], Any], parameters: int, name: str) -> Any:
    """The module that a file describes, made on the device "meta", where tensors have a shape and no memory.

    Raises:
        ValueError: if it cannot be made, or has far more parameters (tensors) than the number given.
    """
    try:
        with _at_most(parameters), torch.device("meta"):
            return make()
    except (RuntimeError, TypeError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
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
