"""Texts and figures of a run in words that a page, a terminal and a picture can show."""

import time
from collections.abc import Sequence
from typing import Any

import yaml


def printable(text: str) -> str:
    """The text with escapes in the place of what a terminal would obey; it may hold words of a file."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def one_line(text: str, most: int = 10_000) -> str:
    """The text in one printable line of at most so many letters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def shown(value: Any, most: int = 120) -> str:
    """A value of a configuration in one short line."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    except yaml.YAMLError:
        text = str(value)
    return one_line(text.removesuffix("\n...\n"), most)


def number(value: float) -> str:
    """A figure with as many digits as a reader needs."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.5g}"


def size(bytes_: float) -> str:
    """Bytes in their largest unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if bytes_ < 1024 or unit == "GiB":
            break
        bytes_ /= 1024
    return f"{bytes_:.0f} {unit}" if unit == "bytes" else f"{bytes_:.1f} {unit}"


def age(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return "less than a minute"


def since(moment: float) -> str:
    """How long ago a moment, in seconds since the epoch, was."""
    return f"{age(max(0.0, time.time() - moment))} ago"


def columns(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of a table with their columns lined up; those of these numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
