"""Writes the page "What was tried against it", from the ids of the tests that try it.

    python -m benchmarks tried [FILE]

A test says where it belongs by `@pytest.mark.tried("HEADING")`. They are collected, not run: slow tests too. The page
is the same on every machine.
"""

import contextlib
import io
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/tried.md"
COMMAND = "uv run python -m benchmarks tried"

# In the order of a run's life; a test under another heading is refused, so that a slip makes no heading of its own.
HEADINGS = (
    "Pictures and archives",
    "Folders and sets",
    "One's own data",
    "Paths",
    "The cache",
    "Full disks and broken folders",
    "Checkpoints",
    "Resuming",
    "Signals",
    "Two at once",
    "Several processes",
    "Numbers, precision and words",
    "A busy machine",
)


class Tried(NamedTuple):
    """A test function: its heading, its file, its name, and its cases, each the ids of its parameters."""

    heading: str
    file: str
    name: str
    cases: tuple[tuple[str, ...], ...]


class _Collector:
    """A plugin of pytest that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collected(root: Path = ROOT) -> list[Tried]:
    """The marked tests, by file, and in each in the order in which they are written.

    Raises:
        ValueError: if the tests cannot be collected.
    """
    collector, said = _Collector(), io.StringIO()
    words = [
        "--collect-only",
        "-q",
        "-n0",
        "-m",
        "tried",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        "--rootdir",
        str(root),
    ]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*words, str(root / "tests")], plugins=[collector])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise ValueError(f"the tests cannot be collected: {' '.join(said.getvalue().split())[-500:]}")
    return functions(collector.items, root)


def functions(items: Iterable[pytest.Item], root: Path = ROOT) -> list[Tried]:
    """The functions of the marked tests among these, each once under each of its headings."""
    found: dict[tuple[str, str, str], list[tuple[str, ...]]] = {}
    for item in items:
        for mark in item.iter_markers("tried"):
            key = mark.args[0], item.path.relative_to(root).as_posix(), getattr(item, "originalname", item.name)
            case = tuple(item.callspec._idlist) if hasattr(item, "callspec") else ()
            found.setdefault(key, []).append(case)
    return [Tried(*key, tuple(cases)) for key, cases in sorted(found.items(), key=lambda entry: entry[0][1])]


def page(tests: Sequence[Tried]) -> str:
    """The page's text.

    Raises:
        ValueError: if a heading is none of `HEADINGS`.
    """
    for test in tests:
        if test.heading not in HEADINGS:
            raise ValueError(
                f"{test.name} of {test.file} is marked {test.heading!r}: give one of {', '.join(HEADINGS)}, or add it "
                "to HEADINGS of benchmarks/tried.py"
            )
    cases = sum(len(test.cases) for test in tests)
    lines = [
        "# What was tried against it",
        "",
        *_wrapped(
            f"Each line is a test of what users, machines and files do to a program, {len(tests)} functions with "
            f"{cases} cases; `uv run pytest -m tried` runs them. The page was made by `{COMMAND}` from the tests' own "
            "names, and a test compares the two."
        ),
    ]
    for heading in HEADINGS:
        if under := [test for test in tests if test.heading == heading]:
            lines += ["", f"## {heading}"]
            for test in under:
                lines += _wrapped(f"- {sentence(test)}", indent="  ")
    return "\n".join(lines) + "\n"


def sentence(test: Tried) -> str:
    """A test's name as a sentence, then what it was tried with, and its file."""
    words = test.name.removeprefix("test_").replace("_", " ")
    with_ = _cases(test.cases)
    return f"{words[:1].upper()}{words[1:]}{': ' * bool(with_)}{with_} ({test.file.removeprefix('tests/')})"


def _cases(cases: Sequence[tuple[str, ...]]) -> str:
    """All of them; as a product if they are all that its factors give, each parametrization being one."""
    factors = [list(dict.fromkeys(column)) for column in zip(*cases, strict=True)]
    if len(cases) == math.prod(map(len, factors)):
        return " × ".join("; ".join(map(_plain, factor)) for factor in factors)
    return "; ".join(_plain(", ".join(case)) for case in cases)


def _plain(id: str) -> str:
    """A parameter's id as text: pytest escapes what is not ASCII, and Markdown reads some marks as its own."""
    escaped = ""
    with contextlib.suppress(UnicodeDecodeError):
        while escaped != id:  # ids of a module that was collected before are escaped once more
            escaped, id = id, id.encode("ascii", "backslashreplace").decode("unicode_escape")
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", " ".join(id.split()))


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main(args: Sequence[str]) -> None:
    file = Path(args[0]) if args else PAGE
    try:
        tests = collected()
        text = page(tests)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file}: {len(tests)} tests")


if __name__ == "__main__":
    main(sys.argv[1:])
