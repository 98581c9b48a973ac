"""Pages that are made of other files of the repository at every build, so that they cannot get old."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPES = ("digits", "folder", "mnist", "fashion_mnist", "cifar10_ddpm", "cifar10_iddpm")  # first; others follow


def make(docs: Path) -> None:
    """Writes `made/recipes.md` and the notebooks into the folder of the pages."""
    made = docs / "made"
    (made / "notebooks").mkdir(parents=True, exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, made / "notebooks" / notebook.name)
    write(made / "recipes.md", recipes())


def write(path: Path, text: str) -> None:
    """Leaves a file alone that says the same, so that its page is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def recipes() -> str:
    """One section a configuration: its head comment, and the file itself."""
    paths = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
    order = [name for name in RECIPES if name in paths] + [name for name in paths if name not in RECIPES]
    return "\n\n".join(section(name, paths[name]) for name in order) + "\n"


def section(name: str, path: Path) -> str:
    """The head comment of a configuration as a section of a page."""
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(?:#.*\n)+", text)
    if head is None:
        raise ValueError(f"{path} begins without a comment, but its section of the page is made of it: add one")
    lines = [line.removeprefix("#").removeprefix(" ") for line in head[0].splitlines()]
    prose, commands = [], []
    for line in lines:
        (commands if line.startswith("  ") else prose).append(line)
    body = "\n".join(prose).strip()
    shown = "\n".join(command.strip() for command in commands)
    return f"## {name}\n{body}\n\n```sh\n{shown}\n```\n\n`configs/{path.name}`"
