"""diffusers' `StableDiffusionPipeline`: Stable Diffusion 1.x and 2.x, text to image by latent diffusion.

    text_encoder, tokenizer → `PretrainedText`, unet → `ConditionUNet`, vae → `Pretrained`, scheduler → schedule, DDIM

Its safety checker is left out. Captions are padded to the encoder's length and the padding attended to, the null
condition is the caption "". The pipeline sets the scheduler's steps_offset to 1, whatever its config says.
"""

from pathlib import Path
from typing import Any

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
from .source import read_json

PIPELINE = "StableDiffusionPipeline"
USE = """from diffusers import StableDiffusionPipeline

images = StableDiffusionPipeline.from_pretrained(".")("PROMPT", guidance_scale=7.5, num_inference_steps=50).images"""


def frozen(folder: Path) -> tuple[str, ...]:
    """The folders of its frozen parts that hold weights."""
    return "vae", "text_encoder"


def read(folder: Path, source: str) -> Described:
    """The pipeline of a folder, whose frozen parts are named by `source`."""
    config = config_of(folder, "unet", ["UNet2DConditionModel"])
    config_of(folder, "vae", ["AutoencoderKL", "AutoencoderTiny"])
    text = config_of(folder, "text_encoder")
    if text.get("model_type") not in ("clip_text_model", "clip") or text.get("use_attention_mask"):
        raise ValueError(
            f"{folder / 'text_encoder'} is a {text.get('model_type')!s:.60}"
            f"{' that masks padding' if text.get('use_attention_mask') else ''}, but Stable Diffusion 1.x and 2.x have "
            "a CLIP that attends to it: give one of them"
        )
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"{folder} has no tokenizer, which makes tokens of captions: copy it whole")
    schedule, parameterization, sampler = scheduler(folder, offset=1)
    unet = network_config(config, "UNet2DConditionModel", str(folder / "unet"))
    model = record(
        "modules.Diffusion",
        network=record("networks.ConditionUNet", config=unet),
        schedule=schedule,
        parameterization=parameterization,
        first_stage=record("first_stages.Pretrained", model=source),
        conditioner=record(
            "conditioning.PretrainedText", model=source, length=_length(folder, text), vector=False, project=False,
            attend_padding=True,
        ),
    )  # fmt: skip
    return Described(model, sampler, network_weights(folder, "unet", "denoiser.network.model."))


def _length(folder: Path, text: Record) -> int:
    """Tokens of a caption: the tokenizer's, at most the encoder's."""
    most = _at_least_one(text.get("max_position_embeddings", 77))
    file = folder / "tokenizer/tokenizer_config.json"
    own = read_json(file).get("model_max_length") if file.is_file() else None
    return min(most, _at_least_one(own)) if isinstance(own, int) else most


def _at_least_one(length: Any) -> int:
    if not isinstance(length, int) or length < 1:
        raise ValueError(
            f"the text encoder takes {length!r:.60} tokens, which is no number of them: get its config again"
        )
    return length


def stores(model: Any) -> bool:
    """Whether a model is of this pipeline's kind."""
    return network_of(model, "UNet2DConditionModel") is not None


def check(model: Any) -> None:
    """Raise ValueError if the pipeline cannot sample from this model."""
    autoencoder(model, PIPELINE)
    check_parameterization(model, PIPELINE)
    text = model.conditioner
    described = getattr(getattr(text, "frozen", None), "description", {})
    attends = getattr(text, "attend_padding", False) and not getattr(text, "project", True)
    if described.get("model_type") != "clip_text_model" or not attends or text.layer != -1:
        raise ValueError(
            f"the conditioner is a {type(text).__name__} that {PIPELINE} does not have, which attends to the states of "
            "a CLIP as they are, those at padding too: export its weights, by --format weights"
        )


def write(model: Any, config: Record, folder: Path) -> None:
    """The pipeline's folder."""
    check(model)
    text = model.conditioner.frozen
    diffusers = installed("the format pipeline", "diffusers")
    diffusers.StableDiffusionPipeline(
        vae=autoencoder(model, PIPELINE),
        text_encoder=text.network,
        tokenizer=_tokenizer(text, model.conditioner.length),
        unet=network_of(model, "UNet2DConditionModel"),
        scheduler=ddim(model, config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    set_scale(model, folder / "vae/config.json")


def _tokenizer(text: Any, length: int) -> Any:
    """The tokenizer as transformers has it, with the same ids, special tokens and padding."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(text.description["tokenizer"])
    eos, pad = (own.id_to_token(text.description[key]) for key in ("eos", "pad"))
    start = own.encode("").tokens[:1]
    named = {"bos_token": start[0]} if start and start[0] != eos else {}
    return installed("the format pipeline").PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=eos, pad_token=pad, model_max_length=length, **named
    )
