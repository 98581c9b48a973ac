"""The layout of diffusers' `UNet2DModel`, as which DDPM's published checkpoints are stored, and its configs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import UNet
from ..networks.base.blocks import Attention, Block
from ..schedules import Schedule
from .layout import Layout, Pair, Weights, described_model, joined, parts

# Differences of the released codes that no paper states.
RELEASES: dict[str, dict[str, Any]] = {
    "DDPM": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "IDDPM": {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5},
}
# What `UNet2DModel` can do and `UNet` does not, and what it takes where its config is silent.
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
}
DEFAULTS: dict[str, Any] = {
    **FIXED,
    **RELEASES["IDDPM"],
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_type": "conv",
    "dropout": 0.0,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "resnet_time_scale_shift": "default",
    "upsample_type": "conv",
}
PREDICTS = {"epsilon": "Epsilon", "sample": "X0", "v_prediction": "Velocity"}
OWN = "name diffusers.UNet2DModel itself as the network of a config"
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class Diffusers(Layout):
    """A `UNet` as diffusers' `UNet2DModel`; the names of its attentions before version 0.13 are read too."""

    name = "diffusers"
    network = UNet
    labels = "class_embedding.weight"

    def pairs(self, network: Any) -> Iterator[Pair]:
        return joined(self._pairs(network), "time", "time_proj", [rows for rows in network.time_channels if rows])

    def _pairs(self, network: UNet) -> Iterator[Pair]:
        yield from parts("time_mlp1", "time_embedding.linear_1")
        yield from parts("time_mlp2", "time_embedding.linear_2")
        yield from parts("conv_in", "conv_in")
        yield from self._levels(network.down, "down", "down_blocks", "downsamplers")
        yield from self._block(network.middle[0], "middle.0", "mid_block", 0)
        yield from self._block(network.middle[1], "middle.1", "mid_block", 1)
        yield from self._levels(network.up, "up", "up_blocks", "upsamplers")
        yield from parts("norm", "conv_norm_out")
        yield from parts("conv_out", "conv_out")

    def read(self, network: nn.Module, weights: Weights) -> dict[str, Tensor]:
        return super().read(network, present_names(weights))

    def _levels(self, modules: nn.ModuleList, ours: str, theirs: str, samplers: str) -> Iterator[Pair]:
        level, k = 0, 0
        for i, module in enumerate(modules):
            if isinstance(module, Block) and module.takes_skip:
                yield from self._block(module, f"{ours}.{i}", f"{theirs}.{level}", k)
                k += 1
                continue
            if isinstance(module, Block):
                yield from self._resnet(module, f"{ours}.{i}", f"{theirs}.{level}.{samplers}.0")
            else:
                yield from parts(f"{ours}.{i}.conv", f"{theirs}.{level}.{samplers}.0.conv")
            level, k = level + 1, 0

    def _block(self, block: nn.Module, ours: str, theirs: str, k: int) -> Iterator[Pair]:
        yield from self._resnet(block, ours, f"{theirs}.resnets.{k}")
        if isinstance(block.attention, Attention):
            there = f"{theirs}.attentions.{k}"
            yield from parts(f"{ours}.attention.norm", f"{there}.group_norm")
            for what in ("weight", "bias"):
                names = tuple(f"{there}.to_{letter}.{what}" for letter in "qkv")
                yield Pair(f"{ours}.attention.qkv.{what}", names, 2 if what == "weight" else None)
            yield from parts(f"{ours}.attention.out", f"{there}.to_out.0", 2)

    def _resnet(self, block: nn.Module, ours: str, theirs: str) -> Iterator[Pair]:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            yield from parts(f"{ours}.{name}", f"{theirs}.{name}")
        yield from parts(f"{ours}.time", f"{theirs}.time_emb_proj")
        if isinstance(block.skip, nn.Conv2d):
            yield from parts(f"{ours}.skip", f"{theirs}.conv_shortcut")


