"""The configuration in a checkpoint, of its model, data and metrics: read as data and built into objects.

A record is a tree of `{"class_path": NAME, "init_args": {…}}` and plain values: numbers, texts, lists of these. It
comes from a file, so it names no code. A name is looked up in a table: the public classes of this package, and the
listed ones of `torch.nn` and diffusers. A class stands only where the parameter is annotated with its family; a
parameter that takes a function takes none from a record. Everything is checked before anything is made.

The user may trust more: a module of their own by its exact name, and a hub name or file of weights by its exact text.
"""

import inspect
import json
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from .known import FAMILIES, LISTED, current_arguments, find, parameters, public, raised

BYTES = 1_000_000  # of a record's text
DEPTH = 24  # of its tree
LARGEST = 1_000_000  # whole number, seeds aside: T, widths, counts of samples

OF_TRAINING = ("optimizer", "lr_scheduler")  # of a module: functions, which only the user's words name
# Parameters that name what is fetched, or weights that lie outside of the run.
SOURCES = {
    ("HuggingFace", "name"), ("CLIP", "model"), ("DINOv2", "model"), ("InceptionV3", "weights"),
    ("AutoGuidance", "guide"), ("ClassifierGuided", "classifier"), ("CLIPScore", "model"), ("PretrainedText", "model"),
    ("Pretrained", "model"),
}  # fmt: skip

Spec = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A class with the arguments that a record gives it, checked; nothing is made yet."""

    kind: type
    arguments: dict[str, Any]

    def make(self) -> Any:
        """The object, its parts first."""
        parts = {name: _made(value) for name, value in self.arguments.items()}
        try:
            return self.kind(**parts)
        except Exception as error:
            if ours(self.kind):
                raise
            name = f"{self.kind.__module__}.{self.kind.__name__}"
            raise ValueError(f"{name} raised {raised(error)}: correct it, or the arguments that it is given") from error

    @property
    def own(self) -> bool:
        """Whether it is this package's and all of its parts are this package's or listed."""
        return ours(self.kind) and all(part.own for part in _parts(self.arguments))

    def spec(self) -> Spec:
        """The record again, with every default that is a plain value spelled out."""
        given = {
            name: self.arguments.get(name, p.default)
            for name, p in parameters(self.kind).items()
            if name in self.arguments or _is_plain(p.default)
        }
        family = next((name for name in FAMILIES if public(name, self.kind.__name__) is self.kind), None)
        place = f"{__package__}.{family}" if family else self.kind.__module__
        return {
            "class_path": f"{place}.{self.kind.__name__}",
            "init_args": {name: _spec(value) for name, value in given.items()},
        }


def ours(kind: type) -> bool:
    """Whether a class is this package's or a listed one."""
    return kind.__module__.partition(".")[0] in (__package__, *LISTED)


def text(config: Spec) -> str:
    """A configuration as the text that a checkpoint carries: plain JSON."""
    return json.dumps(config, indent=1)


def parsed(record: Any, path: str | Path) -> Spec:
    """Parse the configuration in a checkpoint's text; YAML in older files.

    Arguments that an earlier version named otherwise get their present names.

    Raises:
        ValueError: if it is no text, longer than 1 MB, has an alias (which may stand for millions), or is damaged.
    """
    if not isinstance(record, str) or len(record) > BYTES:
        size = f"{len(record):,} characters" if isinstance(record, str) else f"a {type(record).__name__}"
        raise ValueError(
            f"the configuration in {path} is {size}, but it is a text of at most {BYTES:,}: nothing was loaded; use "
            "another checkpoint"
        )
    try:
        found = json.loads(record) if record.lstrip().startswith("{") else yaml.load(record, _Plain)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the configuration in {path} is damaged or no plain data ({reason}): nothing was loaded; use another "
            "checkpoint"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"the configuration in {path} holds no keys: nothing was loaded; use another checkpoint")
    return current_arguments(found)


