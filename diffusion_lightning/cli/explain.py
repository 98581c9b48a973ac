"""Which key of a configuration does not fit, what it takes, what is missing and what was raised, in one sentence.

When the parser refuses, the configuration, as plain data (`given`), is walked with the signatures of the classes that
it names. What the walk finds is a `Fault`; if it finds none, the parser's own words stand (`errors`).
"""

import inspect
import traceback
import types
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from ..known import FAMILIES, RENAMED, classes, parameters, raised
from .errors import hidden, meant, raised_in

PACKAGE = __package__.partition(".")[0]
LONGEST = 8  # names in a list of what a class takes
Tree = dict[str, Any]
PLAIN = (bool, int, float, str, bytes, list, tuple, dict, set, object, type, Path, type(None))


class Fault(Exception):  # noqa: N818 no error of this program
    """What is wrong with a configuration, and the fix, in one sentence."""


# The walk


def check(config: Tree, takes: dict[str, Any], linked: Iterable[str] = ()) -> None:
    """Raise Fault for the first key that does not fit.

    Args:
        config: the configuration.
        takes: the type of each key, by its dotted name.
        linked: dotted names that the parser fills in itself.
    """
    _check_keys(config, takes, "")
    for key, kind in takes.items():
        at: Any = config
        for part in key.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if at is not None:
            _value(at, kind, key, frozenset(linked))


def _check_keys(config: Tree, takes: dict[str, Any], within: str) -> None:
    for name, value in config.items():
        key = f"{within}{name}"
        if key in takes:
            continue
        if not any(known.startswith(f"{key}.") for known in takes):
            raise Fault(f"there is no option {key}{meant(key, takes)}: correct or remove it")
        if isinstance(value, dict):
            _check_keys(value, takes, f"{key}.")


def _value(value: Any, kind: Any, key: str, linked: frozenset[str]) -> None:
    kinds = _alternatives(kind)
    families = [(family, 0) for family in kinds if _is_family(family)]
    families += [_made_by(x) for x in kinds if get_origin(x) is not None and _is_callable(x)]
    plain = [x for x in kinds if not _is_family(x) and not _is_callable(x) and x is not type(None)]
    items = [get_args(x)[0] for x in plain if _is_list(x) and get_args(x)]
    if isinstance(value, list) and items:
        for number, item in enumerate(value):
            where = f"{key}[{number}]" if _holdsclasses(items) else key
            _value(item, Union[tuple(items)], where, linked)  # noqa: UP007
        return
    others = [x for x in plain if not _is_list(x)]
    named = isinstance(value, str) and families and "/" not in value
    named = named and ("." in value or not others or (value[:1].isupper() and str not in others))
    if named or (isinstance(value, dict) and families and not _is_mapping(plain)):
        spec = {"class_path": value} if isinstance(value, str) else value
        return _class(spec, families, key, linked)
    if not _fits(value, kind):
        raise Fault(f"{key} is {shown(value)}, but it takes {words(kind)}: correct its value")


