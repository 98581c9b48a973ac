"""`diffusion-lightning recipes`: the configs that come with the package, and what their names stand for."""

from argparse import Namespace
from pathlib import Path

from .errors import meant

# In an installed package they lie within it, in a clone beside it.
PACKAGE = Path(__file__).parent.parent
FOLDER = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if (path / "digits.yaml").exists())


def recipes() -> dict[str, Path]:
    """The complete configs, by their names."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def overlays() -> dict[str, Path]:
    """What is laid over a config by a second `--config`: where it runs, or one thing more that it does."""
    return {path.stem: path for path in sorted((FOLDER / "overlays").glob("*.yaml"))}


def found(name: str) -> Path:
    """The file of a recipe's or an overlay's name.

    Raises:
        ValueError: if there is none.
    """
    known = {**recipes(), **overlays()}
    if name not in known:
        raise ValueError(
            f"there is no file and no recipe {name}{meant(name, known)}: give the path of a .yaml file, or a name that "
            "`diffusion-lightning recipes` lists"
        )
    return known[name]


def resolved(words: list[str]) -> list[str]:
    """A command's words, with the path of a recipe in the place of its name after `--config`."""
    taken: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if taken and taken[-1] in ("--config", "-c"):
            taken.append(_path(word))
        elif option == "--config" and equals:
            taken.append(f"--config={_path(value)}")
        else:
            taken.append(word)
    return taken


def _path(value: str) -> str:
    """The value itself if it is a path or a configuration written out; what has neither suffix nor folder is a name."""
    named = value.replace("_", "").replace("-", "").isalnum() and not Path(value).exists()
    return str(found(value)) if named else value


def main(given: Namespace) -> None:
    """Lists the recipes, or prints one."""
    if given.name is not None:
        print(found(given.name).read_text(encoding="utf-8"), end="")
        return
    for title, files in (("", recipes()), ("to lay over one of these, by a second --config:", overlays())):
        if title:
            print(f"\n{title}")
        for name, path in files.items():
            print(f"  {name:<18} {summary(path)}")
    print("\nfit --config NAME trains one; recipes NAME > my.yaml is where one of your own begins")


def summary(path: Path) -> str:
    """The first line of a config's head."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip().rstrip(".:")