class _Plain(yaml.SafeLoader):
    """YAML without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def read(spec: Any, family: type, where: str, trust: Collection[str] = ()) -> Part:
    """A record's class and arguments, checked; nothing is made, and no code is imported but what is trusted.

    Args:
        spec: the record.
        family: the class that it must be of.
        where: what it is called in a message, such as `model`.
        trust: modules of the user's own classes, and hub names and files of weights, each by its exact text.

    Raises:
        ValueError: names the first key at fault.
    """
    return _part(spec, family, where, frozenset(trust), 0)


def takes_class(name: Any, parameter: str, trust: Collection[str]) -> bool:
    """Whether a parameter of a class of this name takes a class, so that a user's value for it names a class."""
    known = parameters(find(str(name), parameter, trust)).get(parameter)
    if known is None:
        return False
    kinds = get_args(known.annotation) or (known.annotation,)
    return any(isinstance(kind, type) and _is_family(kind) for kind in kinds)


def modules(spec: Any) -> set[str]:
    """The modules of all classes that a configuration of the user's own names, which are thereby trusted."""
    if isinstance(spec, dict):
        name = spec.get("class_path")
        here = {name.rpartition(".")[0]} if isinstance(name, str) else set()
        return here.union(*map(modules, spec.values()))
    return set().union(*map(modules, spec)) if isinstance(spec, list) else set()


def foreign(spec: Spec) -> list[str]:
    """The modules that have to be trusted to read the record of a model again, in order."""
    arguments = {name: value for name, value in spec.get("init_args", {}).items() if name not in OF_TRAINING}
    named = modules({**spec, "init_args": arguments})
    return sorted(name for name in named if name.partition(".")[0] not in (__package__, *LISTED))


def _part(spec: Any, family: type, where: str, trust: frozenset[str], depth: int) -> Part:
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise ValueError(f"{where} is {_shown(spec)}, but it takes a {family.__name__}: give its class_path")
    given = spec.get("init_args") or {}
    if depth > DEPTH or not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{where} has init_args that are no tree of at most {DEPTH} levels: use another checkpoint")
    if strange := sorted(set(map(str, spec)) - {"class_path", "init_args"}):
        raise ValueError(f"{where} has the key {strange[0]}, but a class has class_path and init_args: remove it")
    kind = find(spec["class_path"], where, trust)
    if not issubclass(kind, family):
        raise ValueError(f"{where} is a {kind.__name__}, but it takes a {family.__name__}: correct its class_path")
    if inspect.isabstract(kind):
        raise ValueError(f"{where} is {kind.__name__}, which is a family and no member of one: name a member")
    takes = parameters(kind)
    if unknown := sorted(set(given) - set(takes)):
        near = get_close_matches(unknown[0], takes, n=1, cutoff=0.7)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{kind.__name__} takes no {unknown[0]}{meant}: it takes {', '.join(takes)}")
    if missing := [name for name, p in takes.items() if p.default is p.empty and name not in given]:
        raise ValueError(f"{where} is a {kind.__name__} without {missing[0]}, which it needs: give it")
    arguments = {}
    for name, value in given.items():
        if name in OF_TRAINING and hasattr(kind, "training_step"):
            continue
        arguments[name] = _value(value, takes[name].annotation, f"{where}.{name}", trust, depth)
    _check_sources(kind, arguments, where, trust)
    return Part(kind, arguments)


def _check_sources(kind: type, arguments: Spec, where: str, trust: frozenset[str]) -> None:
    for name, parameter in parameters(kind).items():
        if (kind.__name__, name) not in SOURCES or not kind.__module__.startswith(f"{__package__}."):
            continue
        value = arguments.get(name, parameter.default)
        if value is None or value in trust or (kind.__name__ == "HuggingFace" and Path(value).is_dir()):
            continue
        raise ValueError(
            f"{where}.{name} is {value}, which a file names and which lies outside of the run: nothing was fetched or "
            f"read; if you trust it, say so by --trust {value}, or by trust=[{value!r}] in Python"
        )


