"""Facts that the ranks of a run must share, and the error if they differ."""

import platform
from collections.abc import Callable
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


def rank() -> int:
    """The number of this process among those that `everywhere` asks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def together(work: Callable[[], Value]) -> list[Value]:
    """What a piece of work gives on every rank, in their order; a collective call where there are several.

    An error of one rank is raised on all, so that none waits for it: there as it was, elsewhere as a ValueError.
    """
    value, error = None, None
    try:
        value = work()
    except Exception as raised:
        error = raised
    known = everywhere((value, None if error is None else " ".join(str(error).split()) or type(error).__name__))
    if error is not None:
        raise error
    if failed := [(k, words) for k, (_, words) in enumerate(known) if words is not None]:
        raise ValueError(f"rank {failed[0][0]} failed ({failed[0][1]}), and this one goes no further: see what it says")
    return [value for value, _ in known]  # type: ignore[misc]


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
