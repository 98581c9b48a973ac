"""What a process does when another is gone; the errors are gloo's and the store's own, of real processes."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from diffusion_lightning.distributed import preemption
from diffusion_lightning.distributed.timeouts import TIMEOUT, check_started, limit_waiting, lost, name_limit

from ..support.processes import free_port

WAIT = timedelta(seconds=2)


def reduce() -> None:
    dist.all_reduce(torch.ones(8))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    time.sleep(60)


def train() -> None:
    """Gradients that DDP reduces behind `backward`."""
    module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    while True:
        module(torch.ones(2, 4)).sum().backward()


def barrier() -> None:
    dist.monitored_barrier(timeout=WAIT)


def ask_the_store() -> None:
    time.sleep(0.5)
    dist.distributed_c10d._get_default_store().get("nothing")


def gather_other_sizes() -> None:
    size = 3 + 2 * dist.get_rank()
    dist.all_gather([torch.zeros(3), torch.zeros(3)], torch.ones(size))


def misuse() -> None:
    dist.broadcast(torch.ones(3), src=7)


def member(rank: int, port: int, work: Callable[[], None], meets: bool, answer: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        dist.init_process_group("gloo", rank=rank, world_size=2, timeout=WAIT)
        assert meets
        reduce()
        work()
    except Exception as error:
        answer.send((type(error).__name__, str(error), lost(error)))
    finally:
        answer.close()
        os._exit(1)


def told(rank: int, *works: Callable[[], None]) -> Any:
    """Two processes at work, or one that waits for the other: what error one of them met, and what `lost` says."""
    context, port = multiprocessing.get_context("fork"), free_port()
    ends = [context.Pipe(duplex=False) for _ in works]
    processes = [
        context.Process(target=member, args=(number, port, work, len(works) == 2, ends[number][1]))
        for number, work in enumerate(works)
    ]
    for process in processes:
        process.start()
    try:
        assert ends[rank][0].poll(30)
        return ends[rank][0].recv()
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("rank", "works", "words"),
    [
        (0, (reduce, die), "Connection closed by peer|Connection reset by peer"),
        (1, (die, reduce), "Connection closed by peer|Connection reset by peer"),
        (0, (train, die), "Connection closed by peer|Connection reset by peer"),
        (0, (reduce, sleep), "Timed out waiting 2000ms for"),
        (1, (sleep, train), "Timed out waiting 2000ms for"),
        (0, (barrier, die), "Connection closed by peer|Connection reset by peer"),
        (1, (die, ask_the_store), "Connection was likely closed|Connection reset by peer|Broken pipe"),
        (0, (ask_the_store, sleep), "wait timeout after 2000ms"),
    ],
    ids=lambda value: "-".join(work.__name__ for work in value) if isinstance(value, tuple) else "",
)
def test_one_is_gone_and_the_other_says_so(
    rank: int, works: tuple[Callable[[], None], ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption._request, "kept", None)  # what an earlier test's command kept
    kind, text, said = told(rank, *works)
    assert said is not None, (kind, text)
    assert said.startswith(f"rank {rank} of 2 on ")
    assert any(word in said.partition("(")[2].partition("): ")[0] for word in words.split("|")), said
    assert said.endswith("see what it printed last; start it again")
    assert "\n" not in said
    assert ".cc:" not in said


def test_one_never_comes_and_the_other_says_so() -> None:
    kind, text, said = told(0, reduce)
    assert said is not None, (kind, text)
    assert "did not meet the others (Timed out after 3 seconds waiting for clients" in said


@pytest.mark.parametrize("work", [gather_other_sizes, misuse], ids=lambda work: work.__name__)
def test_a_mistake_in_a_collective_is_no_loss(work: Callable[[], None]) -> None:
    kind, text, said = told(1, work, work)
    assert text
    assert said is None, (kind, text, said)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection closed by peer"),  # of whose network nobody says
        ConnectionResetError("Connection reset by peer"),  # of a download, or a logger's server
        TimeoutError("Timed out waiting for the server"),
        ValueError("Timed out: [/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer"),
        dist.DistBackendError("NCCL error: ncclUnhandledCudaError: Call to CUDA function failed."),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=repr,
)
def test_what_merely_sounds_like_it_is_no_loss(error: BaseException) -> None:
    assert lost(error) is None


def test_a_port_in_use_is_no_loss() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(dist.DistNetworkError) as caught:
            dist.TCPStore("127.0.0.1", taken.getsockname()[1], 1, True, timeout=WAIT)
    assert lost(caught.value) is None


def test_the_loss_is_found_behind_what_it_led_to() -> None:
    remote = dist.DistBackendError(
        "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.27.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
    )
    wrapped = ValueError("the logger could not be closed")
    wrapped.__context__ = KeyError("step")
    wrapped.__context__.__context__ = remote
    said = lost(wrapped)
    assert said is not None
    assert "ncclRemoteError" in said
    remote.__context__ = wrapped  # a ring, as a careless `raise` makes it
    assert lost(wrapped) is not None


def test_who_named_no_limit_waits_two_minutes() -> None:
    for strategy in ("ddp", DDPStrategy(), ModelParallelStrategy()):
        trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
        limit_waiting(trainer)
        assert vars(trainer.strategy)["_timeout"] == TIMEOUT == timedelta(minutes=2)


@pytest.mark.parametrize("named", [timedelta(seconds=8), timedelta(minutes=30), None], ids=str)
def test_who_named_a_limit_keeps_it(named: timedelta | None) -> None:
    strategy = DDPStrategy(timeout=named)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    limit_waiting(trainer)
    assert strategy._timeout == named


def test_one_process_waits_for_nobody() -> None:
    limit_waiting(Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False))


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--strategy=DDPStrategy"], "0:02:00"),
        (["--strategy=DDPStrategy", "--strategy.static_graph=true"], "0:02:00"),
        (["--strategy=DDPStrategy", "--strategy.timeout=0:30:00"], "0:30:00"),
        (["--strategy=ddp"], None),
    ],
)
def test_a_configuration_says_the_limit_that_holds(words: list[str], written: str | None) -> None:
    """So that a run started from the written copy waits as long as the first."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=Strategy | str)
    config = parser.parse_args(words)
    name_limit(config.strategy)
    text = parser.dump(config)
    assert written is None or f"timeout: '{written}'" in text or f"timeout: {written}" in text
    again = parser.parse_string(text)
    name_limit(again.strategy)
    assert parser.dump(again) == text


@pytest.mark.parametrize(
    ("environment", "devices", "refused"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, 1, "torchrun started 2 processes, but"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, 2, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, 1, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 2, "srun started 4 processes, but"),
        ({"SLURM_NTASKS": "4"}, 1, None),  # in a job's script, before any srun
        ({"WORLD_SIZE": "2"}, 1, None),  # left behind by Lightning's own launcher
        ({}, 2, None),
    ],
    ids=str,
)
def test_no_process_takes_itself_for_the_only_one(
    environment: dict[str, str], devices: int, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if refused is None:
        check_started(trainer)
    else:
        with pytest.raises(ValueError, match=refused):
            check_started(trainer)
