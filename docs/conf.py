"""The documentation site: `uv run --group docs sphinx-build -W -b html docs docs/_build`, without a network."""

import shutil
import sys
from abc import ABC
from importlib.metadata import version as version_of
from importlib.resources import files
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from docstrings import readable  # noqa: E402
from made import make  # noqa: E402

project = "diffusion_lightning"
author = "the authors of diffusion_lightning"
copyright = author
version = release = version_of("diffusion_lightning")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute", "made/recipes.md"]  # the second is where myst-nb keeps notebooks
templates_path: list[str] = []

# Pages
smartquotes_action = "qe"  # quotes and ellipses; no dashes, since options begin with two hyphens
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebooks; here they are shown with the output that they are stored with

# The API, from the docstrings
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

# Formulas without a server: one file of an installed package, copied beside the pages
MATHJAX = "mathjax/tex-svg.js"
mathjax_path = MATHJAX
mathjax3_config = {"svg": {"scale": 0.92}}

html_theme = "furo"
html_title = "diffusion_lightning"
html_static_path = ["_static", "made/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

make(HERE)
target = HERE / "made/static" / MATHJAX
target.parent.mkdir(parents=True, exist_ok=True)
shutil.copy(str(files("mathjax") / "static/mathjax/es5/tex-svg.js"), target)


def own_bases(app, name, obj, options, bases):  # type: ignore[no-untyped-def]
    """The bases that tell a reader something."""
    bases[:] = [base for base in bases if base not in (object, ABC)] or [object]


def polished(app, doctree, name):  # type: ignore[no-untyped-def]
    """A dash between an argument's name and what it is; no word of a base that tells nothing."""
    for line in list(doctree.findall(nodes.paragraph)):
        if line.astext() == "Bases: object":
            line.parent.remove(line)
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app):  # type: ignore[no-untyped-def]
    """Docstrings are plain text with `code` and formulas; Sphinx reads reStructuredText."""
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon
    app.connect("autodoc-process-bases", own_bases)
    app.connect("doctree-resolved", polished)
