"""Files of other projects: JSON, and tensors by name; neither runs anything that a file may hold."""

import json
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import checkpoints

FILE = "diffusion_pytorch_model"  # of a network's weights in a folder of diffusers'


def config_of(file: Path) -> dict[str, Any]:
    """A JSON file's content.

    Raises:
        ValueError: if it is cut short, or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is cut short or no JSON ({error}): get it again") from error


def file_of(place: Path) -> Path:
    """The weights of a network in a folder of diffusers'; raise ValueError if there are none."""
    files = [p for suffix in ("safetensors", "bin") for p in place.glob(f"{FILE}.{suffix}")]
    if not files:
        raise ValueError(f"{place} has a config.json, but no {FILE}.safetensors or .bin: add the weights")
    return files[0]


def weights_of(file: Path) -> dict[str, Tensor]:
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
