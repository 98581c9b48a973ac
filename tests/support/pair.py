"""A command in two processes, started as torchrun starts them but from a server that has imported everything."""

import contextlib
import io
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch

from diffusion_lightning.cli import main


def run_rank(rank: int, port: int, words: list[str], folder: Path) -> None:
    """One of the two; what it says is in folder/said0 or said1."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main([*words, "--trainer.devices", "2"])
    finally:
        (folder / f"said{rank}").write_text(said.getvalue())
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def two(words: list[str], folder: Path, rank: Callable[[int, int, list[str], Path], None] = run_rank) -> Path:
    """Runs the command in two processes; gives the run's folder."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_lightning.cli.fit"])
    folder.mkdir(parents=True, exist_ok=True)
    words = [*words, "--trainer.default_root_dir", str(folder)]
    processes = [context.Process(target=rank, args=(number, port, words, folder)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    said = "\n".join((folder / f"said{number}").read_text() for number in (0, 1) if (folder / f"said{number}").exists())
    assert not hung, said
    assert [process.exitcode for process in processes] == [0, 0], said
    return folder


def run_in(processes: int, words: list[str], folder: Path) -> None:
    """Runs the command in one process, this one, or in two; of one thread each."""
    if processes == 2:
        two(words, folder)
    else:
        torch.set_num_threads(1)
        main([*words, "--trainer.default_root_dir", str(folder)])