def _class(spec: Tree, families: list[tuple[Any, int]], key: str, linked: frozenset[str]) -> None:
    family, supplied = families[0]
    name = spec.get("class_path")
    if name is None:
        within = spec.get("init_args") or spec
        only = family.__module__.startswith(f"{PACKAGE}.") and not _descendants(family)[1:]  # a family of one
        if not only and (inspect.isabstract(family) or "init_args" in spec or set(within) - set(parameters(family))):
            raise Fault(
                f"{key}.{next(iter(within), '')} is given, but {key} has no class that takes it: give {key} a "
                f"class_path; it takes {_members(family)}"
            )
        spec = {"class_path": f"{family.__module__}.{family.__qualname__}", "init_args": within}
        name = spec["class_path"]
    kind = _found(str(name), [family for family, _ in families], key)
    if kind is None or not callable(kind):
        return
    if isinstance(kind, type) and all(isinstance(family, type) for family, _ in families):
        if not any(issubclass(kind, family) for family, _ in families):
            raise Fault(f"{key} is {name}, but it takes {_members(family)}: correct its class_path")
        if inspect.isabstract(kind):
            raise Fault(f"{key} is {name}, a family and no member of one: it takes {_members(kind)}")
    if not isinstance(kind, type):
        return
    takes = parameters(kind)
    given = spec.get("init_args") or {}
    if not isinstance(given, dict):
        raise Fault(f"{key}.init_args is {shown(given)}, but it takes names and values: correct it")
    given = {**{k: v for k, v in spec.get("kept", {}).items() if k in takes}, **given}
    short = kind.__name__
    for argument in given:
        if argument not in takes and not _takes_more(kind):
            raise Fault(f"{key} is {a(short)}, which takes no {argument}{meant(argument, takes)}: {_list(takes)}")
    # Of its own signature: what `**kwargs` would reach in a base class is often given there.
    wanted = [n for n, p in list(inspect.signature(kind).parameters.items())[supplied:]
              if p.default is p.empty and n in takes]  # fmt: skip
    missing = [n for n in wanted if given.get(n) is None and f"{key}.init_args.{n}" not in linked
               and (n not in given or not _fits(None, takes[n].annotation))]  # fmt: skip
    for argument, value in given.items():
        if argument in takes and argument not in missing:
            _value(value, takes[argument].annotation, f"{key}.{argument}", linked)
    if missing:
        what = " and ".join(f"{n} ({words(takes[n].annotation)})" for n in missing)
        raise Fault(f"{key} is {a(short)} without {what}, which it needs: give {key}.{missing[0]}")


def _found(name: str, families: list[Any], key: str) -> Any:
    """The class of a name; None if the parser finds it in a way that this walk does not know."""
    module, _, short = name.rpartition(".")
    if not module:
        short = RENAMED.get(short, short)
        own = {x for family in FAMILIES for n, x in classes(family).items() if n == short}
        found = own | {x for family in families for x in _descendants(family) if x.__name__ == short}
        fitting = [x for x in found if any(isinstance(f, type) and issubclass(x, f) for f in families)]
        fitting = [x for x in fitting if x in own] or fitting  # as the parser takes it
        if not found:
            near = meant(short, sorted({x.__name__ for family in families for x in _descendants(family)}))
            near = near or meant(short, sorted({n for family in FAMILIES for n in classes(family)}))
            raise Fault(
                f"there is no class {name} for {key}{near}: give a class of this package by its name, or any other by "
                "its full path, such as my_package.my_file.MyClass"
            )
        return (fitting or list(found))[0] if len(fitting) <= 1 else None
    try:
        holder = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module}.".startswith(f"{missing}."):
            parent, _, last = module.rpartition(".")
            if parent and _is_class(parent, last):  # a class method, such as a constructor of another name
                return None
            raise Fault(
                f"there is no class {name} for {key}, since there is no module {missing}: {hidden(module)}correct its "
                f"class_path, or run the command where {missing.partition('.')[0]} lies ({Path.cwd()} was searched)"
            ) from error
        raise Fault(f"{key} is {name}, but importing {module} raised {raised(error)}: correct that file") from error
    except Exception as error:
        raise Fault(f"{key} is {name}, but importing {module} raised {raised(error)}: correct that file") from error
    if not hasattr(holder, short):
        near = meant(short, [n for n, x in vars(holder).items() if isinstance(x, type)])
        fix = f"{hidden(module)}correct its class_path"
        raise Fault(f"there is no class {name} for {key}{near}, as {module} has no {short}: {fix}")
    return getattr(holder, short)


def _is_class(module: str, name: str) -> bool:
    try:
        return isinstance(getattr(import_module(module), name, None), type)
    except Exception:
        return False


def _descendants(kind: Any) -> list[type]:
    if not isinstance(kind, type) or kind in PLAIN:
        return []
    below: list[type] = type.__subclasses__(kind)
    return [kind, *(x for child in below for x in _descendants(child))]