def present_names(weights: Weights) -> dict[str, Tensor]:
    """The weights of attentions as version 0.13 and later name them."""
    pattern = re.compile("|".join(map(re.escape, OLD)))
    return {pattern.sub(lambda m: OLD[m[0]], name): x for name, x in weights.items()}


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the `UNet` that a `UNet2DModel`'s config describes.

    Raises:
        ValueError: if it has an option that `UNet` lacks.
    """
    has = {**DEFAULTS, **config}
    for key, value in FIXED.items():
        if has[key] != value:
            raise ValueError(f"the UNet2DModel has {key} = {has[key]}, but UNet has {value} alone: {OWN}")
    release = next((name for name, values in RELEASES.items() if all(has[k] == v for k, v in values.items())), None)
    if release is None:
        raise ValueError(
            f"the UNet2DModel has {', '.join(f'{k} = {has[k]}' for k in RELEASES['DDPM'])}, but UNet has DDPM's "
            f"{tuple(RELEASES['DDPM'].values())} and IDDPM's {tuple(RELEASES['IDDPM'].values())}: {OWN}"
        )
    scale_shift = has["resnet_time_scale_shift"] == "scale_shift"
    if has["attn_norm_num_groups"] not in ([has["norm_num_groups"]] if scale_shift else [None, has["norm_num_groups"]]):
        raise ValueError(
            f"the UNet2DModel normalises its middle attention in {has['attn_norm_num_groups']} groups and all else in "
            f"{has['norm_num_groups']}, but UNet has one number for both: {OWN}"
        )
    widths, size = list(has["block_out_channels"]), has["sample_size"]
    channels = widths[0]
    odd = [w for w in widths if w % channels]
    if odd or not isinstance(size, int):
        raise ValueError(
            f"the UNet2DModel has levels of {widths} features for images of {size} pixels, but UNet's are multiples of "
            f"the first, and its images square: {OWN}"
        )
    attended = ["Attn" in kind for kind in has["down_block_types"]]
    if attended != ["Attn" in kind for kind in reversed(list(has["up_block_types"]))]:
        raise ValueError(
            f"the UNet2DModel attends on the way down in {has['down_block_types']} and on the way up in "
            f"{has['up_block_types']}, but UNet does at the same sizes: {OWN}"
        )
    return {
        "in_channels": has["in_channels"],
        "size": size,
        "channels": channels,
        "multipliers": [w // channels for w in widths],
        "blocks": has["layers_per_block"],
        "attention": [size // 2**level for level, attends in enumerate(attended) if attends],
        "dropout": has["dropout"],
        "groups": has["norm_num_groups"],
        "out_channels": has["out_channels"],
        "heads": 1,
        "head_channels": has["attention_head_dim"],
        "scale_shift": scale_shift,
        "resample_blocks": has["downsample_type"] == "resnet",
        "release": release,
    }


def unet_config(network: UNet) -> dict[str, Any]:
    """The `config.json` of a `UNet2DModel` that is this network.

    Raises:
        ValueError: if `UNet2DModel` cannot have its widths or its attentions' heads.
    """
    if network.patch != 1:
        raise ValueError(
            f"the network folds squares of {network.patch} pixels into channels, which UNet2DModel does not: export "
            "its weights or its program instead of a pipeline"
        )
    if network.multipliers[0] != 1:
        raise ValueError(
            f"the network goes from {network.channels} features to {network.channels * network.multipliers[0]} at its "
            f"first level (multipliers {list(network.multipliers)}), but UNet2DModel begins with those of its first "
            "level: export its weights or its program instead of a pipeline"
        )
    if network.blocks == 0 and set(network.multipliers) != {1}:
        raise ValueError(
            f"the network has no blocks on the way down to levels of multipliers {list(network.multipliers)}, so its "
            "features stay as many as at the first, but UNet2DModel's change there all the same: export its weights or "
            "its program instead of a pipeline"
        )
    attentions = [m for m in network.modules() if isinstance(m, Attention)]
    features = {m.qkv.in_channels // m.heads for m in attentions}
    single = all(m.heads == 1 for m in attentions)
    if len(features) > 1 and not single:
        raise ValueError(
            f"the network's heads have {sorted(features)} features at its levels, but UNet2DModel has one number for "
            "all: export its weights or its program instead of a pipeline"
        )
    levels = len(network.multipliers)
    attended = [network.size // 2**level in network.attention for level in range(levels)]
    plain = "Resnet" if network.resample_blocks else ""
    down = ["AttnDownBlock2D" if a else f"{plain}Down{'sample' if plain else ''}Block2D" for a in attended]
    up = ["AttnUpBlock2D" if a else f"{plain}Up{'sample' if plain else ''}Block2D" for a in reversed(attended)]
    kind = "resnet" if network.resample_blocks else "conv"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": network.size,
        "in_channels": network.in_channels,
        "out_channels": network.conv_out.out_channels,
        "block_out_channels": [network.channels * m for m in network.multipliers],
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": network.blocks,
        "dropout": network.style.dropout,
        "norm_num_groups": network.style.groups,
        "attn_norm_num_groups": network.style.groups,  # None would leave out the norm where time scales and shifts
        "attention_head_dim": None if single else features.pop(),
        "resnet_time_scale_shift": "scale_shift" if network.style.scale_shift else "default",
        "downsample_type": kind,
        "upsample_type": kind,
        **RELEASES[network.release],
        **FIXED,
    }


def schedule_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The schedule that a scheduler's config describes: a class of ours and its arguments.

    Raises:
        ValueError: if there is none like it.
    """
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"the scheduler {config.get('_class_name')} has no betas, so it is not one of a DDPM: give the schedule "
            "that the network was trained with by --config"
        )
    T, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "the scheduler rescales its betas to a terminal SNR of zero, and that is not read: give the schedule by "
            "--config, as ZeroTerminalSNR around its own"
        )
    if config.get("trained_betas") is not None:
        return "schedules.Betas", {"betas": list(config["trained_betas"])}
    if kind == "linear":
        return "schedules.Linear", {"T": T, "beta_1": first, "beta_T": last}
    if kind == "scaled_linear":
        return "schedules.ScaledLinear", {"T": T, "beta_1": first, "beta_T": last}
    if kind == "squaredcos_cap_v2":
        return "schedules.Cosine", {"T": T}
    raise ValueError(
        f"the scheduler's beta_schedule is {kind}, but linear, scaled_linear, squaredcos_cap_v2 or trained betas are "
        "read: give the schedule by --config"
    )


