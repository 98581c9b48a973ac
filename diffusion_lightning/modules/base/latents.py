"""What a module asks of its first stage before training and sampling; for pixels, which need none, all of it passes."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ...first_stages import FirstStage
from ...samplers import Ancestral
from . import checks

BLOCK = 64  # images that are measured at a time


def shapes(
    given: Sequence[int] | None, network: nn.Module, first_stage: FirstStage
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(C, H, W) of an image, given or as the network states its latent's, and of the latent that the network takes.

    Raises:
        ValueError: if there are not three sizes, or the stage's latent is not what the network states that it takes.
    """
    if given is None:
        latent = checks.image_shape(None, network)
        return tuple(first_stage.image_shape(latent)), latent
    shape = checks.image_shape(given, network)
    latent = tuple(first_stage.latent_shape(shape))
    size = getattr(network, "size", None)
    stated = (getattr(network, "in_channels", latent[0]), *((size, size) if isinstance(size, int) else latent[1:]))
    if first_stage.latent and stated != latent:
        raise ValueError(
            f"the network takes {list(stated)}, but the first stage makes latents of shape {list(latent)} of images of "
            f"{list(shape)}: set the network's in_channels and size to the latents'"
        )
    return shape, latent


def check_bound(first_stage: FirstStage, vlb: object | None) -> None:
    """Raise ValueError if the bound in bits/dim is wanted of latents, which have no levels."""
    if first_stage.latent and vlb is not None:
        raise ValueError(
            "vlb measures bits/dim of pixels with levels, but the model has a first stage, and latents have no levels: "
            "leave vlb out"
        )


def sampler_of(first_stage: FirstStage, sampler: Any | None) -> Any:
    """The sampler, by default one that fits; raise ValueError if it clips latents as if they were pixels."""
    if sampler is None:
        return Ancestral(clip=None if first_stage.latent else 1.0)
    clip = getattr(getattr(sampler, "func", sampler), "clip", None)
    if first_stage.latent and clip is not None:
        raise ValueError(
            f"the sampler clips x_0 to ±{clip:g}, as pixels have it, but the model samples latents, which have no such "
            "bound: set the sampler's clip to null"
        )
    return sampler


def measure(module: Any) -> None:
    """Measures the scale and shift of a module's first stage on the training set, each rank a part of it, once."""
    if not module.first_stage.measures:
        return
    data: Any = getattr(module.trainer, "datamodule", None)
    if not hasattr(data, "reference"):
        raise ValueError(
            "the first stage's scale is to be measured on the training set, but the data have no `reference` of its "
            "images: give the scale, or derive the data from diffusion_lightning.data.base.Images"
        )
    trainer, images = module.trainer, data.moments("train") if hasattr(data, "moments") else data.reference("train")

    def own() -> Iterator[Any]:
        for start in range(trainer.global_rank * BLOCK, len(images), trainer.world_size * BLOCK):
            part = images[start : start + BLOCK]
            yield part.to(module.device) if isinstance(part, Tensor) else part

    module.first_stage.measure(
        own(), lambda sums: trainer.strategy.reduce(sums.to(module.device), reduce_op="sum").cpu()
    )