def _value(value: Any, kind: Any, where: str, trust: frozenset[str], depth: int) -> Any:
    """A plain value, or a class where a family is annotated."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, where, trust, depth)
    if kind in (None, type(None)) and value is None:
        return None
    if origin is Literal and value in inner and type(value) in {type(x) for x in inner}:
        return value
    if kind in (Any, inspect.Parameter.empty):
        return _anything(value, where)
    if kind is float and type(value) is int:
        value = float(value)
    if kind in (bool, float, str) and type(value) is kind and value == value:  # NaN is no setting
        return value
    if kind is int and type(value) is int:
        return _bounded(value, where)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if dict in (kind, origin) and isinstance(value, dict):
        return _tree(value, where, depth)
    if origin is not None and isinstance(origin, type) and origin is not Callable and isinstance(value, list | tuple):
        if issubclass(origin, tuple) and inner and inner[-1] is not Ellipsis and len(inner) != len(value):
            raise _wrong(value, kind, where)
        if issubclass(origin, tuple | list) or origin.__name__ in ("Sequence", "Iterable", "Collection"):
            of = inner if issubclass(origin, tuple) and inner[-1] is not Ellipsis else inner[:1] * len(value)
            items = [_value(x, k, f"{where}[{i}]", trust, depth + 1) for i, (x, k) in enumerate(zip(value, of))]  # noqa: B905
            return tuple(items) if issubclass(origin, tuple) else items
    if isinstance(kind, type) and _is_family(kind):
        return _part(value, kind, where, trust, depth + 1)
    raise _wrong(value, kind, where)


def _one_of(value: Any, kinds: tuple[Any, ...], where: str, trust: frozenset[str], depth: int) -> Any:
    families = [kind for kind in kinds if isinstance(kind, type) and _is_family(kind)]
    if isinstance(value, dict) and families:  # its own error is more precise
        return _part(value, families[0], where, trust, depth + 1)
    # Texts before paths, whole numbers before floats.
    for kind in sorted(kinds, key=lambda kind: (kind is Path, kind is float)):
        try:
            return _value(value, kind, where, trust, depth)
        except ValueError:
            continue
    raise _wrong(value, Union[kinds], where)  # noqa: UP007


def _is_family(kind: type) -> bool:
    return kind not in (bool, int, float, str, bytes, list, tuple, dict, set, object, type, Path, type(None))


def _anything(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_anything(x, where) for x in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(value, where)
    if _is_plain(value):
        return value
    raise ValueError(f"{where} is {_shown(value)}, but it takes a plain value: use another checkpoint")


def _tree(value: Any, where: str, depth: int) -> Any:
    """Plain values by names, such as a published network's own configuration; it makes no class."""
    if not isinstance(value, dict):
        return _anything(value, where)
    if depth > DEPTH or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where} is no tree of plain values of at most {DEPTH} levels: use another checkpoint")
    return {key: _tree(x, f"{where}.{key}", depth + 1) for key, x in value.items()}


def _bounded(value: int, where: str) -> int:
    if abs(value) > LARGEST and where.rpartition(".")[2] != "seed":
        raise ValueError(f"{where} is {value:.3g}, but a record holds no whole number past {LARGEST:,}: correct it")
    return value


def _wrong(value: Any, kind: Any, where: str) -> ValueError:
    words = getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind).replace("typing.", "")
    return ValueError(f"{where} is {_shown(value)}, but it takes {words}: correct it, or use another checkpoint")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(x) for x in value)
    return value is None or isinstance(value, bool | int | float | str)


def _parts(value: Any) -> Iterator[Part]:
    if isinstance(value, Part):
        yield value
    elif isinstance(value, dict | list | tuple):
        for x in value.values() if isinstance(value, dict) else value:
            yield from _parts(x)


def _made(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_made, value))
    return value.make() if isinstance(value, Part) else value


def _spec(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_spec(x) for x in value]
    return value.spec() if isinstance(value, Part) else str(value) if isinstance(value, Path) else value
