"""A checkpoint of another project as one of ours, weights alone.

The network is ours, its weights theirs, so it gives what theirs gives; of a latent pipeline the network is diffusers'
own, and the frozen parts lie beside the checkpoint. A folder of diffusers' and a file of DiT's describe their network;
the files of improved-diffusion and guided-diffusion hold weights alone, and a configuration describes it.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from .. import checkpoints, frozen, records
from ..callbacks.checkpoint import AtomicIO
from ..files import check_file
from ..meta import made_on_meta
from ..modules import Diffusion
from . import components, diffusers, dit, pipelines
from .diffusers import Diffusers
from .dit import ReleasedDiT
from .layout import Layout
from .openai import OpenAI
from .source import Weights, read_json, read_weights


def convert(
    source: str, ckpt: str, config: dict[str, Any] | None = None, new_attention_order: bool = False
) -> tuple[Diffusion, str]:
    """Reads their checkpoint, writes ours; returns the model, and the name of the project that it is of.

    Args:
        source: a folder of diffusers', or a file of weights.
        ckpt: the file to write, which is not there yet.
        config: the configuration whose model it is, the user's own; needed if the source does not describe it.
        new_attention_order: guided-diffusion's flag of this name.

    Raises:
        ValueError: if the source cannot be read, or is of another model than the configuration's.
    """
    if Path(ckpt).exists():
        raise ValueError(f"{ckpt} exists already, and nothing is overwritten: choose another name, or remove it")
    check_file(Path(ckpt))
    if (kind := pipelines.of_folder(Path(source))) is not None:
        if config is not None:
            raise ValueError(f"{source} is a {kind.PIPELINE}, which describes its model itself: leave --config out")
        return _of_pipeline(kind, Path(source), ckpt), kind.PIPELINE
    weights, layout, description = _open(Path(source), new_attention_order)
    if config is None and description is None:
        raise ValueError(
            f"{source} holds weights and does not say of which network or schedule: give a configuration whose model "
            "it is, such as --config configs/cifar10_iddpm.yaml"
        )
    trust = set() if config is None else records.modules(config)  # of the user's own words
    part = records.read(description if config is None else config["model"], Diffusion, "model", trust)
    if config is None:  # the user's own words may ask for any size
        _check_size(part, weights, source)
    model = part.make()
    if config is not None and description:
        theirs = records.read(description, Diffusion, "model").arguments["schedule"].make()
        _check_schedule(theirs.alpha_bar, model.schedule.alpha_bar, source)
    network = model.denoiser.network
    if not layout.stores(network):
        raise ValueError(
            f"{source} holds a {layout.network.__name__} of {layout.name}, but the configuration's network is a "
            f"{type(network).__name__}: give the configuration it belongs to"
        )
    table = weights.pop(layout.labels, None)
    network.load_state_dict(layout.read(network, weights))
    _give_labels(model, table, layout)
    _save(model, {"model": part.spec()} if config is None else config, source, ckpt)
    return model, layout.name


def _save(model: Diffusion, config: dict[str, Any], source: str, ckpt: str) -> None:
    """The checkpoint, and the frozen parts of its model beside it."""
    checkpoint = {
        "state_dict": model.state_dict(),
        checkpoints.CONFIG: records.text(config),
        checkpoints.IMPORTED: source,
        "epoch": 0,
        "global_step": 0,
        checkpoints.LIGHTNING: lightning.__version__,
    }
    if model.class_names:
        checkpoint[checkpoints.CLASSES] = model.class_names
    if parts := frozen.parts(model):
        checkpoint[frozen.KEY] = {name: part.hash for name, part in parts.items()}
        for part in parts.values():
            part.write(Path(ckpt).parent / frozen.FOLDER)
    AtomicIO().save_checkpoint(checkpoint, ckpt)


def _of_pipeline(kind: Any, folder: Path, ckpt: str) -> Diffusion:
    """The model of a latent pipeline, written with its frozen parts and the pipeline's sampler."""
    with components.safe(folder, kind.frozen(folder)) as held:
        found = kind.read(folder, str(held))
        part = records.read(found.model, Diffusion, "model", {str(held)})
        _check_size(part, found.weights, str(folder))
        model = part.make()
        model.class_names = getattr(found, "class_names", None)
        _fill(model, found.weights, folder)
        spec = _renamed({"model": part.spec()}, str(held), str(folder))
        grid = components.record("callbacks.SampleGrid", sampler=found.sampler)
        _save(model, {**spec, "grid": grid}, str(folder), ckpt)
    return model


