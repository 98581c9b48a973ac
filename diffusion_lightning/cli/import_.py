"""`diffusion-lightning import`: a checkpoint of another project as one of ours, weights alone."""

from argparse import Namespace
from pathlib import Path

import yaml

from .. import frozen
from ..interop.convert import convert
from . import fit


def main(given: Namespace) -> None:
    """Writes the checkpoint, and says what it is of."""
    if given.options and not given.config:
        raise ValueError(f"{given.options[0]} changes a configuration, but none is given: give one by --config")
    words = ["--config", given.config, *given.options]
    config = yaml.safe_load(fit.described(words)) if given.config else None
    model, project = convert(given.source, given.ckpt, config, given.new_attention_order)
    total = sum(p.numel() for p in model.parameters())
    parts = frozen.parts(model).values()
    print("".join(f"wrote {part.write(Path(given.ckpt).parent / frozen.FOLDER)}\n" for part in parts), end="")
    print(f"wrote {given.ckpt}: {type(model.denoiser.network).__name__} of {total:,} parameters from {project}")
