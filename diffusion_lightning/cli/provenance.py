"""Where a run comes from: the commit of the code, the images themselves, the model and the machine."""

import hashlib
import json
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..metrics.evaluation import digest
from ..modules import Generative


def git_commit() -> str | None:
    """The commit checked out in the working folder, with `-dirty` where tracked files differ from it; None outside."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            encoding="utf-8",
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def fingerprint(data: Any) -> str | None:
    """A hash of the training images of a data module, None for one that cannot show them."""
    return digest(data.reference("train")) if hasattr(data, "reference") else None


def about(trainer: Trainer, module: LightningModule, origin: dict[str, str | None], started: str | None = None) -> str:
    """What a run's report says of its model, machine and code, beside the configuration: JSON."""
    try:
        operations = module.operations() if isinstance(module, Generative) else None
    except Exception:  # whatever a user's network makes of being run without memory: the run needs no such figure
        operations = None
    found = {
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "operations": operations,
        "device": device(trainer.strategy.root_device),
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        **origin,
        "versions": {name: of for name in ("diffusion_lightning", "torch", "lightning") if (of := _version(name))},
        "started": started or time.strftime("%Y-%m-%d %H:%M"),
    }
    return json.dumps({key: value for key, value in found.items() if value is not None}, indent=1) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # it runs from its folder, uninstalled
        return None


def device(of: torch.device) -> str:
    """A device as its maker calls it."""
    if of.type == "cuda":
        return torch.cuda.get_device_name(of)
    name = platform.processor()
    if of.type == "cpu" and (known := Path("/proc/cpuinfo")).exists():
        lines = known.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{of.type}, {name}" if name else of.type


def contents(data: Any) -> dict[str, str]:
    """Hashes of the images and labels that a data module holds now, by their names."""
    found = {}
    for split, (_, y) in getattr(data, "splits", {}).items() if hasattr(data, "reference") else ():
        found[f"{split} images"] = digest(data.reference(split))
        found[f"{split} labels"] = hashlib.blake2b(y.cpu().contiguous().numpy().data, digest_size=16).hexdigest()
    return found