def scheduler_config(schedule: Schedule, parameterization: str, learned: bool) -> dict[str, Any]:
    """The `scheduler_config.json` of a `DDPMScheduler` with this schedule's own betas, spaced as `Trailing` is."""
    t = torch.arange(1, schedule.T + 1)
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": schedule.beta(t, t - 1).tolist(),
        "prediction_type": next(theirs for theirs, ours in PREDICTS.items() if ours == parameterization),
        "variance_type": "learned_range" if learned else "fixed_large",
        "timestep_spacing": "trailing",
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


def model_arguments(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The model that a pipeline's two configs are of, as our configuration describes it."""
    unet = unet_arguments(network)
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise ValueError(
            f"the scheduler's prediction_type is {predicts}, but {', '.join(PREDICTS)} are known: give one"
        )
    described = {
        "network": ("networks.UNet", unet),
        "schedule": schedule_of(scheduler),
        "parameterization": (f"denoising.{PREDICTS[predicts]}", {}),
    }
    classes = network.get("num_class_embeds")
    if classes is not None:
        table = {"classes": classes, "width": 4 * unet["channels"], "dropout": 0.0}
        described["conditioner"] = ("conditioning.ClassLabels", table)
    return described_model([unet["in_channels"], unet["size"], unet["size"]], described)
