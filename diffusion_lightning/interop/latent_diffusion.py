"""diffusers' `LDMPipeline`: unconditional latent diffusion, an autoencoder and a U-Net over its latents.

    vqvae → `Pretrained`,  unet → diffusers' `UNet2DModel` itself,  scheduler → schedule, DDIM

Latents are divided by the `scaling_factor` of the autoencoder's config before they are decoded, as the pipeline does.
"""

from pathlib import Path
from typing import Any

from ..first_stages import Pretrained
from ..frozen import installed
from .components import (
    Described,
    Record,
    autoencoder,
    check_parameterization,
    config_of,
    ddim,
    network_config,
    network_of,
    network_weights,
    record,
    scheduler,
    set_scale,
)  # fmt: skip
from .diffusers import Diffusers, present_names, unet_config

PIPELINE = "LDMPipeline"
USE = """from diffusers import LDMPipeline

images = LDMPipeline.from_pretrained(".")(batch_size=4, num_inference_steps=50).images"""


def frozen(folder: Path) -> tuple[str, ...]:
    """The folders of its frozen parts that hold weights."""
    return ("vae",) if not (folder / "vqvae").exists() and (folder / "vae").exists() else ("vqvae",)


def read(folder: Path, source: str) -> Described:
    """The pipeline of a folder, whose frozen parts are named by `source`."""
    config = config_of(folder, "unet", ["UNet2DModel", "UNetUnconditionalModel"])
    config_of(folder, frozen(folder)[0], ["VQModel", "AutoencoderKL"])
    unet = network_config(config, "UNet2DModel", str(folder / "unet"))
    schedule, parameterization, sampler = scheduler(folder)
    size = unet.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    latent: Any = (unet.get("in_channels", 3), height, width)
    if not all(type(n) is int and n > 0 for n in latent):
        raise ValueError(
            f"{folder / 'unet'} states a latent of {list(latent)}, which are no sizes: get its config again"
        )
    model = record(
        "modules.Diffusion",
        shape=list(Pretrained(source).image_shape(latent)),
        network={"class_path": "diffusers.UNet2DModel", "init_args": unet},
        schedule=schedule,
        parameterization=parameterization,
        first_stage=record("first_stages.Pretrained", model=source),
    )
    return Described(model, sampler, network_weights(folder, "unet", "denoiser.network.", present_names))


def stores(model: Any) -> bool:
    """Whether a model is of this pipeline's kind."""
    ours = Diffusers().stores(model.denoiser.network) or network_of(model, "UNet2DModel") is not None
    return model.first_stage.latent and ours and not model.conditioner.conditional


def check(model: Any) -> None:
    """Raise ValueError if the pipeline cannot sample from this model."""
    autoencoder(model, PIPELINE)
    check_parameterization(model, PIPELINE)
    if model.latent_shape[1] != model.latent_shape[2]:
        raise ValueError(
            f"the latents have shape {list(model.latent_shape)}, but {PIPELINE} draws squares: export its weights, by "
            "--format weights"
        )
    if Diffusers().stores(model.denoiser.network):
        unet_config(model.denoiser.network)


def write(model: Any, config: Record, folder: Path) -> None:
    """The pipeline's folder."""
    check(model)
    diffusers = installed("the format pipeline", "diffusers")
    network = network_of(model, "UNet2DModel")
    if network is None:
        own = model.denoiser.network
        network = diffusers.UNet2DModel.from_config(unet_config(own) | {"sample_size": model.latent_shape[1]})
        network.load_state_dict(Diffusers().write(own, dict(own.named_parameters())))
    stage = autoencoder(model, PIPELINE)
    diffusers.LDMPipeline(vqvae=stage, unet=network, scheduler=ddim(model, config)).save_pretrained(folder)
    set_scale(model, folder / "vqvae/config.json")
