"""Tiny autoencoders of random weights in diffusers' own format."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from torch import Tensor

from ..conftest import put
from .callbacks import with_callbacks

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "VQModel")
BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 8), "norm_num_groups": 2, "mid_block_add_attention": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {  # of factor 2
    "AutoencoderKL": {**BLOCKS, "latent_channels": 4, "sample_size": 8, "scaling_factor": 0.18215},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1), "latent_channels": 4,
    },
    "AutoencoderDC": {
        "encoder_block_out_channels": (4, 8), "decoder_block_out_channels": (4, 8), "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ()),
        "latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.41407,
    },
    "VQModel": {**BLOCKS, "latent_channels": 3, "num_vq_embeddings": 16, "vq_embed_dim": 3},
}  # fmt: skip


def autoencoder(folder: Path, kind: str = "AutoencoderKL", channels: int = 1, seed: int = 0, **config: Any) -> Any:
    """Writes an autoencoder of random weights into a folder, and returns it; images of `channels`, factor 2."""
    torch.manual_seed(seed)
    sizes = {"in_channels": channels, **({} if kind == "AutoencoderDC" else {"out_channels": channels})}
    made = getattr(diffusers, kind)(**{**CONFIGS[kind], **sizes, **config}).eval()
    made.save_pretrained(folder)
    return made.requires_grad_(False)


def pictures(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    """Images in [-1, 1]."""
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def watched(model: Any, sampler: Any, n: int) -> tuple[Tensor, Tensor]:
    """Samples of a model, and what its sampler's loop ended with."""
    found = []

    def keep(*given: Any, **more: Any) -> Tensor:
        found.append(sampler(*given, **more))
        return found[-1]

    return model.generate(n, keep), found[0]


def with_stage(folder: Path, model: Path | str, *callbacks: tuple[str, dict[str, Any]], **stage: Any) -> Path:
    """The small config of the digits over the latents of a first stage, with an album and these callbacks alone."""
    channels = stage.pop("channels", 4)
    changes = {key.replace("__", "."): stage.pop(key) for key in list(stage) if "__" in key}
    path = with_callbacks(folder, *callbacks, **{"checkpoint.monitor": None})
    config = yaml.safe_load(path.read_text())
    network = config["model"]["init_args"]["network"]["init_args"]
    network.update(in_channels=channels, size=4, multipliers=[1, 2])
    first = {"class_path": "diffusion_lightning.first_stages.Pretrained", "init_args": {"model": str(model), **stage}}
    config["model"]["init_args"]["first_stage"] = first
    for key, value in changes.items():
        put(config, key, value)
    path.write_text(yaml.safe_dump(config))
    return path
