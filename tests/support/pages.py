"""The README and the pages of the site: the commands and the Python that they show."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "api").glob("*.md"))]


class Command(NamedTuple):
    """A command of a page, and the first page that shows it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, without what starts it: settings of the environment, `uv run` and its options."""
        words = shlex.split(self.text)
        while "=" in words[0]:
            words = words[1:]
        if words[:2] == ["uv", "run"]:
            words = words[4:] if words[2] == "--group" else words[2:]
        return words


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[Command]:
    """Each distinct command of the pages, page after page; `&&` ends one."""
    found: dict[str, Command] = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                for text in re.split(r" && ", re.sub(r"(^|\s)#.*$", "", line).strip()):
                    if text:
                        found.setdefault(text, Command(page.relative_to(ROOT).as_posix(), text))
    return list(found.values())
