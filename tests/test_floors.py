"""The floors of the house: imports run strictly downwards, in the shell too, and the mathematics is below Lightning."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "diffusion_lightning"

# From the ground up: a file or a family's folder imports what stands before it, and nothing else of the package. The
# shell's folders and the report's have no members of one kind, so each of their files has a place of its own.
GROUND = [
    "random", "files", "images", "meta", "frozen", "conditioning", "schedules", "denoising",
    "objectives", "curricula", "likelihood", "guidance", "networks", "samplers", "known", "records",
    "checkpoints", "first_stages", "report.words", "report.table", "report.run", "report.chart", "report.charts",
    "report.strip", "report.page",
]  # fmt: skip
WITH_LIGHTNING = [
    "distributed.internals", "distributed.preemption", "distributed.threads", "distributed.timeouts",
    "distributed.ranks", "distributed.fsdp", "optim", "loggers", "modules", "loading", "edits",
    "extractors", "metrics", "data", "callbacks",
    "interop.layout", "interop.source", "interop.diffusers", "interop.openai", "interop.dit", "interop.components",
    "interop.dit_pipeline", "interop.stable_diffusion", "interop.latent_diffusion", "interop.pipelines",
    "interop.lora", "interop.model_card", "interop.convert", "interop.export",
    "cli.errors", "cli.commands", "cli.recipes", "cli.options", "cli.completion", "cli.output", "cli.given",
    "cli.explain", "cli.parser", "cli.shell", "cli.devices", "cli.provenance", "cli.report", "cli.run_folder",
    "cli.defaults", "cli.changes", "cli.resuming", "cli.fit", "cli.evaluate", "cli.wanted", "cli.drawing",
    "cli.predict", "cli.pictures", "cli.edited", "cli.edit",
    "app.watch", "app.commands", "app.sessions", "app.work", "app.looks", "app.asked", "app.server", "app.page",
    "cli.app", "cli.score", "cli.export", "cli.import_", "cli.snapshots", "cli.sweep", "cli.average", "cli.cache",
    "cli.runs", "cli.selftest", "cli.entry", "__main__",
]  # fmt: skip
HOUSE = [*GROUND, *WITH_LIGHTNING]
SHELL = ("app", "cli", "distributed", "interop", "report")
MEETING = (
    "autoencoder",
    "base",
    "captions",
    "embeddings",
    "reader",
    "spacing",
    "statistics",
    "text_model",
)  # where a family's members meet


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> set[tuple[str, ...]]:
    """The modules that a file imports: ("diffusion_lightning", "random"), ("lightning", "pytorch"), …"""
    here = ("diffusion_lightning", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) if is_module((*base, alias.name)) else base for alias in node.names}
    return found


def is_module(name: tuple[str, ...]) -> bool:
    path = PACKAGE.joinpath(*name[1:])
    return name[0] == "diffusion_lightning" and (path.is_dir() or path.with_suffix(".py").exists())


def place(name: tuple[str, ...]) -> str:
    """What stands in the house for a module of the package: a folder for a family, the file for all else."""
    return ".".join(name[:2] if name[0] in SHELL else name[:1])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_strictly_downwards(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts
    if here[0] in SHELL and here[1] == "__init__":  # says what is within
        assert {name[1] for name in imports(path) if name[0] == "diffusion_lightning"} <= {here[0]}
        return
    own = place(here)
    assert own in HOUSE, f"{own} has no place: give it one"
    for name in imports(path):
        assert name[0] != "lightning" or own in WITH_LIGHTNING, f"{path} is below Lightning"
        if name[0] != "diffusion_lightning":
            continue
        assert len(name) > 1, f"{path} imports the whole package"
        other = place(name[1:])
        if other == own:
            assert here[-1] == "__init__" or name[2:3] in {(meeting,) for meeting in MEETING}, (
                f"{path} imports its sibling {name}"
            )
        else:
            assert other in HOUSE, f"{path} imports {other}, which has no place"
            assert HOUSE.index(other) < HOUSE.index(own), f"{path} imports {other}, which stands above it"


def test_every_place_of_the_house_is_there() -> None:
    there = {place(path.relative_to(PACKAGE).with_suffix("").parts) for path in modules()}
    assert there - {f"{folder}.__init__" for folder in SHELL} == set(HOUSE)


def test_the_package_imports_nothing_at_first() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    eager = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(eager) <= {"importlib", "importlib.metadata", "typing"}


FAMILIES = (
    "conditioning", "denoising", "extractors", "first_stages", "likelihood", "networks", "objectives", "samplers",
    "schedules",
)  # fmt: skip


def members(family: str) -> set[str]:
    """The concrete classes of a family."""
    name = f"diffusion_lightning.{family}"
    found = [kind for kind in vars(import_module(name)).values() if isinstance(kind, type)]
    return {kind.__name__ for kind in found if kind.__module__.startswith(name) and not inspect.isabstract(kind)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_object_is_asked_and_never_its_class(path: Path) -> None:
    """No isinstance of a family's member outside of its file, so that a user's class gets the same treatment."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    concrete = set().union(*map(members, FAMILIES)) - {"Prediction"}  # a value, of which there are no others
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not asked & concrete - own, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "callbacks").rglob("*.py")), ids=lambda path: path.name)
def test_a_callback_knows_no_schedule_network_or_denoiser(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("schedule", "network", "denoiser", "conditioner"), f"{path}:{node.lineno}"


# Of objects that are Lightning's: trainers, strategies, loops, a module's own machinery.
LIGHTNINGS = ("trainer", "strategy", "loop", "fit_loop", "epoch_loop", "precision_plugin", "launcher", "connector")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightnings_private_parts_are_touched_in_one_room(path: Path) -> None:
    if path == PACKAGE / "distributed/internals.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            assert owner not in LIGHTNINGS, f"{path}:{node.lineno}: {owner}.{node.attr}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "_trainer"), f"{path}:{node.lineno}"
    if path == PACKAGE / "cli/shell.py":
        return
    private = {name for name in vars(LightningCLI) if name.startswith("_") and not name.startswith("__")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") in ("CLI", "Shell") for base in node.bases):
            named = {x.attr for x in ast.walk(node) if isinstance(x, ast.Attribute)}
            named |= {x.name for x in node.body if isinstance(x, ast.FunctionDef)}
            assert not named & private, f"{path}:{node.lineno}: {named & private}"


PRIVATE = re.compile(r"\b(mend(s|ed|ing)?|rehears(al|e)|by heart)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_words_are_the_fields(path: Path) -> None:
    """No docstring says what a thing does not do first; no text has a private word for fix, dry run or overfit."""
    text = path.read_text(encoding="utf-8")
    assert PRIVATE.search(text) is None, f"{path}: {PRIVATE.search(text)}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert not (ast.get_docstring(node) or "").startswith("Nothing"), f"{path}: {getattr(node, 'name', '')}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_file_imports_another(path: Path) -> None:
    """What tests share lies in `conftest.py` and `support/`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            parts = {part for name in named for part in name.split(".")}
            assert not any(part.startswith("test_") for part in parts), f"{path}:{node.lineno}"


def test_the_tests_mirror_the_package() -> None:
    """A folder of tests is a folder of the package, and a family's tests lie in the family's folder."""
    folders = {path.name for path in TESTS.iterdir() if (path / "__init__.py").exists()} - {"support"}
    assert folders == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
