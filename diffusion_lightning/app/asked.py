"""What the browser sends of the controls of `app`, checked, and what is said to it in words."""

import base64
import shlex
import traceback
from typing import Any

import numpy as np
import torch

from ..cli.errors import of_the_system, raised_in
from .commands import PROGRAM, Form
from .watch import Progress, png

PACKAGE = __package__.partition(".")[0]
NONE = -1  # of a checkpoint or a class: no choice


def form(n: Any, seed: Any, sampler: Any, steps: Any, guidance: Any, y: Any, prompt: Any, negative: Any) -> Form:
    """What the controls say.

    Raises:
        ValueError: if one is empty.
    """
    return Form(
        whole(n, "the number of samples"), whole(seed, "the seed"), sampler or None,
        whole(steps, "the number of steps"), float(guidance or 1), None if y in (None, NONE) else whole(y, "the class"),
        str(prompt or ""), str(negative or ""),
    )  # fmt: skip


def whole(value: Any, name: str) -> int:
    """A whole number of a control; raise ValueError if it is none."""
    if isinstance(value, int | float) and value == value and abs(value) < 2**64 and value == int(value):
        return int(value)
    raise ValueError(f"{name} is {value}, but a whole number is needed: give one")


def shell(words: tuple[str, ...]) -> str:
    """A command as one writes it in a shell."""
    return shlex.join([PROGRAM, *words])


def sentence(error: Exception) -> str:
    """What went wrong, in one sentence; what is no fault of a request is printed with its traceback too."""
    if isinstance(error, ValueError) and raised_in(error) == PACKAGE:
        return str(error)
    if isinstance(error, OSError):
        return of_the_system(error)
    traceback.print_exception(error)
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}; the terminal says more"


def painted(text: Any, height: int, width: int) -> bytes:
    """A mask (PNG), white where it is painted, of the bits that the page sends: row by row, in base64.

    Raises:
        ValueError: if it is none of this size, or nothing is painted.
    """
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (ValueError, TypeError) as error:
        raise ValueError("the mask is none of this page: choose the sample again") from error
    if bits.size != -(-height * width // 8):
        raise ValueError(f"the mask is not of {width}x{height} pixels: choose the sample again")
    pixels = np.unpackbits(bits)[: height * width].reshape(1, height, width)
    if not pixels.any():
        raise ValueError("no pixel is painted, so that there is none to draw anew: paint over a part of the sample")
    return png(torch.from_numpy(pixels.copy()) * 255)


def steps_of(found: Progress, title: str) -> str:
    """How far a request is, in words."""
    return f"{title + ': ' if title else ''}step {found.done} of {found.total}"
