"""How many threads share the work of a CPU, and how they wait for each other.

The threads of one operation meet at its end. By default the first of them spins there for milliseconds. If another
process holds the core of the last one, the spinning thread takes the core that could have finished the work: next to
one busy process, a small network on two threads is then many times slower than on one. Here a thread that waits spins
for some microseconds, as long as the next operation of a small network lets it wait, and then sleeps. To sleep at once
would make such a network half as slow again on an idle machine (`python -m benchmarks shared`).

Both are fixed when torch loads its OpenMP library, so `settle` comes before that. What the user's environment sets is
never changed.
"""

import math
import os
import sys
from pathlib import Path

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the second wins in torch's builds that have MKL
WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}  # the second for Intel's OpenMP library and LLVM's
ALSO = "OMP_WAIT_POLICY"  # the same, for all libraries

_ours = False  # whether the number in the environment was written by `settle`


def settle() -> None:
    """Write into the environment how many threads torch starts, and that they sleep while they wait.

    Does nothing if torch is loaded already, and leaves alone what the user has set: the number and the way of waiting
    each as a whole.
    """
    global _ours
    if "torch" in sys.modules or not hasattr(os, "sched_getaffinity"):
        return
    if not {*WAITS, ALSO} & os.environ.keys():
        os.environ |= WAITS
    if not {*COUNTS} & os.environ.keys():
        os.environ["OMP_NUM_THREADS"] = str(available())
        _ours = True


def share(processes: int) -> None:
    """Divide the threads among so many processes of one job on this machine, and those that this one starts.

    Does nothing if the number is the user's.
    """
    if not _ours or processes < 2:
        return
    import torch  # is loaded by now: only help and errors do without

    each = max(1, available() // processes)
    os.environ["OMP_NUM_THREADS"] = str(each)
    torch.set_num_threads(each)


def available(root: Path = Path("/")) -> int:
    """Cores that this process may use, by its affinity and the quota of its container; at least 1.

    Hardware threads of one core count once, as in torch's own default. What other processes do makes no difference, so
    that a run that is resumed on the same machine has the same number.

    Args:
        root: of the file system, in which Linux describes the machine.
    """
    quota = _quota(root)
    cores = len({_core(root, cpu) for cpu in os.sched_getaffinity(0)})
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def differs(then: int | None, now: int) -> str | None:
    """One sentence if a run that goes on has another number of threads than before; None of a number is unknown."""
    if then is None or then == now:
        return None
    return (
        f"the checkpoint was written with {then} thread{'s' * (then > 1)} per process, but this run has {now}: its "
        f"results differ from the undisturbed run's by rounding; for the same bits set OMP_NUM_THREADS={then}"
    )


def _core(root: Path, cpu: int) -> str:
    siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return siblings or str(cpu)


def _quota(root: Path) -> float | None:
    """CPUs that the control groups of this process grant, of versions 1 and 2: the least; None without a quota.

    A group's own limit and those of all that it lies in hold. A container may see its group as the root.
    """
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = root.joinpath("sys/fs/cgroup", *["cpu"] * bool(controllers), *parts[:depth])
            if controllers:
                limit = [_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                limit = _read(group / "cpu.max").split()
            if len(limit) == 2 and all(part.isdigit() for part in limit):  # others are `max` and -1: none
                found.append(int(limit[0]) / int(limit[1]))
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
