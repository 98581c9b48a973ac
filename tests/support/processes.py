"""Commands in processes of their own, their children and their ports."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMAND = ["-m", "diffusion_lightning", "fit", "--config"]


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Torch 2.15 restarts with the addresses of the dead otherwise; and always where torchrun is given a --master-port.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


Process = subprocess.Popen[bytes]


@contextmanager
def started(words: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[Process]:
    """A command in a group of its own, what it prints in a file, and nothing left of it afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """The processes under one, as the kernel lists them."""
    found = []
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def rank(pid: int) -> str | None:
    """The LOCAL_RANK that a process was started with."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"LOCAL_RANK="):
                return entry.partition(b"=")[2].decode()
    return None


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait(until: Callable[[], bool], process: Process, log: Path, limit: float = 240) -> None:
    """Waits for something while a process runs."""
    end = time.monotonic() + limit
    while not until():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
