"""The classes that a file may name: those of this package, listed ones of others, and modules that the user trusts."""

import inspect
import sys
import sysconfig
import traceback
import typing
from collections.abc import Collection
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

# Where this package's classes are found by name, whatever folder or file an older record names.
FAMILIES = (
    "modules", "networks", "schedules", "denoising", "conditioning", "objectives", "likelihood", "samplers", "metrics",
    "extractors", "data", "callbacks", "loggers", "optim", "guidance", "first_stages", "curricula",
)  # fmt: skip
# What earlier versions called things. Permanent: configurations and checkpoints of any version keep working.
RENAMED = {"Inception": "InceptionV3", "Nothing": "ZeroWeight"}
RENAMED_ARGUMENTS = {
    "Arrays": {"memory": "max_memory_gib"},
    "CelebA": {"memory": "max_memory_gib"},
    "FrechetDistance": {"few": "allow_few"},
    "HuggingFace": {"broken": "on_error", "memory": "max_memory_gib"},
    "ImageFolder": {"broken": "on_error", "memory": "max_memory_gib"},
    "LossByTimestep": {"bands": "bins"},
}
RENAMED_VALUES = {("broken", "stop"): "raise"}  # of an argument's earlier name
RENAMED_WEIGHTS = {
    "DiT": {"enter": "conv_in", "leave": "proj_out", "time1": "time_mlp1", "time2": "time_mlp2"},
    "UNet": {
        "enter": "conv_in", "leave": "conv_out", "time1": "time_mlp1", "time2": "time_mlp2", "times": "time_proj",
    },
}  # fmt: skip
LEVELS = 100  # of a configuration as a tree
LAYERS = (
    "Conv2d", "Dropout", "ELU", "Embedding", "GELU", "GroupNorm", "Identity", "LayerNorm", "LeakyReLU", "Linear",
    "Mish", "ReLU", "Sigmoid", "SiLU", "Softplus", "Tanh",
)  # fmt: skip
LISTED = {"torch": ("torch.nn", LAYERS), "diffusers": ("diffusers", ("UNet2DModel",))}


def find(name: str, where: str, trust: Collection[str]) -> type:
    """The class of a name: of this package, listed, or in a module that the user trusts."""
    module, _, short = name.rpartition(".")
    top = name.partition(".")[0]
    if module == "" or top == __package__:
        short = RENAMED.get(short, short)
        families = sorted(FAMILIES, key=lambda family: family not in module.split("."))  # its own first
        found = next(filter(None, (public(family, short) for family in families)), None)
        if found is None:
            every = {known for family in families for known in classes(family)}
            near = get_close_matches(short, every, n=1, cutoff=0.7)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"{where} is {name}, but this version has no such class{meant}: correct it, or use the version that "
                "wrote it"
            )
        return found
    if top in LISTED and short in LISTED[top][1]:
        return getattr(_installed(LISTED[top][0], where), short)
    if module in trust:
        return _trusted(module, short, where)
    raise ValueError(
        f"{where} is {name}, which is code outside of this package, and a file does not decide what runs: nothing of "
        f"it was loaded; if it is yours, trust its module by --trust {module}, or by trust=[{module!r}] in Python"
    )


def current(path: str) -> str:
    """The present path of a class of this package; every other text as it is.

    Files that earlier versions wrote, and configurations that were written for them, name classes by the folders and
    files in which they lay then. Such names keep working, permanently, through this function.
    """
    module, _, short = path.rpartition(".")
    if not module.startswith(f"{__package__}.") or not all(part.isidentifier() for part in path.split(".")):
        return path
    try:
        if hasattr(import_module(module), short):
            return path
    except ImportError:
        pass
    found = next((family for family in FAMILIES if public(family, RENAMED.get(short, short))), None)
    return path if found is None else f"{__package__}.{found}.{RENAMED.get(short, short)}"


def current_arguments(config: Any, levels: int = LEVELS) -> Any:
    """A configuration in which the arguments of this package's classes have their present names; imports nothing."""
    if levels == 0:
        return config  # deeper than any that is read
    if isinstance(config, list):
        return [current_arguments(x, levels - 1) for x in config]
    if not isinstance(config, dict):
        return config
    found = {key: current_arguments(x, levels - 1) for key, x in config.items()}
    module, _, short = str(found.get("class_path")).rpartition(".")
    renamed = RENAMED_ARGUMENTS.get(short, {}) if module.partition(".")[0] in ("", __package__) else {}
    if renamed and isinstance(given := found.get("init_args"), dict):
        found["init_args"] = {
            renamed.get(name, name): RENAMED_VALUES.get((name, x), x) if isinstance(x, str) else x
            for name, x in given.items()
        }
    return found


def rename_weights(module: nn.Module, tensors: dict[str, Any]) -> None:
    """Give the weights of this package's networks in a module their present names, in a dict of its tensors by name."""
    for path, part in module.named_modules():
        kinds = [kind.__name__ for kind in type(part).__mro__ if kind.__module__.startswith(f"{__package__}.")]
        renamed = next((RENAMED_WEIGHTS[kind] for kind in kinds if kind in RENAMED_WEIGHTS), {})
        prefix = f"{path}." if path else ""
        for old, new in renamed.items():
            for name in [name for name in tensors if isinstance(name, str) and name.startswith(f"{prefix}{old}.")]:
                tensors.setdefault(prefix + new + name.removeprefix(prefix + old), tensors.pop(name))


def public(family: str, short: str) -> type | None:
    """The class of this name in a family of this package, None if there is none."""
    return classes(family).get(short)


def classes(family: str) -> dict[str, type]:
    """The classes of a family by their names."""
    members = vars(import_module(f"{__package__}.{family}")).items()
    own = f"{__package__}."
    return {name: x for name, x in members if isinstance(x, type) and x.__module__.startswith(own)}


def _installed(module: str, where: str) -> Any:
    """A module that is installed, never a file of the same name in the folder where the command runs."""
    path, here = sys.path, ("", str(Path.cwd()))
    sys.path = [place for place in path if place not in here]
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{where} is a class of {module}, which is not installed: install it") from error
    finally:
        sys.path = path


def _trusted(module: str, short: str, where: str) -> type:
    try:
        found = getattr(import_module(module), short)
    except Exception as error:  # whatever a user's own file raises
        absent = isinstance(error, AttributeError) or getattr(error, "name", None) == module.partition(".")[0]
        fix = f"run the command in the folder that holds it ({Path.cwd()} was searched), or install it"
        raise ValueError(
            f"{where} is {module}.{short}, which you trust, but it cannot be imported ({raised(error)}): "
            f"{fix if absent else 'correct that file'}"
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"{where} is {module}.{short}, which is no class: correct its class_path")
    return found


def raised(error: BaseException) -> str:
    """The type and message of an error, with the file and line of a user's own where it was raised."""
    message = " ".join(str(error).split())
    what = f"{type(error).__name__}{': ' if message else ''}{message if len(message) <= 160 else message[:157] + '...'}"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    libraries = (
        *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
    )
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [frame for frame in lines if not frame.filename.startswith(libraries)]
    return f"{what} ({own[-1].filename}, line {own[-1].lineno})" if own else what


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class by name, with resolved annotations; those that `**kwargs` pass to its bases too."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        init: Any = vars(base)["__init__"]
        init = inspect.unwrap(init)  # diffusers registers arguments around it
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # of a user's class: names that only a type checker sees
            hints = {}
        own = list(inspect.signature(init).parameters.values())[1:]
        for p in own:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p.replace(annotation=hints.get(p.name, p.annotation)))
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found
