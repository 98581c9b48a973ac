"""The pages of the site, without building it: a whole API, links that lead somewhere, sentences that the code has."""

import ast
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from .support.pages import DOCS, PAGES, ROOT

sys.path.append(str(DOCS))
import formulas
import made
from docstrings import converted

sys.path.remove(str(DOCS))

ROOMS = (
    "schedules", "denoising", "objectives", "guidance", "likelihood", "conditioning", "networks", "samplers", "modules",
    "data", "metrics", "extractors", "callbacks", "loggers", "random", "checkpoints", "loading", "optim", "interop",
    "first_stages", "curricula", "edits",
)  # fmt: skip
# By conf.py, at every build.
MADE = {"01_forward_process", "02_reverse_process", "03_samplers", "04_conditions", "05_few_steps_and_gans"}


def shown(room: str) -> list[str]:
    """The classes and functions that the page of a room shows."""
    text = (DOCS / f"api/{room}.md").read_text(encoding="utf-8")
    return re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_class_is_on_its_page(room: str) -> None:
    module = import_module(f"diffusion_lightning.{room}")
    public = {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__.startswith(module.__name__)
        if name == kind.__name__ and not name.startswith("_")  # a former name of a class is none of its own
    }
    found = shown(room)
    assert len(found) == len(set(found))
    assert public <= set(found)
    for name in found:  # and nothing on it is gone
        assert getattr(module, name).__doc__
    text = (DOCS / f"api/{room}.md").read_text(encoding="utf-8")
    assert f".. automodule:: {module.__name__}\n" in text
    assert f".. currentmodule:: {module.__name__}\n" in text


def test_every_page_is_in_the_tree() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    named = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES if DOCS in path.parents}
    assert set(named) == pages - {"index"} | {f"made/notebooks/{name}" for name in MADE}
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == MADE
    assert {f"api/{room}" for room in ROOMS} <= set(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_every_recipe_is_a_section_of_its_page_and_named_in_the_readme() -> None:
    text = made.recipes()
    for path in (ROOT / "configs").glob("*.yaml"):
        head = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"## {path.stem}\n{head}" in text
        assert f"`{path.stem}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def spoken() -> str:
    """The texts of the package, with … in the place of values."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(value) for value in node.values)
        return str(node.value) if isinstance(node, ast.Constant) else "…"

    found = []
    for path in (ROOT / "diffusion_lightning").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant))
        found += [text(node) for node in strings if id(node) not in docstrings]
    return "\n".join(found)


def test_the_sentences_of_troubleshooting_are_those_of_the_code() -> None:
    """Each part of a sentence between two values, longer than two words."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^\*\*(.*?)\*\* — ", text, re.MULTILINE)
    assert len(sentences) >= 25
    said = spoken()
    for sentence in sentences:
        parts = [part for part in re.split(r"\s*…\s*", sentence) if len(part.split()) > 2]
        assert parts, sentence
        for part in parts:
            assert part.strip(" ()") in said, f"{part!r} of {sentence!r}"


def test_the_site_asks_no_other_host() -> None:
    """No script, font or style of a server; links that a reader may follow are another thing."""
    for path in (DOCS / "conf.py", DOCS / "_static/site.css"):
        assert "http" not in path.read_text(encoding="utf-8")


# Docstrings


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("√ᾱ_t·x_0", r"\sqrt{\bar{\alpha}_{t}} \cdot x_{0}"),
        ("x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε",
         r"x_{t} = \sqrt{\bar{\alpha}_{t}} \cdot x_{0} + \sqrt{1 - \bar{\alpha}_{t}} \cdot \varepsilon"),
        ("β̃_{t|s}/β_{t|s}", r"\tilde{\beta}_{t \mid s} / \beta_{t \mid s}"),
        ("‖target - output‖²", r"\left\|\text{target} - \text{output}\right\|^{2}"),
        ("log σ² = m·log β", r"\operatorname{log} \sigma^{2} = m \cdot \operatorname{log} \beta"),
        ("q(x_s | x_t, x_0)", r"q(x_{s} \mid x_{t} , x_{0})"),
        ("⌊T·(i + u_i)/B⌋ + 1", r"\lfloor T \cdot (i + u_{i}) / B \rfloor + 1"),
        ("2³²", "2^{32}"),
        ("ε_θ", r"\varepsilon_{\theta}"),
        ("Σ_{i≠j} k(f_i, f_j)", r"\sum_{i \ne j} k(f_{i} , f_{j})"),
    ],
)  # fmt: skip
def test_a_formula(text: str, tex: str) -> None:
    assert list(formulas.pieces(f"{text}, as")) == [(tex, ""), ("", ", as")]


WORDS = ("a network", "(B, C, H, W)", "t runs 1 … T", "1e-9 is left", "class_coverage", "[0, 1)")


@pytest.mark.parametrize("text", WORDS)
def test_words_are_no_formula(text: str) -> None:
    assert list(formulas.pieces(text)) == [("", text)]


def test_a_docstring() -> None:
    text = """What `f` does *once*: x_t
    and no more.

        x_0 = 1 - ᾱ

    - an item
      of two lines
    - another

    Args:
        x_0: (B, *) of
            ε.
        y: none.

    Returns:
        Of a kind: one
        or two.
    """
    found = [line for line in converted(inspect.cleandoc(text).splitlines()) if line]
    assert found == [
        r"What ``f`` does \*once\*: \ :math:`x_{t}`\  and no more.",
        ".. math::",
        r"   x_{0} = 1 - \bar{\alpha}",
        "- an item of two lines",
        "- another",
        "Args:",
        r"    x_0: (B, \*) of \ :math:`\varepsilon`\ .",
        "    y: none.",
        ":returns: Of a kind: one or two.",
    ]
