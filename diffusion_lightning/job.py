"""The job that this process belongs to: what it is called, how it is told to leave, and how it goes back to the queue.

Schedulers announce the end of a job by SIGUSR1 (SLURM's `--signal`) or SIGTERM (torchrun, Kubernetes, preemption).
While nothing would be lost by leaving (imports, start-up, validation, sampling), the signal is answered at once by the
exception `Preempted`; from `hold()` to `release()` it raises a flag, `asked()`, which the training looks at after each
step. Nothing here imports more than Python's own, so that it listens before the long imports begin.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same again
TURN = 30  # seconds that a process has to end its logs and put the job back before the next one does
PATIENCE = 60  # seconds in which SLURM ends a job that was put back
SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]


class Preempted(BaseException):
    """The process was told to leave and lost nothing; no error, hence no `Exception` that others would catch."""


class _Request:
    """What this process was told, and whether it may leave at once."""

    signal: str | None = None
    held = False
    over = False  # the work is done: there is nothing to go on with
    owner = 0


_request = _Request()


def _told(number: int, frame: FrameType | None) -> None:
    # A fork inherits the handler, and SLURM signals it too; it ends with its parent.
    if os.getpid() != _request.owner or _request.over:
        return
    _request.signal = signal.Signals(number).name
    if not _request.held:
        _leave()


def _leave() -> None:
    _request.held = True  # once
    raise Preempted(f"stopped by {_request.signal}, with nothing unsaved")


@contextmanager
def listening() -> Iterator[None]:
    """Answers the signals as long as it lasts; a no-op outside of the main thread, where Python allows no handlers."""
    try:
        before = {number: signal.signal(number, _told) for number in SIGNALS}
    except ValueError:
        before = {}
    _request.owner, _request.over, _request.held = os.getpid(), False, False
    try:
        if _request.signal is not None:  # it came before
            _leave()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.signal = None


def ignore(worker: int = 0) -> None:
    """In a worker process: schedulers signal all processes, but a worker ends when its parent says so."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def asked() -> bool:
    """Whether this process was told to leave."""
    return _request.signal is not None


def hold() -> None:
    """From now on leaving would lose something: a signal only raises the flag.

    Raises:
        Preempted: where the flag is up already.
    """
    if asked() and not _request.over:
        _leave()
    _request.held = True


def release() -> None:
    """From now on nothing would be lost: a signal is answered at once.

    Raises:
        Preempted: where one came in the meantime.
    """
    _request.held = False
    if asked() and not _request.over:
        _leave()


def finish() -> None:
    """The work is done: signals change nothing any more."""
    _request.over = True


def name() -> str | None:
    """The job's name, which its requeues and restarts share; None where there is no job, or it has no name."""
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm {os.environ.get('SLURM_CLUSTER_NAME', '')} {_slurm_id()}"
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if run == "none" else f"torchrun {run}"


def restarted() -> bool:
    """Whether the job was requeued or restarted, and this is not its first start."""
    return any(int(os.environ.get(key) or 0) for key in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def _slurm_id() -> str:
    # The last task of an array has the array's own number as its SLURM_JOB_ID, which would name all of them.
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def leave(message: str) -> int:
    """Puts the job back into SLURM's queue, says so, and returns the status to exit with.

    A job that is being cancelled, or whose time is over, stays so. SLURM ends a requeued job by itself; its processes
    wait for that, since one that ended before would count as failed. The first process speaks for all; where it does
    not, since it waits in a collective for one that has left, which no signal interrupts, the next does.
    """
    if "SLURM_JOB_ID" not in os.environ or shutil.which("scontrol") is None:
        if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
            _say(f"{message}: the same command with --ckpt_path last goes on")
        return EXIT_CODE
    for number in SIGNALS:  # by which SLURM ends it
        signal.signal(number, signal.SIG_DFL)
    rank = int(os.environ.get("SLURM_PROCID") or 0)
    time.sleep(min(TURN * rank, PATIENCE))
    requeued = _requeue(_slurm_id())
    if requeued or (requeued is False and rank == 0):
        _say(f"{message}: job {_slurm_id()} was {'put back into the queue' if requeued else 'not requeued'}")
    if requeued is not False:
        time.sleep(PATIENCE)
    return EXIT_CODE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _requeue(job: str) -> bool | None:
    """Whether this process put the job back; None where another one did."""
    words = ["squeue", "--noheader", "--jobs", job, "--Format", "State:32,RestartCnt:32"]
    found = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace").stdout.split()
    state, restarts = found if len(found) == 2 else ("", "0")
    if int(restarts) > int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return None
    if state != "RUNNING":
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        _say(done.stderr.strip())
    return done.returncode == 0
