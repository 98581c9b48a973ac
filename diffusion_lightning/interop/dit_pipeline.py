"""diffusers' `DiTPipeline`: DiT over an autoencoder's latents, read from its folder and written as one.

    transformer/  DiTTransformer2DModel, or Transformer2DModel as older files call it
    vae/          AutoencoderKL, the first stage
    scheduler/    the betas, the times, and what is predicted
    model_index.json, with the names of the classes

diffusers' own class is the network (`networks.DiffusersDiT`). Published files repeat one embedder of time and class in
every block: it is read as one, and written in every block again.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import write_text, written
from ..first_stages.autoencoder import FrozenAutoencoder
from ..modules import Diffusion
from .diffusers import PREDICTS, schedule_of, scheduler_config
from .layout import PACKAGE, Weights, described_model
from .source import read_json, read_weights

PIPELINE = "DiTPipeline"
USE = """from diffusers import DiTPipeline

images = DiTPipeline.from_pretrained(".")([CLASS], guidance_scale=4.0, num_inference_steps=50).images"""
FILE = "diffusion_pytorch_model"  # of a network's weights
NETWORKS = ("DiTTransformer2DModel", "Transformer2DModel")
# What their class can do and `DiffusersDiT` does not, and what it takes where its config is silent.
FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
    "upcast_attention": False,
}
# Our arguments, their names, and what they take where their config is silent.
NAMES: dict[str, tuple[str, Any]] = {
    "in_channels": ("in_channels", 4),
    "size": ("sample_size", 32),
    "patch": ("patch_size", 2),
    "depth": ("num_layers", 28),
    "heads": ("num_attention_heads", 16),
    "head_channels": ("attention_head_dim", 72),
    "out_channels": ("out_channels", None),
    "classes": ("num_embeds_ada_norm", 1000),
    "dropout": ("dropout", 0.0),
    "norm_eps": ("norm_eps", 1e-5),
}
# What a `DiTPipeline`'s scheduler has beside the betas: DDIM's times, and no bound of latents.
DDIM: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "leading",
}
FIRST, EMBEDDER = "transformer_blocks.0.norm1.emb.", ".norm1.emb."
DROPOUT = 0.1  # of labels, with which DiT was trained
BEFORE = "denoiser.network.model."  # their weights within our model


class Pipeline(NamedTuple):
    """A pipeline as this package has it.

    Args:
        model: the record of its `Diffusion`.
        sampler: the record of the sampler that is the pipeline's; None if it is none of ours.
        weights: of its network, by their names in the model's state_dict.
        class_names: those of class 0, 1, …; None if some have none.
    """

    model: dict[str, Any]
    sampler: dict[str, Any] | None
    weights: dict[str, Tensor]
    class_names: list[str] | None


def frozen(folder: Path) -> tuple[str, ...]:
    """The folders of its frozen parts that hold weights."""
    return ("vae",)


def read(folder: Path, source: str) -> Pipeline:
    """The pipeline in a folder, whose first stage is named by `source`: the folder itself, or a copy.

    Raises:
        ValueError: if it is no pipeline of a DiT, or has an option that is not read.
    """
    config, scheduler = (read_json(folder / p) for p in ("transformer/config.json", "scheduler/scheduler_config.json"))
    arguments = network_arguments(config, folder)
    weights = read_weights(_file(folder / "transformer"))
    weights, arguments["shared"] = _once(weights)
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise ValueError(
            f"the scheduler's prediction_type is {predicts}, but {', '.join(PREDICTS)} are known: give one"
        )
    layout = FrozenAutoencoder(source).layout
    if layout.latent_channels != arguments["in_channels"]:
        raise ValueError(
            f"the DiT in {folder} takes {arguments['in_channels']} channels, but the autoencoder beside it makes "
            f"latents of {layout.latent_channels}: get the folder again"
        )
    size = arguments["size"] * layout.factor
    parts = {
        "network": ("networks.DiffusersDiT", arguments),
        "schedule": schedule_of(scheduler),
        "parameterization": (f"denoising.{PREDICTS[predicts]}", {}),
        "first_stage": ("first_stages.Pretrained", {"model": source, "precision": None}),
        "conditioner": ("conditioning.Labels", {"classes": arguments["classes"], "dropout": DROPOUT}),
    }
    model = described_model([layout.in_channels, size, size], parts)
    ours = {BEFORE + name: x for name, x in weights.items()}
    return Pipeline(model, _sampler(scheduler), ours, _names(folder, arguments["classes"]))


def network_arguments(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of the `DiffusersDiT` that a transformer's config describes, all but `shared`.

    Raises:
        ValueError: if it describes another network.
    """
    kind = config.get("_class_name")
    if kind not in NETWORKS:
        raise ValueError(f"{folder} has a {kind} as transformer, but {' and '.join(NETWORKS)} are read: give one")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"the transformer in {folder} has {key} = {config[key]}, but DiffusersDiT has {value} alone: take "
                "another pipeline"
            )
    found = {ours: config.get(theirs, default) for ours, (theirs, default) in NAMES.items()}
    found["out_channels"] = found["out_channels"] or found["in_channels"]
    return found


def stores(model: Diffusion) -> bool:
    """Whether it is written as such a pipeline."""
    return type(getattr(model.denoiser.network, "model", None)).__name__ == NETWORKS[0]


