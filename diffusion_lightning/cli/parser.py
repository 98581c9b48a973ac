"""The parser of configs and options: knows this package's classes by name, says what is wrong in one sentence."""

from importlib import import_module
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from ..files import expanded
from ..known import FAMILIES, RENAMED, current, current_arguments, public
from .errors import fail, first_cause, raised_in, sentence
from .explain import Fault, check, own_fault
from .given import tree

PACKAGE = __package__.partition(".")[0]
# Imported for their names: a class known here can be written in a config without its module's path.
NAMED = [import_module(f"{PACKAGE}.{family}") for family in FAMILIES]


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, without the usage; takes no abbreviation for an option."""

    words: Any = ()  # those that it was given last

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """The parsed configuration; whatever in it begins with `~/` lies under the home folder from here on.

        Files are read before options, wherever `--config` stands: an option says more than a file.
        """
        self.words = _files_first(_current(args))
        return _at_home(super().parse_args(self.words, *more, **kwargs))

    def instantiate(self, namespace: Any, *args: Any, **kwargs: Any) -> Any:
        """The objects; what a user's own class raised is said in one sentence."""
        try:
            return super().instantiate(namespace, *args, **kwargs)
        except Exception as error:
            if not self.exit_on_error or (isinstance(error, ValueError) and raised_in(error) == PACKAGE):
                raise
            if isinstance(first := first_cause(error), ValueError) and raised_in(first) == PACKAGE:
                raise ValueError(str(first)) from error
            if (said := own_fault(error, namespace.as_dict())) is None:
                raise
            raise ValueError(said) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
        options = {action.dest for parser in parsers for action in parser._actions}
        at = next((parser for parser in parsers if parser is not self and parser.words), self)
        fail(at._fault() or sentence(message, sorted(options)), 2)

    def _fault(self) -> str | None:
        """What a walk through the configuration finds; None if it finds nothing wrong."""
        takes = {a.dest: a._typehint for a in self._actions if hasattr(a, "_typehint")}
        others = {a.dest: object for a in self._actions if a.dest not in takes}
        linked = [a.target[0] for a in self._actions if hasattr(a, "target")]
        try:
            check(tree(self.words, self.get_defaults(skip_validation=True).as_dict()), {**takes, **others}, linked)
        except Fault as fault:
            return str(fault)
        except Exception:  # what is wrong is in the words themselves
            return None
        return None


def _files_first(words: Any) -> Any:
    """The words of a subcommand with its `--config FILE`s before all others."""
    files: list[str] = []
    rest: list[str] = []
    following = iter(words if words and words[0].startswith("-") else ())
    for word in following:
        if word in ("--config", "-c"):
            files += [word, *([name] if (name := next(following, None)) is not None else [])]
        else:
            (files if word.startswith("--config=") else rest).append(word)
    return [*files, *rest] or words


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
