"""Facts that the ranks of a run must share, and the error if they differ."""

import platform
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def everywhere(value: Value) -> list[Value]:
    """The value of every rank, in their order; a collective call where there are several."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def check_same(what: str, facts: dict[str, Any], fix: str) -> None:
    """Raise ValueError, on every rank, if facts that all ranks should share differ; a collective call.

    Args:
        what: they are, the object of "have different".
        facts: by their names.
        fix: what to do, the end of the sentence.
    """
    (first_host, first), *_ = known = everywhere((platform.node(), facts))
    for rank, (host, own) in enumerate(known):
        differ = [name for name in {**first, **own} if first.get(name) != own.get(name)]
        if differ:
            name, more = differ[0], f" and {len(differ) - 1} more" if len(differ) > 1 else ""
            values = f"{first.get(name)} and {own.get(name)}{more}"
            raise ValueError(
                f"rank 0 on {first_host} and rank {rank} on {host} have different {what} ({name}: {values}): {fix}"
            )
