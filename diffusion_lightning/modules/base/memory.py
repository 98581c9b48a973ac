"""Memory that a CPU's features lie in, kept from step to step."""

import ctypes
import sys

# Parameters of glibc's mallopt: how much may lie free before it is given back, how many blocks may be mapped on their
# own.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed() -> None:
    """Make the process keep freed memory, if the C library is glibc; otherwise do nothing.

    A step frees its features and the next one takes as much again. glibc gives large blocks back to the system, which
    then hands out each page anew, emptied; `python -m benchmarks gains` shows what that costs. The most that is held
    stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