def write(model: Diffusion, config: Mapping[str, Any], folder: Path) -> None:
    """Writes a model with a `DiffusersDiT` and an autoencoder of diffusers as the folder of a `DiTPipeline`.

    Args:
        model: the model.
        config: its checkpoint's configuration.
        folder: where it is written.

    Raises:
        ValueError: see `check`.
    """
    check(model)
    network: Any = model.denoiser.network
    stage: Any = model.first_stage
    own = network.model.state_dict()
    first = {k.removeprefix(FIRST): x for k, x in own.items() if k.startswith(FIRST)}
    for i in range(len(network.model.transformer_blocks)) if network.shared else ():
        own |= {f"transformer_blocks.{i}{EMBEDDER}{k}": x for k, x in first.items()}
    described = {k: v for k, v in network.model.config.items() if not k.startswith("_")}
    scheduler = scheduler_config(model.schedule, type(model.denoiser.parameterization).__name__, False) | DDIM
    del scheduler["variance_type"]  # DDIM has none
    description = stage.frozen.description
    index: dict[str, Any] = {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", NETWORKS[0]],
        "vae": ["diffusers", description["class"]],
    }
    if model.class_names:
        index["id2label"] = {str(k): text for k, text in enumerate(model.class_names)}
    scale = float(stage.scale.flatten()[0])
    for place, content in (
        ("model_index.json", index),
        ("transformer/config.json", {"_class_name": NETWORKS[0], **described}),
        ("vae/config.json", {"_class_name": description["class"], **description["config"], "scaling_factor": scale}),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        write_text(folder / place, json.dumps(content, indent=2) + "\n")
    for place, tensors in (("transformer", own), ("vae", stage.frozen.network.state_dict())):
        kept = {key: x.detach().cpu().clone().contiguous() for key, x in tensors.items()}
        with written(folder / place / f"{FILE}.safetensors") as stream:
            stream.write(save(kept, metadata={"format": "pt"}))


def check(model: Diffusion) -> None:
    """Raise ValueError if no `DiTPipeline` samples from this model; the message names the obstacle."""
    instead = "export its weights or its program, by --format weights or --format program"
    network: Any = model.denoiser.network
    if not stores(model):
        raise ValueError(
            f"the network is a {type(network).__name__}, but a DiTPipeline takes diffusers' own DiT, whose frequencies "
            f"of the time are not DiT's: train a DiffusersDiT instead, or {instead}"
        )
    stage: Any = model.first_stage
    found = getattr(getattr(stage, "frozen", None), "description", {})
    scales = stage.scale.flatten() if found.get("kind") == "diffusers" else torch.zeros(1)
    if found.get("class") != "AutoencoderKL" or bool((scales != scales[0]).any()) or bool(stage.shift.any()):
        raise ValueError(
            "the first stage is no AutoencoderKL of diffusers with one scale and no shift, but a DiTPipeline takes no "
            f"other: {instead}"
        )
    if tuple(stage.pixels) != (-1.0, 1.0):
        raise ValueError(f"the first stage takes pixels in [0, 1], but a DiTPipeline gives it [-1, 1]: {instead}")
    if type(model.denoiser.parameterization).__name__ not in PREDICTS.values():
        raise ValueError(
            f"the network predicts {type(model.denoiser.parameterization).__name__}, but diffusers' schedulers take "
            f"{', '.join(PREDICTS.values())}: {instead}"
        )
    if model.denoiser.rescale_timesteps and model.schedule.T != 1000:
        raise ValueError(
            f"the network is fed 1000/T·(t - 1) with T = {model.schedule.T}, but diffusers' schedulers feed it whole "
            f"numbers: {instead}"
        )


def _once(weights: Weights) -> tuple[dict[str, Tensor], bool]:
    """The weights with an embedder of one block alone if all blocks have the same one; and whether they have."""
    others = {k: x for k, x in weights.items() if EMBEDDER in k and not k.startswith(FIRST)}
    same = all(torch.equal(x, weights.get(FIRST + k.partition(EMBEDDER)[2], x[:0])) for k, x in others.items())
    return {k: x for k, x in weights.items() if not (same and k in others)}, same


def _sampler(scheduler: Mapping[str, Any]) -> dict[str, Any] | None:
    """DDIM of 50 steps at the times of a `DDIMScheduler`; None of another class."""
    if scheduler.get("_class_name") != "DDIMScheduler":
        return None
    if scheduler.get("clip_sample", True):
        warnings.warn(
            "the pipeline's scheduler clips x_0 to ±1, but latents have no such bound: it is not clipped here, and "
            "samples differ from the pipeline's",
            stacklevel=3,
        )
    spacing, offset = scheduler.get("timestep_spacing", "leading"), scheduler.get("steps_offset", 0)
    final = 0 if scheduler.get("set_alpha_to_one", True) else 1
    if spacing not in ("leading", "trailing"):
        return None
    given = {k: x for k, x in (("offset", offset), ("final", final)) if x} if spacing == "leading" else {}
    times = {"class_path": f"{PACKAGE}.samplers.{spacing.capitalize()}", "init_args": given}
    return {"class_path": f"{PACKAGE}.samplers.DDIM", "init_args": {"steps": 50, "clip": None, "spacing": times}}


def _file(place: Path) -> Path:
    """The weights of a network, safetensors if there are both; raise ValueError if there are none."""
    found = next((p for suffix in ("safetensors", "bin") for p in place.glob(f"{FILE}.{suffix}")), None)
    if found is None:
        raise ValueError(f"{place} has a config.json, but no {FILE}.safetensors or .bin: add the weights")
    return found


def _names(folder: Path, classes: int) -> list[str] | None:
    """The names of all classes in their order; None if some have none."""
    index = folder / "model_index.json"
    found = read_json(index).get("id2label") if index.is_file() else None
    wanted = [str(k) for k in range(classes)]
    if not isinstance(found, dict) or not all(isinstance(found.get(k), str) for k in wanted):
        return None
    return [found[k] for k in wanted]