def _members(family: Any) -> str:
    """A family in words, with some members of this package."""
    name = getattr(family, "__name__", str(family))
    below = set(_descendants(family)[1:])
    own = {n for f in FAMILIES for n, x in classes(f).items() if x in below and not inspect.isabstract(x)}
    some = sorted(own)[:LONGEST]
    return a(name) + (f", such as {', '.join(some)}" if some else "")


def a(name: str) -> str:
    """A name with its article."""
    return f"a{'n' if name[:1] in 'AEIO' else ''} {name}"


# Types


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [x for inner in get_args(kind) for x in _alternatives(inner)]
    return [kind]


def _is_family(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and kind not in (*PLAIN, Any, inspect.Parameter.empty)


def _is_callable(kind: Any) -> bool:
    return get_origin(kind) is not None and get_origin(kind) in (Callable, get_origin(Callable[[], int]))


def _made_by(kind: Any) -> tuple[Any, int]:
    """What a callable makes, and how many arguments its caller supplies."""
    given, made = get_args(kind) or ([], object)
    return made, len(given) if isinstance(given, list) else 0


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and not _is_callable(kind) and not issubclass(origin, dict) and origin is not type


def _is_mapping(kinds: list[Any]) -> bool:
    return any(isinstance(x, type) and issubclass(x, dict) for x in (get_origin(kind) or kind for kind in kinds))


def _holdsclasses(kinds: list[Any]) -> bool:
    return any(_is_family(x) for kind in kinds for x in _alternatives(kind))


def _takes_more(kind: type) -> bool:
    """Whether a constructor passes other names on to a function."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())


def _fits(value: Any, kind: Any) -> bool:
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, str):
        return True
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=kind)
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    except Exception:  # a type that the parser does not know
        return True
    return True


def words(kind: Any) -> str:
    """A type as a user writes its values: `int or null`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in (None, type(None)):
        return "null"
    if origin in (Union, types.UnionType):
        named = list(dict.fromkeys(words(x) for x in inner))
        return " or ".join([*(x for x in named if x != "null"), *(x for x in named if x == "null")])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is not None and _is_list(kind):
        return f"a list of {words(inner[0])}" if inner else "a list"
    if _is_callable(kind):
        return f"a class_path of what makes a {words(inner[1])}" if inner else "a function"
    return "anything" if kind is inspect.Parameter.empty else getattr(kind, "__name__", str(kind))


def shown(value: Any) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(takes: Iterable[str]) -> str:
    names = list(takes)
    more = f" and {len(names) - LONGEST * 2} more" if len(names) > LONGEST * 2 else ""
    return f"it takes {', '.join(names[: LONGEST * 2])}{more}" if names else "it takes no arguments"


# What a user's own class raised


def own_fault(error: BaseException, config: Any) -> str | None:
    """A sentence for an error that was raised in a user's own class while it was made; None for any other."""
    if isinstance(error, ValueError) and raised_in(error) == PACKAGE:
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        kind = type(frame.f_locals.get("self"))
        name = f"{kind.__module__}.{kind.__name__}"
        if kind.__module__.partition(".")[0] in (PACKAGE, "torch", "lightning"):
            continue
        if (key := _key_of(name, config, "")) is not None:
            return f"{key} is {name}, which raised {raised(error)}: correct it or its arguments"
    inner = error.__cause__ or error.__context__  # the parser wraps what it meets
    return own_fault(inner, config) if inner is not None else None


def _key_of(name: str, config: Any, key: str) -> str | None:
    """Where a configuration names a class."""
    if isinstance(config, list):
        config = {f"[{number}]": x for number, x in enumerate(config)}
    if not isinstance(config, dict):
        return None
    if config.get("class_path") == name:
        return key
    for part, value in config.items():
        below = key if part == "init_args" else f"{key}{part}" if part[0] == "[" else f"{key}.{part}".lstrip(".")
        if (found := _key_of(name, value, below)) is not None:
            return found
    return None
