"""What differs between a checkpoint's run and the one that goes on from it, and what becomes of each difference.

The configuration that the checkpoint carries is compared with the new one, both with all defaults written out.

| key of the configuration                                        | a change is | since it changes                 |
|-----------------------------------------------------------------|-------------|----------------------------------|
| `model`: network, schedule, first stage, conditioner, LoRA, …   | refused     | what the weights mean            |
| `model.init_args.optimizer` (the class)                         | refused     | what its state means             |
| `seed_everything`, `data`: its class, set, flips, held-out part | refused     | the draws and the images         |
| batch_size × devices × num_nodes × accumulate_grad_batches      | refused     | the images of a step             |
| `trainer.limit_train_batches`, `overfit_batches`                | refused     | the images of an epoch           |
| `trainer.precision` from or to weights of another type          | refused     | the weights                      |
| `model.init_args.optimizer.init_args`, `lr_scheduler`           | stated anew | the steps from here on           |
| the four factors above, where their product stays               | applied     | how a step is shared             |
| `model.init_args.vlb`, `compile`; `data`: memory, workers, root | applied     | nothing that is trained          |
| a frozen part's source, from or to its file in a run's folder   | applied     | nothing: the hash is compared    |
| of a first stage: slices, tile, compile                         | applied     | how it is computed               |
| `ema`, `checkpoint`, `trainer`: all the rest                    | applied     | the steps from here on, or none  |
| `trainer.default_root_dir`, `logger`, progress bar, `init_from` | not said    | nothing                          |

What is refused is applied where `--allow_changed KEY` names it or a key that holds it. *Stated anew*: the optimizer has
the new configuration's arguments, and the rate is that of a run that had the new schedule from its first step.
"""

import inspect
import math
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn

from ..frozen import stored
from ..known import find, parameters

MODEL, DATA = "model.init_args", "data.init_args"
OPTIMIZER, RATE, BATCH = f"{MODEL}.optimizer", f"{MODEL}.lr_scheduler", f"{DATA}.batch_size"
SOURCE = f"{DATA}.source.init_args"  # of data that are computed of others
BATCHES = (BATCH, f"{SOURCE}.batch_size")
ACCUMULATE = "trainer.accumulate_grad_batches"
FACTORS = (*BATCHES, "trainer.devices", "trainer.num_nodes", ACCUMULATE)

# What a part of `Diffusion` is where the configuration leaves it out.
LEFT_OUT = {
    f"{MODEL}.parameterization": "diffusion_lightning.denoising.Epsilon",
    f"{MODEL}.first_stage": "diffusion_lightning.first_stages.PixelSpace",
    f"{MODEL}.conditioner": "diffusion_lightning.conditioning.Unconditional",
    f"{MODEL}.timesteps": "diffusion_lightning.objectives.Uniform",
    f"{MODEL}.weighting": "diffusion_lightning.objectives.Simple",
    f"{MODEL}.vlb": "diffusion_lightning.likelihood.VLB",
}


class Kind(Enum):
    """What becomes of a change."""

    REFUSED = "refused"
    ANEW = "stated anew"
    APPLIED = "applied"
    SILENT = "not said"


# The first pattern that a key matches decides.
KINDS = [
    ("trainer.default_root_dir", Kind.SILENT),
    ("trainer.logger*", Kind.SILENT),
    ("trainer.enable_*", Kind.SILENT),
    ("init_from", Kind.SILENT),
    ("lora*", Kind.SILENT),  # the model has it too
    (OPTIMIZER, Kind.REFUSED),
    (f"{OPTIMIZER}.*", Kind.ANEW),
    (f"{RATE}*", Kind.ANEW),
    (f"{MODEL}.vlb", Kind.APPLIED),
    (f"{MODEL}.vlb.*", Kind.APPLIED),
    (f"{MODEL}.compile", Kind.APPLIED),
    *((f"{MODEL}.first_stage.init_args.{name}", Kind.APPLIED) for name in ("slices", "tile", "compile")),
    *((key, Kind.APPLIED) for key in FACTORS),  # their product is looked at by itself
    *((f"{of}.{name}", Kind.APPLIED) for of in (DATA, SOURCE) for name in ("num_workers", "max_memory_gib", "root")),
    *((pattern, Kind.REFUSED) for pattern in ("model*", "data*", "seed_everything")),
    *((f"trainer.{name}", Kind.REFUSED) for name in ("limit_train_batches", "overfit_batches")),
    ("*", Kind.APPLIED),
]


