"""Processes of a job when one of them is gone: how long the others wait, and their message.

A process that dies closes its connections, and gloo raises in the others at once. A process that hangs, or a link that
is cut, closes nothing: the others wait in a collective until the process group's timeout. Gloo then raises. NCCL has no
Python to raise in: its watchdog prints `Watchdog caught collective operation timeout` and aborts the process (SIGABRT),
unless `TORCH_NCCL_ASYNC_ERROR_HANDLING=0` forbids it.

The same timeout bounds the start: all processes must meet within it. Two waits have others: the barrier around
`prepare_data`, which Lightning lets wait without end for the rank that downloads, and the agents of torchrun.
"""

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed
from jsonargparse import Namespace
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from . import internals, preemption

TIMEOUT = timedelta(minutes=2)
GRACE = 5.0  # seconds in which a process ends by itself, when the one that started it has met an error
PARENT = "DIFFUSION_LIGHTNING_PARENT"  # the process that starts others
STEP_TASKS = "SLURM_STEP_NUM_TASKS"  # the processes that this srun started, where SLURM_NTASKS are the job's

# What gloo, NCCL and the store say where another process or the way to it is gone, and nowhere else.
GONE = re.compile(
    r"Connection (?:closed|reset|was likely closed|refused)|Remote peer closed|Socket closed|Broken pipe"
    r"|No route to host|Network is (?:down|unreachable)|failed to connect|connectFullMesh failed"
    r"|[Tt]imed out|wait timeout after|ncclRemoteError|Watchdog caught collective operation timeout"
)
FROM_GLOO = re.compile(r"\[\S*gloo/transport/\S+:\d+\] ")  # the place in its source, before its words


def name_limit(strategy: Any, timeout: timedelta = TIMEOUT) -> None:
    """Writes the timeout into a configuration's `trainer.strategy` that names none, so that its copies name it too.

    Args:
        strategy: the value of that key; a name without arguments, such as `ddp`, stays as it is.
        timeout: as in `limit_waiting`.
    """
    if isinstance(strategy, Namespace) and strategy.get("init_args.timeout") is default_pg_timeout:
        strategy["init_args.timeout"] = timeout


def limit_waiting(trainer: Trainer, timeout: timedelta = TIMEOUT) -> None:
    """Gives a trainer's process group this timeout, unless the user named one; before its processes have met.

    Lightning's own is 30 minutes; `trainer.strategy.init_args.timeout` names another, such as `0:10:00`.

    Args:
        trainer: a trainer that was just built.
        timeout: the longest that a process waits for the others.
    """
    if internals.timeout(trainer) is default_pg_timeout:
        internals.set_timeout(trainer, timeout)


def check_started(trainer: Trainer) -> None:
    """Raise ValueError if a launcher started more processes than the trainer counts.

    Each process would take itself for the only one, and all would write into one folder.

    Args:
        trainer: a trainer that was just built.
    """
    launcher, key = ("torchrun", "WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else ("srun", STEP_TASKS)
    if (started := int(os.environ.get(key) or 0)) > trainer.world_size:
        raise ValueError(
            f"{launcher} started {started} processes, but trainer.devices × trainer.num_nodes is {trainer.world_size}: "
            f"set these so that their product is {started}, such as by --trainer.devices"
        )


@contextmanager
def ending_with(trainer: Trainer) -> Iterator[None]:
    """Ends the processes that Lightning starts for a trainer when the block ends, however it ends.

    After an error, those that are not over within `GRACE` are killed: one that hangs would never be. Otherwise they
    have the time that processes wait for one another, since they may still be writing. Should this process be gone
    before it can do so, as NCCL's watchdog has it, each ends by itself `GRACE` later.

    Raises:
        ValueError: if one failed, or hung, where this process found nothing wrong.
    """
    if os.environ.get(PARENT) == str(os.getppid()):
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    os.environ[PARENT] = str(os.getpid())  # inherited by those that are started
    try:
        yield
    except BaseException:
        _end(trainer, GRACE)
        raise
    finally:
        os.environ.pop(PARENT, None)
    limit = internals.timeout(trainer) or TIMEOUT
    if failed := _end(trainer, limit.total_seconds()):
        raise ValueError(
            f"the process of local rank {failed[0][0]} {failed[0][1]}, though this one found nothing wrong: see what "
            "it printed last"
        )


def _end(trainer: Trainer, seconds: float) -> list[tuple[int, str]]:
    """Wait for the started processes at most this long, kill the rest, return what failed and how, by local rank."""
    started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    processes = [process for process in started if isinstance(process, subprocess.Popen)]
    started.clear()  # Lightning's observer, which would kill this process too if one failed, looks at the list
    until, failed = time.monotonic() + seconds, []
    for rank, process in enumerate(processes, start=1):
        try:
            status = process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failed.append((rank, f"hung and was killed after {seconds:.0f} s"))
        else:
            if status:
                failed.append((rank, f"ended with status {status}"))
    return failed


def _follow(parent: int) -> None:
    """Ends this process some time after its parent is gone; it has the time to say why, if it can."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    os._exit(1)


def lost(error: BaseException) -> str | None:
    """One sentence if an error, or its cause, shows that another process or the connection to it is lost; else None.

    Args:
        error: what ended a training.
    """
    for link in _chain(error):
        if (words := _words(link)) is not None:
            if torch.distributed.is_initialized():
                rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
                return (
                    f"rank {rank} of {world} on {platform.node()} lost the others ({words}): one died or hung, or the "
                    f"link to it was cut; see what it printed last; {preemption.kept() or 'start it again'}"
                )
            return (
                f"rank {getattr(rank_zero_only, 'rank', 0)} on {platform.node()} did not meet the others ({words}): "
                "start all processes at once, where each reaches MASTER_ADDR at MASTER_PORT"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came of."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _words(error: BaseException) -> str | None:
    """What torch's own libraries say of it, without the place in their source and their advice."""
    text = str(error)
    # Gloo raises a plain RuntimeError, which anybody else may, but names its source.
    gloo = type(error) is RuntimeError and FROM_GLOO.search(text)
    if not (gloo or isinstance(error, torch.distributed.DistError)):
        return None
    sentences = re.split(r"\. |\n", FROM_GLOO.sub("", text))
    return next((sentence.strip(" .") for sentence in sentences if GONE.search(sentence)), None)
