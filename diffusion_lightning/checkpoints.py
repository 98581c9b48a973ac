"""Checkpoint files: read without running anything in them, and checked; `loading` builds models of them.

A checkpoint is Lightning's, of tensors and plain values only, with these additions: `config`, the text of the
configuration that made the run (JSON; YAML in older files), `wandb_id`, its run's in Weights & Biases, and the averaged
weights in the state of the callback `EMA`. The file is data: its configuration is read as `records` reads it, so it
names no code beyond a table of known classes, and a module of the user's own only if the user trusts it by name.
"""

import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from . import frozen, records

CONFIG = "config"
CLASSES = "class_names"  # those of class 0, 1, …; None if the data have none
THREADS = "threads"  # of each process that trained, on which the order of additions depends
WORLD = "world_size"  # the devices that trained
IMPORTED = "imported"  # where the weights of a checkpoint came from that no training here wrote
WANDB = "wandb_id"

LIGHTNING = "pytorch-lightning_version"
KINDS: dict[str, Any] = {
    "epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    LIGHTNING: str, WANDB: str, CLASSES: list, THREADS: int, WORLD: int, IMPORTED: str, frozen.KEY: dict,
}  # fmt: skip
NAME_OF_RUN = re.compile(r"(?!\.+$)[^/\\#?%:]{1,128}")  # in Weights & Biases; it names a folder here
OPTIONAL = {WANDB, CLASSES, THREADS, WORLD}  # None is unknown
COUNTS = {"ready", "started", "processed", "completed", "_batches_that_stepped"}  # what Lightning's loops keep
TREES = {"total", "current", "optimizer", "step", "zero_grad"}
KINDS_OF_LOOPS = {"is_last_batch": bool, "combined_loader": list}

MOST = 2**48  # batches or steps that a run may have counted


def found(path: str | Path) -> Path:
    """The file that is meant by a path: a checkpoint, a run's folder (its last), `FOLDER/last` or `FOLDER/best`.

    `last` and `best` alone are those of the run below the folder `runs` whose last checkpoint is the newest.

    Raises:
        ValueError: if a folder or a word is given and there is no such checkpoint.
    """
    path = Path(path).expanduser()
    word = path.name if path.name in ("last", "best") and not path.exists() else ""
    folder = path.parent if word else path
    if word and str(path) == word:
        runs = sorted(Path("runs").rglob("checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise ValueError(f"{word} is the newest run's, but {Path.cwd() / 'runs'} holds no run: give a path")
        folder = runs[-1].parent.parent
    if not folder.is_dir():
        return path
    file = folder / "checkpoints" / f"{word or 'last'}.ckpt"
    if not file.exists():
        raise ValueError(f"the folder {folder} has no {file.relative_to(folder)}: give a .ckpt file or a run's folder")
    return file


def read(path: str | Path) -> dict[str, Any]:
    """The file's content, on the CPU; its checksums (CRC-32 of each entry) are compared first.

    Raises:
        ValueError: if there is no such file, it is cut short or damaged, it holds code, or it is something else.
    """
    path = found(path)
    if not path.exists():
        near = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"there are {', '.join(near)}" if near else "give the path of a .ckpt file"
        raise ValueError(f"the checkpoint {path} does not exist: {hint}")
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for
        raise ValueError(f"{path} is no file, but a checkpoint is one: give the path of a .ckpt file")
    damaged = f"the checkpoint {path} ({path.stat().st_size} bytes) is cut short, damaged or no checkpoint: use another"
    if not zipfile.is_zipfile(path):  # torch's format since 1.6; nothing older, such as a bare pickle, is opened
        raise ValueError(damaged)
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the checkpoint {path} holds more than tensors and plain values, and loading it could run code: "
            "nothing was loaded; use a checkpoint that this program wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError,
            zipfile.BadZipFile, NotImplementedError) as error:  # fmt: skip
        raise ValueError(damaged) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} is not a training checkpoint: it has no state_dict; give a .ckpt file of a run")
    _check_kinds(checkpoint, path)
    _check_tensors(checkpoint, path)
    return checkpoint