class Change(NamedTuple):
    """A key whose value is another one now."""

    key: str
    old: Any
    new: Any
    kind: Kind


def compared(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The changes from one configuration to another, both complete; of a class that changed, the class alone.

    Not counted: a class that is named by another of its modules, a number written otherwise, a part of the model that
    is written out and is what leaving it out means.
    """
    found = [Change(key, was, now, _kind(key, was, now)) for key, was, now in _differences(old, new)]
    return [change for change in found if change.kind is not Kind.SILENT]


def shared(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with the options of this version: what is no more is left out.

    An option that was not there yet has its class's default, or the new value if there is no plain default. Nothing
    that the old configuration names is imported; it comes from a file.
    """
    kind = _class(new.get("class_path"))
    if _class(old.get("class_path")) != kind:
        return old
    defaults = parameters(kind) if isinstance(kind, type) else {}
    found = {key: old.get(key, now) for key, now in new.items()}
    if defaults and isinstance(found.get("init_args"), dict) and isinstance(new.get("init_args"), dict):
        kinds = bool | int | float | str | None
        plain = {name: p.default for name, p in defaults.items() if isinstance(p.default, kinds)}
        found["init_args"] = {**{name: plain[name] for name in new["init_args"] if name in plain}, **found["init_args"]}
    return {
        key: shared(was, new[key]) if isinstance(was, dict) and isinstance(new[key], dict) else was
        for key, was in found.items()
    }


def global_batch(old: dict[str, Any], new: dict[str, Any], was_world: int | None, world: int | None) -> list[Change]:
    """The change of the images of an optimizer step, by whichever factor; none where they stay or cannot be known.

    Args:
        old: the checkpoint's configuration.
        new: the run's.
        was_world: the checkpoint's number of devices on all nodes; None takes it from the configuration.
        world: the run's; None likewise.
    """
    was_world, world = was_world or _devices(old), world or _devices(new)
    if was_world is None or world is None:
        return []
    key = next((key for key in BATCHES if _at(new, key)), BATCH)
    sizes = [[_at(side, key) or 1, devices, _at(side, ACCUMULATE) or 1]
             for side, devices in ((old, was_world), (new, world))]  # fmt: skip
    was, now = (math.prod(size) for size in sizes)
    texts = [
        f"{total} images a step ({size} a batch × {devices} devices × {accumulate} batches)"
        for total, (size, devices, accumulate) in zip((was, now), sizes, strict=True)
    ]
    return [Change(key, texts[0], texts[1], Kind.REFUSED)] if was != now else []


def check(changes: Iterable[Change], allowed: Iterable[str], path: str, step: int) -> None:
    """Raise ValueError for changes that are refused and not allowed.

    Args:
        changes: all of them.
        allowed: keys whose change is meant, with all that lies below them.
        path: the checkpoint, for the sentence.
        step: how many optimizer steps it has seen.
    """
    refused = [x for x in changes if x.kind is Kind.REFUSED and not _allowed(x.key, allowed)]
    if refused:
        said = ", ".join(f"{x.key} from {_said(x.old)} to {_said(x.new)}" for x in refused)
        words = " ".join(f"--allow_changed {key}" for key in dict.fromkeys(x.key for x in refused))
        raise ValueError(
            f"the configuration changes what the checkpoint {path} (step {step}) was trained with, {said}: give the "
            f"earlier value, start a new run from its weights by --init_from {path}, or add {words} if it is meant"
        )


def table(changes: Iterable[Change], path: str, step: int) -> str:
    """What has changed since the checkpoint, a line each; empty where nothing has."""
    notes = {Kind.ANEW: "stated anew", Kind.REFUSED: "allowed"}
    rows = [(x.key, f"{_said(x.old)} → {_said(x.new)}", notes.get(x.kind, "")) for x in changes]
    wide = max((len(key) for key, _, _ in rows), default=0)
    lines = [f"  {key:<{wide}}  {what}{f' ({note})' if note else ''}" for key, what, note in rows]
    return "\n".join([f"changed since the checkpoint {path} (step {step}):", *lines]) if lines else ""


def rate_schedule(module: Any) -> Any:
    """The schedule of the learning rate that a module is configured with, over a parameter of its own; or None."""
    optimizer, schedule = (getattr(module, name, None) for name in ("optimizer", "lr_scheduler"))
    if not (callable(optimizer) and callable(schedule)):
        return None
    return schedule(optimizer([nn.Parameter(torch.zeros(1, 1))]))


def check_stated_anew(schedule: Any, path: str) -> None:
    """Raise ValueError if a schedule's rate is no function of the step alone."""
    needs = [x for x in inspect.signature(schedule.step).parameters.values() if x.default is x.empty]
    if any(x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD) for x in needs):
        raise ValueError(
            f"{type(schedule).__name__} sets the learning rate by {needs[0].name}, not by the step alone, so it cannot "
            f"be stated anew in the middle of a run: keep the earlier lr_scheduler, or start afresh from the weights "
            f"by --init_from {path}"
        )


