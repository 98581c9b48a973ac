"""The floors of the house: imports run strictly downwards, and Lightning is met on floor 4 and above."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffusion_lightning"

FLOORS = {
    0: [
        "files",
        "job",
        "threads",
        "schedules",
        "random",
        "images",
        "image_files",
        "networks",
        "conditioning",
        "first_stages",
    ],
    1: ["denoising", "published", "references"],
    2: ["objectives", "guidance", "likelihood", "schedulers"],
    3: ["samplers"],
    4: ["modules", "evaluation"],
    5: ["data", "callbacks", "metrics", "loggers"],
    6: [
        "cache",
        "cli",
        "card",
        "changes",
        "checkpoints",
        "commands",
        "complaints",
        "parser",
        "export",
        "importing",
        "known",
        "output",
        "predict",
        "processes",
        "provenance",
        "records",
        "resuming",
        "evaluate",
        "run",
        "score",
        "selftest",
        "training",
        "__main__",
    ],
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
EVERYWHERE = {"files", "random"}
DISPATCHED = set(FLOORS[6])


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> set[tuple[str, ...]]:
    """What a file imports, as absolute dotted names: ("diffusion_lightning", "random"), ("lightning", "pytorch"), …"""
    here = ("diffusion_lightning", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {base} if node.module else {(*base, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_strictly_downwards(path: Path) -> None:
    house = path.relative_to(PACKAGE).with_suffix("").parts
    own, inside = house[0], house[1:]
    assert own in FLOOR, f"{own} has no floor: give it one"
    for name in imports(path):
        if name[0] == "lightning":
            assert FLOOR[own] >= 4, f"{path} is below Lightning's floors"
        if name[0] != "diffusion_lightning":
            continue
        assert len(name) > 1, f"{path} imports the whole package"
        other = name[1]
        if other == own:
            if inside and inside[-1] != "__init__":  # a family's members meet in its base and its embeddings only
                assert name[2:3] in {("base",), ("embeddings",)}, f"{path} imports its sibling {name}"
        elif other not in EVERYWHERE and not (FLOOR[own] == 6 and other in DISPATCHED):
            assert FLOOR[other] < FLOOR[own], f"{path} (floor {FLOOR[own]}) imports {other} (floor {FLOOR[other]})"


def test_the_package_imports_nothing_at_first() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    eager = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(eager) <= {"importlib", "importlib.metadata", "typing"}
