"""What a checkpoint file holds, read without running anything in it.

A checkpoint is Lightning's, of tensors and plain values only, with three additions: `config`, the text of the
`config.yaml` that made the run, `wandb_id`, its run's in Weights & Biases, and the averaged weights in the state of the
callback `EMA`.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from .modules import Diffusion

CONFIG = "config"
IMPORTED = "imported"  # where the weights of a checkpoint came from that no training here wrote
WANDB = "wandb_id"


def read(path: str | Path) -> dict[str, Any]:
    """The file's content, on the CPU.

    Raises:
        ValueError: where there is no such file, it is cut short, it holds code, or it is something else.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"there are {', '.join(near)}" if near else "give the path of a .ckpt file"
        raise ValueError(f"the checkpoint {path} does not exist: {hint}")
    damaged = f"the checkpoint {path} ({path.stat().st_size} bytes) is cut short, damaged or no checkpoint: use another"
    if not zipfile.is_zipfile(path):  # torch's format since 1.6; nothing older, such as a bare pickle, is opened
        raise ValueError(damaged)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the checkpoint {path} holds more than tensors and plain values, and loading it could run code: "
            "nothing was loaded; use a checkpoint that this program wrote"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(damaged) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a training checkpoint: it has no state_dict; give a .ckpt file of a run")
    return checkpoint


def config(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The configuration of the run that wrote the checkpoint.

    Raises:
        ValueError: where it carries none.
    """
    if CONFIG not in checkpoint:
        raise ValueError(
            f"the checkpoint {path} carries no configuration, since it was not written by `diffusion-lightning fit`: "
            "build its model yourself and load its state_dict"
        )
    return yaml.safe_load(checkpoint[CONFIG])


def check_fits(module: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Nothing where the checkpoint's weights are those of a module like this one.

    Raises:
        ValueError: names the first parameter that differs.
    """
    _compare(module.state_dict(), checkpoint["state_dict"], path)


def _compare(own: dict[str, Any], theirs: dict[str, Tensor], path: str | Path) -> None:
    for name in [*own, *(name for name in theirs if name not in own)]:
        here, there = (list(side[name].shape) if name in side else None for side in (own, theirs))
        if here != there:
            raise ValueError(
                f"the checkpoint {path} belongs to another model: its {name} is {there or 'missing'}, this model's is "
                f"{here or 'missing'}; use the configuration it was trained with, or another checkpoint"
            )


def averaged(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The EMA's weights by the parameters' names; empty where the run kept none."""
    return checkpoint.get("callbacks", {}).get("EMA", {}).get("average", {})


def build(model: dict[str, Any]) -> Diffusion:
    """The model that a configuration's `model` describes, with fresh weights."""
    parser = _parser()
    return parser.instantiate(parser.parse_object({"model": model})).model


def complete(model: dict[str, Any]) -> dict[str, Any]:
    """A configuration's `model` with every default spelled out."""
    parser = _parser()
    text = parser.dump(parser.parse_object({"model": model}), skip_none=False, skip_validation=True, format="yaml")
    return yaml.safe_load(text)["model"]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Diffusion, "model")
    return parser


def load(ckpt: str | Path) -> Diffusion:
    """The model of a checkpoint with the EMA's weights, in eval mode, ready to `generate`; nothing but the file.

    Raises:
        ValueError: where the file is no checkpoint of `diffusion-lightning fit`.
    """
    checkpoint = read(ckpt)
    model = build(config(checkpoint, ckpt)["model"])
    check_fits(model, checkpoint, ckpt)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_state_dict(averaged(checkpoint), strict=False)
    return model.eval()


def start_from(module: nn.Module, path: str) -> None:
    """Gives a module the averaged weights of another run's checkpoint, and nothing else of that run.

    Raises:
        ValueError: where they are not those of a module like this one.
    """
    checkpoint = read(path)
    theirs = {**checkpoint["state_dict"], **averaged(checkpoint)}
    own, theirs = (
        {name: x for name, x in side.items() if name.startswith(("denoiser.", "conditioner."))}
        for side in (module.state_dict(), theirs)
    )
    _compare(own, theirs, path)
    module.load_state_dict(theirs, strict=False)
