"""The parser of configs and options: knows this package's classes by name, says what is wrong in one sentence."""

from importlib import import_module
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from ..files import expanded
from ..known import FAMILIES, RENAMED, current, current_arguments, public
from .errors import fail, sentence

# Imported for their names: a class known here can be written in a config without its module's path.
NAMED = [import_module(f"{__package__.partition('.')[0]}.{family}") for family in FAMILIES]


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, without the usage; takes no abbreviation for an option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """The parsed configuration; whatever in it begins with `~/` lies under the home folder from here on."""
        return _at_home(super().parse_args(_current(args), *more, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
        options = {action.dest for parser in parsers for action in parser._actions}
        classes = {name for family in NAMED for name, value in vars(family).items() if isinstance(value, type)}
        fail(sentence(message, sorted(options), sorted(classes)), 2)


def _at_home(value: Any) -> Any:
    """The value with `files.expanded` at every depth; namespaces and dicts are changed in place."""
    if isinstance(value, list):
        return [_at_home(x) for x in value]
    if not isinstance(value, Namespace | dict):
        return expanded(value)
    within = vars(value) if isinstance(value, Namespace) else value
    within.update({key: _at_home(x) for key, x in within.items()})
    return value


def _current(value: Any) -> Any:
    """The value, in which classes have the paths that this version gives them."""
    if isinstance(value, dict):
        return {key: _current(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_current(x) for x in value]
    if not isinstance(value, str):
        return value
    option, equals, path = value.rpartition("=")  # an option and its value in one word
    return f"{option}{equals}{current(path)}"


def _resolved(kind: Any, name: str) -> str:
    """The path of a class that is named alone: this package's, by its present or an earlier name, before all others.

    jsonargparse refuses such a name if several libraries have it, and which are imported differs from run to run.
    """
    name = RENAMED.get(name, name)
    for wanted in kind if isinstance(kind, tuple) else (kind,):
        for family in NAMED if isinstance(wanted, type) else ():
            found = public(family.__name__.rpartition(".")[2], name)
            if found is not None and issubclass(found, wanted):
                return f"{family.__name__}.{name}"
    return _by_name(kind, name)


_by_name = _typehints.resolve_class_path_by_name
_typehints.resolve_class_path_by_name = _resolved  # type: ignore[assignment]
_yaml = get_loader("yaml")
set_loader("yaml", lambda text: current_arguments(_current(_yaml(text))), exceptions=(yaml.YAMLError,))
