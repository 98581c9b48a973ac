"""Work in each of several processes of one gloo group."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from .processes import free_port


def member(rank: int, world: int, port: int, work: Callable[[int], Any], answer: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=30))
        answer.send((work(rank), None))
    except BaseException as error:
        answer.send((None, str(error) if isinstance(error, ValueError) else traceback.format_exc()))
    finally:
        answer.close()
        os._exit(0)


def ranks(work: Callable[[int], Any], world: int = 2) -> list[tuple[Any, str | None]]:
    """What `work(rank)` gives in each of several processes of one gloo group, or the sentence that it raises."""
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=member, args=(rank, world, port, work, pipe[1])) for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        assert all(pipe[0].poll(60) for pipe in pipes)
        return [pipe[0].recv() for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
