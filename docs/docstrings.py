"""Docstrings as reStructuredText: they are plain text with `code` in backticks and formulas in Unicode letters."""

import re

from formulas import pieces

SECTIONS = ("Args", "Raises", "Returns", "Yields")
SPECIAL = re.compile(r"[\\*|]|_(?![A-Za-z0-9{])")
WIDE = "\u2003"  # in the place of several spaces
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def readable(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Changes the lines of a docstring in place; a hook of autodoc, before that of napoleon."""
    lines[:] = list(converted(lines))


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring in reStructuredText."""
    out: list[str] = []
    for block in paragraphs(lines):
        if block[0] == "formula":
            out += ["", *display(block[1]), ""]
        else:
            out += [named(line) for line in block[1]]
    return out


def paragraphs(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Blocks of text, each paragraph one line, and indented blocks outside of the sections, which are formulas."""
    blocks: list[tuple[str, list[str]]] = []
    section = False
    text: list[str] = []
    formula: list[str] = []
    open_at = None  # the indentation of the line that the next one may continue
    for line in [*lines, ""]:
        indent = len(line) - len(line.lstrip())
        bare = line.strip()
        if formula and (not bare or not indent):
            blocks.append(("formula", formula))
            formula = []
        if not bare:
            text.append("")
            open_at = None
        elif not section and indent >= 4 and open_at is None:
            if text:
                blocks.append(("text", text))
                text = []
            formula.append(line)
        elif formula:
            formula.append(line)
        elif bare.rstrip(":") in SECTIONS and bare.endswith(":"):
            section, open_at = True, None
            text.append(line)
        else:
            if indent == 0:
                section = False
            item = bare.startswith("- ")
            continues = open_at is not None and not item
            continues &= indent > (open_at or 0) if section else True
            if continues:
                text[-1] += f" {bare}"
            else:
                text.append(line)
                open_at = indent
    if text:
        blocks.append(("text", text))
    return blocks


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
