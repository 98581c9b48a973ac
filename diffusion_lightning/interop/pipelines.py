"""diffusers' pipelines of latent models by the class that their `model_index.json` names: a file reads and writes each.

Of such a file are asked `PIPELINE`, `USE` (how diffusers draws from it), `frozen(folder)` (the folders of its frozen
parts), `read(folder, source)`, `stores(model)`, `check(model)` and `write(model, config, folder)`.
"""

from pathlib import Path
from typing import Any

from . import dit_pipeline, latent_diffusion, stable_diffusion
from .source import read_json

KINDS: dict[str, Any] = {kind.PIPELINE: kind for kind in (stable_diffusion, latent_diffusion, dit_pipeline)}
PIXELS = ("DDIMPipeline", "DDPMPipeline", "PNDMPipeline")  # a UNet2DModel and a scheduler alone


def of_folder(folder: Path) -> Any | None:
    """What reads the pipeline of a folder; None if it is one of pixels, or no pipeline.

    Raises:
        ValueError: if it is a pipeline of another kind.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        return None
    name = str(read_json(file).get("_class_name"))
    if name in PIXELS:
        return None
    if name not in KINDS:
        raise ValueError(
            f"{folder} is a {name:.60} of diffusers, but {', '.join([*KINDS, *PIXELS])} are read: give one of these"
        )
    return KINDS[name]


def of_model(model: Any) -> Any | None:
    """What writes the pipeline of a latent model; None if it is one of pixels.

    Raises:
        ValueError: if none is like it.
    """
    if not model.first_stage.latent:
        return None
    found = next((kind for kind in KINDS.values() if kind.stores(model)), None)
    if found is None:
        raise ValueError(
            f"the model diffuses latents by a {type(model.denoiser.network).__name__} and a "
            f"{type(model.conditioner).__name__}, but {', '.join(KINDS)} are written: export its weights, by --format "
            "weights"
        )
    return found