def _kind(key: str, old: Any, new: Any) -> Kind:
    if key == "trainer.precision":
        own = [str(x).partition("-")[0] if str(x).endswith("true") or str(x) == "64" else "32" for x in (old, new)]
        return Kind.APPLIED if own[0] == own[1] else Kind.REFUSED
    if key.startswith((f"{MODEL}.conditioner", f"{MODEL}.first_stage")) and (stored(old) or stored(new)):
        return Kind.APPLIED  # the file of a frozen part: its hash is compared with the checkpoint's
    return next(kind for pattern, kind in KINDS if fnmatchcase(key, pattern))


def _allowed(key: str, allowed: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in allowed)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    old, new = (_default(LEFT_OUT[key]) if side is None and key in LEFT_OUT else side for side in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        if _class(old.get("class_path")) != _class(new.get("class_path")):
            yield key, old, new
            return
        for name in dict.fromkeys([*old, *new]):
            if name != "class_path":
                inner = f"{key}.{name}" if key else name
                absent: Any = {} if name.endswith("args") else None
                yield from _differences(old.get(name, absent), new.get(name, absent), inner)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            if isinstance(a, dict) and isinstance(b, dict):
                yield from _differences(a, b, f"{key}.{number}")
            elif list(_differences(a, b)):
                yield key, old, new
                return
    elif old != new:
        yield key, old, new


def _class(path: Any) -> Any:
    """The class of a path, by whichever module it is named; the path if there is none or nobody has imported it."""
    if not isinstance(path, str):
        return path
    try:
        return find(path, "", ())
    except ValueError:
        module, _, name = path.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        return found if isinstance(found, type) else path


def _default(path: str) -> dict[str, Any]:
    """The configuration of an object of this class with the arguments that it takes where none are given."""
    takes = parameters(find(path, "", ()))
    return {"class_path": path, "init_args": {x.name: x.default for x in takes.values() if x.default is not x.empty}}


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _devices(config: dict[str, Any]) -> int | None:
    """The number of devices that a configuration names, None where it leaves that to the machine."""
    devices, nodes = _at(config, "trainer.devices"), _at(config, "trainer.num_nodes") or 1
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if devices == "auto" and _at(config, "trainer.accelerator") == "cpu":
        devices = 1
    return devices * nodes if isinstance(devices, int) and devices > 0 else None


def _said(value: Any) -> str:
    """A value in a table: a class by its name, a list of them by theirs."""
    if isinstance(value, dict):
        return str(value["class_path"]).rpartition(".")[2] if "class_path" in value else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_said, value))}]"
    return "null" if value is None else str(value)
