"""Files of other projects: read as data, whatever they hold."""

import json
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import checkpoints

Weights = dict[str, Tensor]


def read_json(file: Path) -> dict[str, Any]:
    """A file of JSON, such as a config.json; raise ValueError if it holds no keys."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is cut short or no JSON ({error}): get it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__} and no keys: get it again")
    return found


def read_weights(file: Path) -> Weights:
    """A file's weights, the averaged ones if it has both; runs nothing that it may hold."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give the path of a folder or of a file of weights")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            checkpoints.check_archive(file)
        with torch.serialization.safe_globals([Namespace]):  # DiT's training keeps its arguments
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and torch each have their own
        raise ValueError(f"{file} is cut short, damaged, or holds more than weights: nothing was loaded") from error
    for key in ("ema", "state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{file} is not a file of weights by name: give one")
    return {name: x.float() if x.is_floating_point() else x for name, x in found.items()}
