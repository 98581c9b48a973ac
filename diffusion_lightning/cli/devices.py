"""The option `--device`."""

from collections.abc import Sequence

import torch


def chosen(name: str | None, accelerators: Sequence[str] = ("cuda",)) -> torch.device:
    """The device of a name; if none is given the first of these accelerators that the machine has, or its CPU.

    Raises:
        ValueError: if it is not there, or cannot be used.
    """
    if name is None:
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind in accelerators if there[kind]), "cpu")
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"there is no device {name} that can be used here ({reason}): choose --device cpu, or leave --device out"
        ) from error
    return found
