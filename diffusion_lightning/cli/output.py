"""Standard output and standard error for a command whose work is not to end with them.

A terminal without a figure's letters gets another letter. Where no one reads any more (`| head`), nothing is written
any more, and the command goes on. Files without a stated encoding are UTF-8, whatever the locale.
"""

import contextlib
import errno
import io
import locale
import os
import sys
from typing import Any

from .errors import fail


class Lasting(io.RawIOBase):
    """A stream that takes all that is written to it; after the first failure it keeps nothing of it.

    Args:
        raw: where it all goes.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.failure: OSError | None = None

    def write(self, data: Any) -> int | None:
        if self.failure is None:
            try:
                return self.raw.write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()


def begin() -> None:
    """Makes Python's own streams such ones; others, such as a notebook's, stay as they are."""
    if locale.getencoding().lower().replace("-", "") != "utf8":
        for name in ("C.UTF-8", "C.utf8", "UTF-8"):  # as Python does itself where the locale is C
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 as long as the process lasts
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw: Any = getattr(stream.buffer, "raw", stream.buffer)
            setattr(sys, name, io.TextIOWrapper(
                io.BufferedWriter(Lasting(raw)), stream.encoding, errors, line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ))  # fmt: skip


def end() -> None:
    """After a command's work: ends it with a sentence where its output is lost, and someone meant to read it."""
    lasting = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(lasting, Lasting):
        sys.stdout.flush()
        if lasting.failure is not None and lasting.failure.errno != errno.EPIPE:
            fail(
                f"the command did its work, but standard output could not be written ({lasting.failure.strerror}): "
                "give it another place"
            )
