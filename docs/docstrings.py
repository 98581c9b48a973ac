"""Docstrings as reStructuredText: they are plain text with `code` in backticks and formulas in Unicode letters."""

import re
from collections.abc import Iterator

from formulas import pieces

NAMED = ("Args:", "Raises:")  # sections of names, a colon and what each is
SECTIONS = (*NAMED, "Returns:", "Yields:")
SPECIAL = re.compile(r"[\\*|]|_(?![A-Za-z0-9{])")
WIDE = "\u2003"  # in the place of several spaces
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def readable(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Changes the lines of a docstring in place; a hook of autodoc, before that of napoleon."""
    lines[:] = list(converted(lines))


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring in reStructuredText, each paragraph, item and argument one line."""
    out: list[str] = []
    for formula, block in blocks(lines):
        out += ["", *display(block), ""] if formula else [named(line) for line in block]
    return out


def blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Text, each paragraph joined, and the indented blocks outside of sections, which are (True, formulas)."""
    section, begun = "", -1  # the section, and the indentation of the line that the next one may continue
    text: list[str] = []
    formula: list[str] = []
    for line in [*lines, ""]:
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        if bare and indent >= 4 and not section and (formula or begun < 0):
            formula.append(line)
            continue
        if formula:
            yield True, formula
            formula = []
        section = section if indent or not bare else ""
        if not bare or bare in SECTIONS:
            section, begun = (bare if bare else section), -1
            text.append("" if bare == "Returns:" else line)  # of which napoleon takes what precedes a colon for a type
        elif begun < 0 or bare.startswith("- ") or (section in NAMED and indent <= begun):
            text.append(f":returns: {bare}" if section == "Returns:" else line)
            begun = indent
        else:
            text[-1] += f" {bare}"
        if not bare and not section:
            yield False, text
            text = []
    yield False, text


def named(line: str) -> str:
    """A line; what stands before the colon of an argument or an error is a name, not a formula."""
    found = re.match(r"( {4}\*{0,2}\w+: )(.*)", line)
    return found[1] + inline(found[2]) if found else inline(line)


def inline(line: str) -> str:
    """A line with its `code`, formulas and arXiv numbers marked, and all else as it is."""
    out = ""
    for part in re.split(r"(`[^`]*`)", line):
        if part.startswith("`"):
            out += f"`{part}`"
            continue
        for formula, text in pieces(part):
            if formula:
                out += rf"\ :math:`{formula}`\ "
            else:
                out += ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", SPECIAL.sub(r"\\\g<0>", text))
    return out.replace("\\ \\ ", "\\ ").removesuffix("\\ ")


def display(lines: list[str]) -> list[str]:
    """A block of formulas as one of mathematics; one that is not made of formulas as it stands."""
    rows = []
    for line in lines:
        found = list(pieces(re.sub(r" {2,}", WIDE, line.strip())))
        if not any(formula for formula, _ in found):
            return ["::", "", *lines]
        rows.append("".join(formula or words(text) for formula, text in found))
    body = rows[0] if len(rows) == 1 else r"\begin{array}{l}" + r" \\ ".join(rows) + r"\end{array}"
    return [".. math::", "", f"   {body}"]


def words(text: str) -> str:
    """A text within a formula."""
    text = re.sub(r"[{}_#%&$]", r"\\\g<0>", text.replace("\\", " ").replace("^", " "))
    parts = re.split(f"({WIDE})", text.replace("~", r"$\sim$"))
    return "".join(r"\quad " if part == WIDE else rf"\text{{{part}}}" for part in parts if part)
