"""The adapters of a model as diffusers' `load_lora_weights` takes them, their alpha beside them."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..files import written
from ..modules import Diffusion

FILE = "pytorch_lora_weights.safetensors"
WITHIN = "model."  # the attribute of a network that holds diffusers' own
PIPELINE = "unet"  # the name that pipelines have for it
METADATA = "lora_adapter_metadata"  # diffusers' key of it


def check_lora(model: Diffusion) -> None:
    """Raise ValueError if there are no adapters, or none of a network of diffusers."""
    instead = "export its merged weights by --format weights"
    if model.adapters is None:
        raise ValueError("the model has no adapters, since it was trained without lora: export its weights instead")
    inner = getattr(model.denoiser.network, WITHIN.rstrip("."), None)
    if not hasattr(inner, "load_lora_adapter"):  # as all networks have that a pipeline adapts
        raise ValueError(
            f"diffusers' pipelines take adapters of its own networks, but the network is a "
            f"{type(model.denoiser.network).__name__}: {instead}"
        )


def lora(model: Diffusion, config: dict[str, Any], folder: Path) -> None:
    """`pytorch_lora_weights.safetensors`, with rank, alpha and targets in its metadata, where diffusers reads them."""
    lora, layers = model.adapters
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in layers.items():
        theirs = f"{PIPELINE}.{name.removeprefix(WITHIN)}"
        tensors |= {f"{theirs}.lora_A.weight": a.contiguous(), f"{theirs}.lora_B.weight": b.contiguous()}
    config = {
        "r": lora.rank,
        "lora_alpha": float(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": [name.removeprefix(WITHIN) for name in layers],
    }
    said = json.dumps({f"{PIPELINE}.{key}": value for key, value in config.items()}, indent=2, sort_keys=True)
    with written(folder / FILE) as stream:
        stream.write(save(tensors, metadata={"format": "pt", METADATA: said}))
