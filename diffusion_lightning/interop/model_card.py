"""The model card of an exported model: what it is, what it was trained on, what was measured, how to draw from it."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from .. import checkpoints
from ..modules import Diffusion
from . import pipelines

SAMPLING = {
    "pipeline": """from diffusers import DDIMPipeline, DDPMPipeline

images = DDPMPipeline.from_pretrained(".")(batch_size=4, num_inference_steps=TIME).images
# or in fewer steps, if the network does not predict the variance
images = DDIMPipeline.from_pretrained(".")(
    batch_size=4, num_inference_steps=50, use_clipped_model_output=True
).images""",
    "lora": """from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(BASE)  # of the model that was adapted
pipeline.load_lora_weights(".")""",
    "program": """import torch

denoiser = torch.export.load("./denoiser.pt2").module()
x_0, eps = denoiser(torch.randn(BATCH), torch.full((4,), TIME)CLASS)[:2]  # at x_T, t = T""",
    "weights": """from safetensors.torch import load_file

weights = load_file("./model.safetensors")  # of the model that config.yaml describes""",
}


CARD = """---
library_name: {library}
tags: [{tags}]
---

# {title}

A denoising diffusion model, {made} `diffusion_lightning`.

{facts}

## Measured
{measured}

## Use
{use}
"""


def text(model: Diffusion, checkpoint: dict[str, Any], ckpt: str, formats: Collection[str]) -> str:
    """The card, Markdown with the front matter that model hubs read."""
    config = checkpoints.config(checkpoint, ckpt)
    return CARD.format(
        library="diffusers" if "pipeline" in formats else "pytorch",
        tags=f"ddpm, diffusion, {_condition(model)}",
        made="imported into" if checkpoints.IMPORTED in checkpoint else "trained with",
        title=_title(config, ckpt),
        facts=_table(_facts(model, checkpoint, config)),
        measured=_measured(checkpoint, Path(ckpt)),
        use="\n\n".join(f"```python\n{_code(name, model)}\n```" for name in formats),
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _code(name: str, model: Diffusion) -> str:
    latent = pipelines.of_model(model) if name == "pipeline" else None
    if latent is not None:
        return latent.USE
    batch = ", ".join(map(str, (4, *model.latent_shape)))
    raw = model.conditioner.default(torch.zeros(1, dtype=torch.long)).shape[1:]
    sizes = ", ".join(map(str, (4, *raw)))  # of tokens, 1 is the null condition's
    classes = f", torch.{'ones' if len(raw) else 'zeros'}({sizes}, dtype=torch.long)"
    code = SAMPLING[name].replace("BATCH", batch).replace("CLASS", classes if model.conditioner.conditional else "")
    return code.replace("TIME", str(model.schedule.T))


def _condition(model: Diffusion) -> str:
    if not model.conditioner.conditional:
        return "unconditional"
    return "text-to-image" if "captions" in model.conditioner.takes else "class-conditional"


def _title(config: dict[str, Any], ckpt: str) -> str:
    root = _at(config, "trainer", "default_root_dir")
    return Path(root).name if isinstance(root, str) else Path(ckpt).stem


def _at(config: Any, *keys: str) -> Any:
    """A value of a configuration that comes from a file, None if it is not there."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _facts(model: Diffusion, checkpoint: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, str]]:
    network, schedule = model.denoiser.network, model.schedule
    imported = checkpoint.get(checkpoints.IMPORTED)
    data = config.get("data") if isinstance(_at(config, "data", "class_path"), str) else None
    facts = [
        ("images", "×".join(map(str, model.shape)) + " (channels, height, width), values in [-1, 1]"),
        ("trained on", f"`{_named(data)}`" if data and not imported else "not known to this file"),
        ("steps", f"imported from `{Path(imported).name}`" if imported else f"{checkpoint.get('global_step', 0):,}"),
        ("network", f"`{type(network).__name__}`, {sum(p.numel() for p in network.parameters()):,} parameters"),
        ("schedule", f"`{type(schedule).__name__}`, T = {schedule.T}"),
        ("predicts", f"`{type(model.denoiser.parameterization).__name__}`"
                     + (" and the variance" if model.predicts_variance else "")),
    ]  # fmt: skip
    if checkpoints.averaged(checkpoint):
        facts.append(("weights", f"moving average, decay {_at(config, 'ema', 'decay')}"))
    return facts


def _named(part: dict[str, Any]) -> str:
    arguments = part.get("init_args")
    given = {k: v for k, v in (arguments if isinstance(arguments, dict) else {}).items() if v is not None}
    # A path without its folder, which means nothing elsewhere.
    given = {k: Path(v).name if isinstance(v, str) else v for k, v in given.items()}
    return f"{part['class_path'].rpartition('.')[2]}({', '.join(f'{k}={v}' for k, v in given.items())})"


def _measured(checkpoint: dict[str, Any], ckpt: Path) -> str:
    """The figures of the checkpoint's step in its run's folder: of `test`, of `validate`, or of training's own."""
    for name, command, stage in (("test", "test", "test"), ("validate", "validate", "val"), ("metrics", "fit", "val")):
        file = ckpt.parent.parent / f"{name}.csv"
        if not file.is_file() or checkpoints.IMPORTED in checkpoint:
            continue
        found: dict[str, str] = {}
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if int(row["step"]) == checkpoint.get("global_step"):
                    found |= {key: value for key, value in row.items() if value and key.startswith(f"{stage}/")}
        if found:
            table = _table([(f"`{key}`", f"{float(value):.4g}") for key, value in found.items()])
            return f"By `{command}`, of the averaged weights at this step.\n\n{table}"
    return "Nothing: no figures of this checkpoint's step lie in its run's folder."
