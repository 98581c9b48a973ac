"""What went wrong, in one sentence that names what was given, where, and what to give instead."""

import argparse
import errno
import re
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from ..report.words import printable

# What every run has, and what to do instead of setting it to null.
NEEDED = {
    "ema": "for none, set ema.decay to 0",
    "checkpoint": "for the last checkpoint alone, set checkpoint.keep to 0",
    "trainer": "leave the key out for its defaults",
}


def null(key: str) -> str:
    """What is wrong if one of `NEEDED` is null."""
    return f"{key} is null, but every run has one: {NEEDED[key]}"


def sentence(message: str, options: Iterable[str] = ()) -> str:
    """One sentence for a complaint of jsonargparse.

    Args:
        message: what it says.
        options: the options that the command has, for a suggestion.
    """
    text = " ".join(message.split())
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text)))
    place = f" for {key}" if key else ""
    if found := re.search(
        r"Multiple subclasses with name (\w+)\. Give the full class path [^:]*: (.*?)\. ", f"{text} "
    ):
        return (
            f"there are several classes {found[1]}{place}: give one by its full path, {found[2].replace(', ', ' or ')}"
        )
    if found := re.search(r"does not accept option '([^']+)'|unrecognized arguments: -*([^\s=]+)", text):
        name = found[1] or found[2]
        return f"there is no option {name}{meant(name, options)}: correct or remove it"
    if key in NEEDED and "Unable to load config 'null'" in text:
        return null(key)
    if found := re.search(r"Call to compute_fn of link .*? failed: (.*)", text):
        return found[1]
    if found := re.search(r"File does not exist: '?([^']+)'?", text):
        return f"the configuration {found[1]} does not exist: give the path of a .yaml file"
    if "arguments are required" in text and ".model" in text:
        return f"{text}: name them in a file and give it by --config, such as --config configs/digits.yaml"
    text = re.sub(r"(Namespace|NestedArg)\(.*", "a value that does not fit", text)
    return text if len(text) <= 380 else f"{text[:377]}..."


def meant(name: str, among: Iterable[str]) -> str:
    """A suggestion, where one of the names is near; by the last word where options are dotted."""
    among = list(among)
    if name in among:
        return " of this kind, though there is one of another"
    near = get_close_matches(name, among, n=1, cutoff=0.7)
    near = near or [full for full in among if full.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f" (did you mean {near[0]}?)" if near else ""


def hidden(module: str) -> str:
    """What to do if an installed package has the name of a file or folder here, which is searched last."""
    top = module.partition(".")[0]
    try:
        found = find_spec(top)
    except (ImportError, ValueError):
        return ""
    origin = Path((found and (found.origin or next(iter(found.submodule_search_locations or ()), ""))) or "")
    # Not by whether it lies under this folder, where an environment such as .venv may lie too.
    here = Path.cwd()
    own = (here / f"{top}.py", here / top, here / top / "__init__.py")
    if origin in own or not any(path.exists() for path in own[:2]):
        return ""
    fix = "so rename yours, name its folder by PYTHONPATH, or "
    return f"an installed package is named {top} too ({origin.parent}), {fix}"


FIXES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room there, or choose another place",
    (errno.EACCES, errno.EPERM, errno.EROFS): "choose another place, or allow writing there",
    (errno.EEXIST, errno.ENOTDIR): "a file is where a folder should be, so choose another place, or move it away",
    (errno.EISDIR, errno.ENOTEMPTY): "a folder is where a file should be, so choose another place, or move it away",
    (errno.ENOENT,): "correct the path",
}


def of_the_system(error: OSError) -> str:
    """One sentence for what the operating system refused: where, what, and what to do instead."""
    fixes = (words for numbers, words in FIXES.items() if error.errno in numbers)
    where = "" if error.filename is None else f"{error.filename}: "
    what = error.strerror or str(error) or type(error).__name__
    return f"{where}{what}: {next(fixes, 'see to it, or choose another place')}"


class Arguments(argparse.ArgumentParser):
    """The words of a command that is not Lightning's; what is wrong with them is one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}: see {self.prog} --help")


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on standard error, and the end."""
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    raise SystemExit(status)


def raised_in(error: BaseException) -> str:
    """The package whose code raised it."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].partition(".")[0] if frames else ""


def first_cause(error: BaseException) -> BaseException:
    """What the parser's own errors wrap: the first error in the chain that was raised outside of it."""
    while (inner := error.__cause__ or error.__context__) is not None and raised_in(error) == "jsonargparse":
        error = inner
    return error