def _check_kinds(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise ValueError if what Lightning and this package look for in a checkpoint is of another kind."""
    for key, kind in KINDS.items():
        if key not in checkpoint or (key in OPTIONAL and checkpoint[key] is None):
            continue
        value = checkpoint[key]
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 <= value <= MOST)):
            wanted = f"a whole number up to {MOST:,}" if kind is int else f"a {kind.__name__}"
            raise ValueError(f"{key} in {path} is {str(value)[:60]}, but it is {wanted}: use another checkpoint")
    name = checkpoint.get(WANDB)
    if name is not None and not (NAME_OF_RUN.fullmatch(name) and name.isprintable()):
        raise ValueError(f"{WANDB} in {path} is {name!r:.60}, which names no run: use another checkpoint")
    if not all(isinstance(x, str) and frozen.HASH.fullmatch(x) for x in checkpoint.get(frozen.KEY, {}).values()):
        raise ValueError(f"{frozen.KEY} in {path} holds what is no hash: use another checkpoint")
    ema = checkpoint.get("callbacks", {}).get("EMA", {})
    if not isinstance(ema, dict) or not all(isinstance(ema.get(key, {}), dict) for key in ("average", "compensation")):
        raise ValueError(f"the average in {path} is {str(ema)[:60]}, but it is one of weights: use another checkpoint")
    try:
        Version(checkpoint.get(LIGHTNING) or "2.0")
    except InvalidVersion as error:
        raise ValueError(f"{LIGHTNING} in {path} is no version ({error}): use another checkpoint") from error
    _check_progress(checkpoint.get("loops") or {}, "loops", path)


def _check_progress(loops: dict[Any, Any], where: str, path: Path) -> None:
    """Raise ValueError if what Lightning's loops counted is no tree of whole numbers."""
    for key, value in loops.items():
        name = str(key)
        counts = name in COUNTS
        tree = name in TREES or name.endswith(("_loop", "progress", "state_dict"))
        kind: Any = int if counts else dict if tree else KINDS_OF_LOOPS.get(name, object)
        if not isinstance(value, kind) or (counts and (isinstance(value, bool) or not 0 <= value <= MOST)):
            shown, wanted = str(value)[:60], f"a whole number up to {MOST:,}" if counts else f"a {kind.__name__}"
            raise ValueError(f"{where}.{name} in {path} is {shown}, but it is {wanted}: use another checkpoint")
        if isinstance(value, dict):
            _check_progress(value, f"{where}.{name}", path)


def check_archive(path: Path) -> None:
    """Raise BadZipFile if an entry's bytes are not those that were written, or stand for more than the file has."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)  # torch packs none
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries stand for more bytes than the file has")
        if (bad := file.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {bad} differs")


def _check_tensors(checkpoint: dict[str, Any], path: Path) -> None:
    every = (checkpoint["state_dict"], averaged(checkpoint), averaged(checkpoint, "compensation"))
    for name, x in (item for tensors in every for item in tensors.items()):
        if not isinstance(name, str):
            raise ValueError(f"a tensor in {path} has the name {name!r}, which is no text: use another checkpoint")
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_meta or x.is_quantized:
            raise ValueError(f"{name} in {path} is no tensor of numbers: use another checkpoint")
        if x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise ValueError(f"{name} in {path} says {x.numel():,} numbers and stores fewer: use another checkpoint")


def config(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The configuration of the run that wrote the checkpoint, as plain data.

    Raises:
        ValueError: if it carries none, or none that is plain data of at most 1 MB.
    """
    if CONFIG not in checkpoint:
        raise ValueError(
            f"the checkpoint {path} carries no configuration, since it was not written by `diffusion-lightning fit`: "
            "build its model yourself and load its state_dict"
        )
    return records.parsed(checkpoint[CONFIG], path)


def averaged(checkpoint: dict[str, Any], what: str = "average") -> dict[str, Tensor]:
    """The EMA's weights, or their `compensation`, by the parameters' names; empty if the run kept none."""
    return checkpoint.get("callbacks", {}).get("EMA", {}).get(what, {})
