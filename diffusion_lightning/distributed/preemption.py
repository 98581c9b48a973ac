"""The job that this process belongs to: its name, the signals that end it, and how it goes back to the queue.

Schedulers announce the end of a job by SIGUSR1 (SLURM's `--signal`) or SIGTERM (torchrun, Kubernetes, preemption); a
person presses Ctrl-C (SIGINT) or closes the terminal (SIGHUP, unless `nohup` has it ignored). While nothing would be
lost by leaving (imports, start-up, validation, sampling), the signal is answered at once by the exception `Preempted`;
from `hold()` to `release()` it raises a flag, `signalled()`, which training checks after each step. A second Ctrl-C
ends the process at once. Only Python's own modules are imported, so that it listens before the long imports begin.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same again
INTERRUPTED = 130  # as shells count a Ctrl-C, so that a script of several commands ends too
TURN = 30  # seconds that a process has to end its logs and put the job back before the next one does
PATIENCE = 60  # seconds in which SLURM ends a job that was put back
SIGNALS = [getattr(signal, n) for n in ("SIGUSR1", "SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, n)]
OF_PEOPLE = [number for number in SIGNALS if number.name in ("SIGINT", "SIGHUP")]
NAMES = {"SIGINT": "Ctrl-C"}  # of what people call otherwise


class _Request:
    """The signal of this process, whether it may leave at once, and what it has done by then."""

    signal: str | None = None
    held = False
    over = False  # the work is done: there is nothing to go on with
    owner = 0
    kept: Callable[[], str] | None = None
    terminals: tuple[int, ...] = ()  # those of the standard streams that were one at the start


_request = _Request()


class Preempted(BaseException):
    """Raised to leave on a signal without loss; no error, hence no `Exception` that others would catch.

    Args:
        where: what follows "stopped by SIGTERM" in its message, such as " at step 7".
    """

    def __init__(self, where: str = "") -> None:
        name = "another process" if _request.signal is None else NAMES.get(_request.signal, _request.signal)
        self.by_hand = _request.signal == "SIGINT"
        super().__init__(f"stopped by {name}{where}")


def _told(number: int, frame: FrameType | None) -> None:
    # A fork inherits the handler, and SLURM signals it too; it ends with its parent.
    if os.getpid() != _request.owner:
        return
    name = signal.Signals(number).name
    if name == "SIGINT":
        signal.signal(number, signal.SIG_DFL)  # the next one ends it, whatever it does by then
    if name == "SIGHUP":
        _turn_away()
    if _request.over:
        return
    _request.signal = name
    if not _request.held:
        _leave()
    if name == "SIGINT" and _speaks():
        with contextlib.suppress(OSError):  # not by print, in whose middle this may be
            os.write(2, b"\nCtrl-C: saves after this step and leaves; press it again to end at once, unsaved\n")


def _turn_away() -> None:
    """Lets what is printed go nowhere, if the terminal is gone: else the next word would be an error."""
    for stream in _request.terminals:
        if not os.isatty(stream):
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, stream)
                os.close(nowhere)


def _speaks() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _leave() -> None:
    _request.held = True  # once
    raise Preempted


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Answers the signals as long as it lasts; a no-op outside of the main thread, where Python allows no handlers."""
    # A shell has Ctrl-C ignored for what it starts in the background, nohup SIGHUP: this stays so.
    left = [n for n in SIGNALS if n not in OF_PEOPLE or signal.getsignal(n) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, _told) for number in left}
    except ValueError:
        before = {}
    _request.owner, _request.over, _request.held, _request.kept = os.getpid(), False, False, None
    _request.terminals = tuple(stream for stream in (0, 1, 2) if os.isatty(stream))
    try:
        if _request.signal is not None:  # it came before
            _leave()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.signal = None


def ignore(worker: int = 0) -> None:
    """In a worker process: schedulers signal all processes, but a worker ends with its parent."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def signalled() -> bool:
    """Whether this process has had a signal to leave."""
    return _request.signal is not None


def keeps(words: Callable[[], str]) -> None:
    """Set the words that state, when the command is stopped, what is kept of its work and how to go on."""
    _request.kept = words


def kept() -> str | None:
    """What is kept of the command's work, and how to go on; None if nothing is kept."""
    return _request.kept() if _request.kept is not None else None


def hold() -> None:
    """From now on leaving would lose something: a signal only raises the flag.

    Raises:
        Preempted: if the flag is up already.
    """
    if signalled() and not _request.over:
        _leave()
    _request.held = True


def release() -> None:
    """From now on nothing would be lost: a signal is answered at once.

    Raises:
        Preempted: if one came in the meantime.
    """
    _request.held = False
    if signalled() and not _request.over:
        _leave()


def finish() -> None:
    """The work is done: signals change nothing any more."""
    _request.over = True


def name() -> str | None:
    """The job's name, which its requeues and restarts share; None if there is no job, or it has no name."""
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


def leave(stop: Preempted) -> int:
    """Put the job back into SLURM's queue, print that, and return the exit status.

    A job that is being cancelled, or whose time is over, stays so, and what a person stopped by Ctrl-C does too. SLURM
    ends a requeued job by itself; its processes wait for that, since one that ended before would count as failed. The
    first process speaks for all; where it does not, since it waits in a collective for one that has left, which no
    signal interrupts, the next does.
    """
    message = str(stop)
    if stop.by_hand or "SLURM_JOB_ID" not in os.environ or shutil.which("scontrol") is None:
        if _speaks():
            _say(f"{message}: {kept() or 'nothing new is kept, start it again'}")
        return INTERRUPTED if stop.by_hand else EXIT_CODE
    for number in SIGNALS:  # with which SLURM ends it
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
    """Whether this process put the job back; None if another one did."""
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
