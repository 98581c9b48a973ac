"""What a command was given, its files and options put together as plain data, in the parser's own order.

For messages: the parser itself stops at the first word that does not fit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

Tree = dict[str, Any]


def tree(words: Sequence[str], defaults: Tree) -> Tree:
    """What the words of a command describe: the files of `--config` one over another, the options over these."""
    found: Tree = {}
    for name, value in options(words):
        if name in ("config", "c"):
            _merge(found, get_loader("yaml")(Path(value).read_text(encoding="utf-8")) or {})
    for name, value in options(words):
        if name not in ("config", "c"):
            _set(found, name.removesuffix("+").split("."), value, name.endswith("+"), defaults)
    return found


def options(words: Sequence[str]) -> list[tuple[str, Any]]:
    """Each option and its value; None if it has none, a list if it has several."""
    found: list[tuple[str, Any]] = []
    values: list[str] = []
    for word in reversed(words):
        if not word.startswith("-") or word[1:2].isdigit():
            values.insert(0, word)
            continue
        name, equals, value = word.partition("=")
        given = [value] if equals else values
        parsed = [yaml.safe_load(x) if name.lstrip("-") not in ("config", "c") else x for x in given]
        found.insert(0, (name.lstrip("-"), parsed[0] if len(parsed) == 1 else parsed or None))
        values = []
    return found


def _merge(below: Tree, over: Tree) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            if "class_path" in value and value["class_path"] != below[key].get("class_path"):
                below[key] = {**_renamed(below[key], value["class_path"])}
            _merge(below[key], value)
        else:
            below[key] = value


def _set(at: Tree, keys: list[str], value: Any, append: bool, defaults: Any) -> None:
    """Sets what an option says, as the parser does: `init_args` may be left out, and a list's last entry is meant."""
    key, *rest = keys
    defaults = defaults.get(key) if isinstance(defaults, dict) else None
    if key not in ("class_path", "init_args", "dict_kwargs") and "class_path" in at:
        at = at.setdefault("init_args", {})
    if not rest:
        old = at.get(key)
        if append:
            at[key] = [*(old if isinstance(old, list) else [] if old is None else [old]), value]
        elif isinstance(old, dict) and "class_path" in old and isinstance(value, str):
            at[key] = _renamed(old, value)
        elif key == "class_path" and isinstance(value, str):
            at.update(_renamed(at, value))
        else:
            at[key] = value
        return
    if isinstance(at.get(key), list) and at[key]:
        if isinstance(at[key][-1], str):
            at[key][-1] = {"class_path": at[key][-1]}
        below = at[key][-1]
    elif isinstance(at.get(key), str) and rest != ["class_path"]:
        below = at[key] = {"class_path": at[key]}
    else:
        if not isinstance(at.get(key), dict):
            at[key] = dict(defaults) if isinstance(defaults, dict) else {}
        below = at[key]
    if isinstance(below, dict):
        _set(below, rest, value, append, defaults)


def _renamed(old: Tree, class_path: str) -> Tree:
    """A class in another's place, which keeps those of its arguments that it takes too."""
    return {"class_path": class_path, "kept": {**old.get("kept", {}), **(old.get("init_args") or {})}}
