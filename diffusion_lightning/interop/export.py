"""A checkpoint's averaged model for others to use, in a folder with its model card.

- `pipeline`: what `diffusers.DDPMPipeline.from_pretrained`, or `DDIMPipeline`'s, opens, of a latent model what
  `StableDiffusionPipeline`'s or `LDMPipeline`'s does;
- `weights`: `model.safetensors` under this package's names, and the configuration beside it;
- `lora`: `pytorch_lora_weights.safetensors`, the adapters that diffusers' `load_lora_weights` takes;
- `program`: `denoiser.pt2`, the denoiser (x_t, t) → (x_0, ε) as `torch.export.load` opens it, without this package.
"""

import io
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn

from .. import checkpoints, frozen, loading
from ..files import left, locked, sweep, write_text, written, written_folder
from ..modules import Diffusion
from ..modules.base.merging import unadapted
from . import model_card, pipelines
from .diffusers import PREDICTS, Diffusers, scheduler_config, unet_config
from .lora import check_lora, lora


def export(ckpt: str, folder: Path, formats: Collection[str], trust: Collection[str] = ()) -> None:
    """Write the averaged model in some formats, to a folder that is whole or not there.

    Args:
        ckpt: the checkpoint.
        folder: empty, or not there yet.
        formats: of `FORMATS`.
        trust: see `load`.

    Raises:
        ValueError: if the folder is not empty, the checkpoint is not to be read, or its model has no such format.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} exists already and is no folder: choose another place")
    with locked(folder, "wait until that has ended, or choose another place"):
        if any(not left(entry) for entry in folder.iterdir()):
            raise ValueError(
                f"{folder} exists already and is not empty, and nothing is overwritten: choose another place"
            )
        sweep(folder, age=0)
        checkpoint = checkpoints.read(ckpt)
        config = checkpoints.config(checkpoint, ckpt)
        model = loading.restored(checkpoint, config, ckpt, trust)
        if (lost := [name for name in formats if name != "weights"]) and getattr(model, "scale", None) is not None:
            raise ValueError(
                f"the model takes the scale of guidance as a condition, but the format {lost[0]} has none: export its "
                "weights, by --format weights"
            )
        if "pipeline" in formats:
            check_pipeline(model)
        if "lora" in formats:
            check_lora(model)
        config = {**config, "model": unadapted(config["model"])}  # into whose weights the adapters are merged
        with written_folder(folder) as part:
            for name in formats:
                FORMATS[name](model, config, part)
            write_text(part / "README.md", model_card.text(model, checkpoint, ckpt, formats))


def check_pipeline(model: Diffusion) -> None:
    """Raise ValueError if diffusers' pipelines cannot sample from this model; the message names the obstacle."""
    instead = "export its weights or its program, by --format weights or --format program"
    if (latent := pipelines.of_model(model)) is not None:
        return latent.check(model)
    network: Any = model.denoiser.network
    if not Diffusers().stores(network) and type(network).__name__ != "UNet2DModel":
        raise ValueError(
            f"the network is a {type(network).__name__}, but diffusers' DDPMPipeline takes a U-Net: {instead}"
        )
    if model.conditioner.conditional:
        raise ValueError(f"the model has a condition, but diffusers' DDPMPipeline has none: {instead}")
    predicts = type(model.denoiser.parameterization).__name__
    if predicts not in PREDICTS.values():
        raise ValueError(
            f"the network predicts {predicts}, but diffusers' schedulers take {', '.join(PREDICTS.values())}: {instead}"
        )
    if model.denoiser.rescale_timesteps and model.schedule.T != 1000:
        raise ValueError(
            f"the network is fed 1000/T·(t - 1) with T = {model.schedule.T}, but diffusers' schedulers feed it whole "
            f"numbers: {instead}"
        )
    if Diffusers().stores(network):
        unet_config(network)


def pipeline(model: Diffusion, config: dict[str, Any], folder: Path) -> None:
    """`model_index.json`, `unet/` and `scheduler/`, and of a latent model its first stage and text encoder."""
    if (latent := pipelines.of_model(model)) is not None:
        return latent.write(model, config, folder)
    network: Any = model.denoiser.network
    if Diffusers().stores(network):
        described, stored = unet_config(network), Diffusers().write(network, dict(network.named_parameters()))
    else:  # diffusers' own
        described = {"_class_name": "UNet2DModel"} | {k: v for k, v in network.config.items() if not k.startswith("_")}
        stored = network.state_dict()
    height, width = model.shape[1:]
    described["sample_size"] = height if height == width else [height, width]
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    scheduler = scheduler_config(
        model.schedule, type(model.denoiser.parameterization).__name__, model.predicts_variance
    )
    for place, content in (
        ("model_index.json", index),
        ("unet/config.json", described),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        write_text(folder / place, json.dumps(content, indent=2) + "\n")
    tensors = {name: x.detach().contiguous() for name, x in stored.items()}
    with written(folder / "unet/diffusion_pytorch_model.safetensors") as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))


def weights(model: Diffusion, config: dict[str, Any], folder: Path) -> None:
    """`model.safetensors`, `config.yaml`, and `frozen/` of a model with frozen parts."""
    with written(folder / "model.safetensors") as stream:
        stream.write(save({name: x.contiguous() for name, x in model.state_dict().items()}))
    write_text(folder / "config.yaml", yaml.safe_dump({"model": config["model"]}, sort_keys=False))
    for part in frozen.parts(model).values():
        part.write(folder / frozen.FOLDER)


MOST = 63  # samples, from which on diffusers' networks order memory otherwise


class Program(nn.Module):
    """The denoiser from tensors to tensors: x_0, ε and, if it is predicted, the variance's m."""

    def __init__(self, model: Diffusion) -> None:
        super().__init__()
        self.denoiser, self.conditioner = model.denoiser, model.conditioner

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.denoiser(x_t, t, None if y is None else self.conditioner(y))
        return tuple(x for x in found[:3] if x is not None)


def program(model: Diffusion, config: dict[str, Any], folder: Path) -> None:
    """`denoiser.pt2`, for batches of any size, or of at most `MOST` if the network is diffusers'."""
    example: list[Any] = [torch.zeros(2, *model.latent_shape), torch.ones(2, dtype=torch.long)]
    if model.conditioner.conditional:
        example.append(model.conditioner.default(torch.arange(2)))
    theirs = any(type(part).__module__.startswith("diffusers.") for part in model.denoiser.network.modules())
    batch = {0: torch.export.Dim("batch", max=MOST if theirs else None)}
    with torch.no_grad():
        exported = torch.export.export(
            Program(model).eval(), tuple(example), dynamic_shapes=(batch, batch, *[batch] * (len(example) - 2))
        )
    memory = io.BytesIO()  # on a full disk, torch's writer of programs ends the whole process
    torch.export.save(exported, memory)
    with written(folder / "denoiser.pt2") as stream:
        stream.write(memory.getbuffer())


FORMATS = {"pipeline": pipeline, "weights": weights, "lora": lora, "program": program}
