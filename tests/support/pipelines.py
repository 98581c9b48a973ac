"""Tiny latent pipelines of random weights, in the true layout of diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)  # fmt: skip

LENGTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz,."
# Stable Diffusion's own.
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
    "norm_num_groups": 4,
}  # fmt: skip
LATENT_UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    """CLIP's own class, of letters and one word; its files are those of the published folders, with no tokenizer.json.

    The end of a caption pads it in version 1, an exclamation mark in version 2.
    """
    vocabulary = {x: k for k, x in enumerate([*LETTERS, *(f"{x}</w>" for x in LETTERS)])}
    merges = [("g", "r"), ("gr", "e"), ("gre", "y</w>")]
    for word in (*(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>", "!"):
        vocabulary[word] = len(vocabulary)
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**marks, "pad_token": pad, "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def clip_text(tokenizer: Any) -> Any:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=16, **ids,
        )
    ).eval()  # fmt: skip


def randomised(network: Any, size: float = 1.0) -> Any:
    """With weights of which no two outputs are alike, as an untrained network's nearly are."""
    for p in network.parameters():
        p.data = torch.randn_like(p) * size * (0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
    return network.eval()


def autoencoder(**changes: Any) -> Any:
    return AutoencoderKL(
        **{
            "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16,
            **changes,
        }
    ).eval()  # fmt: skip


def stable_diffusion(folder: Path, pad: str = "<|endoftext|>", **scheduler: Any) -> StableDiffusionPipeline:
    """The pipeline, and its folder as the published ones are."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name}_tokenizer", pad)
    made = StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=clip_text(tokenizer), tokenizer=tokenizer,
        unet=randomised(UNet2DConditionModel(**UNET)), scheduler=DDIMScheduler(**{**SCHEDULER, **scheduler}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.move(folder.parent / f"{folder.name}_tokenizer", folder / "tokenizer")
    made.set_progress_bar_config(disable=True)
    return made


def latent_diffusion(folder: Path, **scheduler: Any) -> LDMPipeline:
    torch.manual_seed(1)
    vqvae = VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, vq_embed_dim=3, num_vq_embeddings=32,
        norm_num_groups=4, scaling_factor=0.7,
    ).eval()  # fmt: skip
    given = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}
    made = LDMPipeline(
        vqvae=vqvae, unet=randomised(UNet2DModel(**LATENT_UNET)), scheduler=DDIMScheduler(**{**given, **scheduler})
    )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made