def _fill(model: Diffusion, weights: Weights, folder: Path) -> None:
    own = {name: x for name, x in model.state_dict().items() if name.startswith("denoiser.network.")}
    for name in [*own, *(name for name in weights if name not in own)]:
        here, there = (list(side[name].shape) if name in side else None for side in (own, weights))
        if here != there:
            raise ValueError(
                f"the weights in {folder} are not those of its config.json: {name.removeprefix('denoiser.')} is "
                f"{there or 'missing'}, but {here or 'none'} by the config: copy it again"
            )
    model.load_state_dict(weights, strict=False)


def _renamed(value: Any, old: str, new: str) -> Any:
    """A record with one text in place of another."""
    if isinstance(value, dict):
        return {key: _renamed(x, old, new) for key, x in value.items()}
    return [_renamed(x, old, new) for x in value] if isinstance(value, list) else new if value == old else value


def _open(source: Path, new_attention_order: bool) -> tuple[Weights, Layout, dict[str, Any] | None]:
    """The weights, how they are laid out, and the model as our configuration describes it, if the source does."""
    if source.is_dir():
        return _of_diffusers(source)
    weights = read_weights(source)
    if "x_embedder.proj.weight" in weights:
        return weights, ReleasedDiT(), dit.model_arguments(weights)
    if "input_blocks.0.0.weight" in weights:
        return weights, OpenAI(new_attention_order), None
    if "conv_in.weight" in weights:
        return weights, Diffusers(), None
    raise ValueError(
        f"{source} has tensors such as {next(iter(weights), 'none')}, which no network of diffusers, "
        "improved-diffusion, guided-diffusion or DiT has: give one of theirs"
    )


def _of_diffusers(folder: Path) -> tuple[Weights, Layout, dict[str, Any] | None]:
    places = [folder / "unet", folder]
    place = next((p for p in places if (p / "config.json").is_file()), None)
    if place is None:
        raise ValueError(f"{folder} has no config.json, nor has its unet/: give a folder that diffusers has written")
    files = [p for suffix in ("safetensors", "bin") for p in place.glob(f"diffusion_pytorch_model.{suffix}")]
    if not files:
        raise ValueError(
            f"{place} has a config.json, but no diffusion_pytorch_model.safetensors or .bin: add the weights"
        )
    config = read_json(place / "config.json")
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):  # the latter is its name before version 0.3
        raise ValueError(f"{place} holds a {kind}, but of diffusers' networks only UNet2DModel is read: give one")
    scheduler = next((p for p in (folder / "scheduler", folder, folder.parent / "scheduler")
                      if (p / "scheduler_config.json").is_file()), None)  # fmt: skip
    if scheduler is None:
        return read_weights(files[0]), Diffusers(), None
    said = read_json(scheduler / "scheduler_config.json")
    return read_weights(files[0]), Diffusers(), diffusers.model_arguments(config, said)


def _give_labels(model: Any, table: Tensor | None, layout: Layout) -> None:
    """The classes' embeddings, which the others keep in the network."""
    own = getattr(model.conditioner, "table", None)
    if table is None and own is None:
        return
    theirs, ours = (None if x is None else list(x.shape) for x in (table, own.weight if own is not None else None))
    if theirs != ours:
        raise ValueError(
            f"the {layout.name} checkpoint's table of classes is {theirs or 'missing'}, the model's conditioner's is "
            f"{ours or 'missing'}: describe the classes by model.init_args.conditioner, with dropout 0 if there is "
            "no row for no class"
        )
    assert own is not None
    own.load_state_dict({"weight": table})


def _check_size(part: records.Part, weights: Weights, source: str) -> None:
    """Raise ValueError if the network described is larger than the weights, before any memory is taken for it."""
    network = part.arguments["network"]
    if not network.own:
        return
    held = sum(x.numel() for x in weights.values())
    made = made_on_meta(network.make, len(weights), "the network")
    if (described := sum(p.numel() for p in made.parameters())) > 2 * held:
        raise ValueError(
            f"{source} holds {held:,} numbers, but the network described beside them has {described:,}: get it again"
        )


def _check_schedule(theirs: Tensor, ours: Tensor, source: str) -> None:
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-7):
        raise ValueError(
            f"{source} was trained with T = {len(theirs) - 1} and alpha_bar_T = {theirs[-1]:.3g}, but the "
            f"configuration's schedule has T = {len(ours) - 1} and alpha_bar_T = {ours[-1]:.3g}: give the schedule "
            "that it was trained with"
        )
