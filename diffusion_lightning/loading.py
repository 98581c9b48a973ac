"""Models built of checkpoint files, whose weights are compared with what their configurations describe.

A configuration is read as `records` reads it: it names no code beyond a table of known classes, and a module of the
user's own only if the user trusts it by name.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from . import checkpoints, frozen, known, records
from .meta import made_on_meta
from .modules.base.checks import image_shape
from .modules.base.generative import Generative
from .modules.base.merging import merged
from .modules.base.trains_denoiser import TrainsDenoiser

START = ("denoiser.", "conditioner.", "network.", "first_stage.")  # what a run takes over from another's
PIXELS = 2**26  # numbers in one image, as many as a file's record may ask for
SPARE = 2**24  # numbers that a network may hold beside its stored ones, such as a table of positions


def check_fits(module: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError if the checkpoint's weights are not those of a module like this one, or are not finite.

    What a module's adapters adapt is no part of the checkpoint: it is read from the file beside it.
    """
    _rename_weights(module, checkpoint)
    _compare(module.state_dict(), checkpoint["state_dict"], path)
    if (lora := getattr(module, "lora", None)) is not None:
        lora.go_on(checkpoint, path)
    _check_weights(module, checkpoint, path)


def _check_weights(
    module: nn.Module, checkpoint: dict[str, Any], path: str | Path, parts: tuple[str, ...] = ("",)
) -> None:
    """Raise ValueError if weights are not finite, or frozen parts or averages, of these `parts`, not of this model."""
    frozen.check_same(module, checkpoint.get(frozen.KEY), path)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    averages = {f"{kind} of ": checkpoints.averaged(checkpoint, kind) for kind in ("average", "compensation")}
    for kind, tensors in averages.items():
        if tensors:
            _compare(_within(trained, parts), _within(tensors, parts), path, kind)
    for kind, tensors in {"": checkpoint["state_dict"], **averages}.items():
        for name, x in tensors.items():
            if x.is_floating_point() and not x.isfinite().all():
                raise ValueError(
                    f"the checkpoint {path} holds a {kind}{name} that is not finite (NaN or infinite): use an earlier "
                    "checkpoint"
                )


def _within(tensors: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    return {name: x for name, x in tensors.items() if name.startswith(parts)}


def _compare(own: dict[str, Any], theirs: dict[str, Tensor], path: str | Path, kind: str = "") -> None:
    for name in [*own, *(name for name in theirs if name not in own)]:
        here, there = (list(side[name].shape) if name in side else None for side in (own, theirs))
        if here != there:
            raise ValueError(
                f"the checkpoint {path} belongs to another model: its {kind}{name} is {there or 'missing'}, this "
                f"model's is {here or 'missing'}; use the configuration it was trained with, or another checkpoint"
            )
        if own[name].is_floating_point() != theirs[name].is_floating_point():
            raise ValueError(
                f"the checkpoint {path} holds {kind}{name} in {theirs[name].dtype}, but this model's is in "
                f"{own[name].dtype}: use another checkpoint"
            )


def _rename_weights(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Give the weights of an earlier version's checkpoint, and their averages, the names of this one, in place."""
    for tensors in (
        checkpoint["state_dict"],
        checkpoints.averaged(checkpoint),
        checkpoints.averaged(checkpoint, "compensation"),
    ):
        known.rename_weights(module, tensors)


def load(ckpt: str | Path, trust: Collection[str] = ()) -> Any:
    """The model of a checkpoint with the EMA's weights, in eval mode, ready to `generate`; nothing but the file.

    It is a `Generative`: a `Diffusion`, a student of one, or a `GAN`.

    Args:
        ckpt: the file, or what `found` takes for one. It is data, and runs no code.
        trust: what the file may name beyond the classes of this package: modules of your own classes, such as
            `my_network`, and hub names or files of weights, each by its exact text.

    Raises:
        ValueError: if the file is no checkpoint of `diffusion-lightning fit`, names code that is not trusted, or
            describes another model than the one whose weights it holds.
    """
    checkpoint = checkpoints.read(ckpt := checkpoints.found(ckpt))
    return restored(checkpoint, checkpoints.config(checkpoint, ckpt), ckpt, trust, kind=Generative)


def module(ckpt: str | Path, trust: Collection[str] = ()) -> LightningModule:
    """The module of a checkpoint as `load` gives it, whatever its kind: one that makes images, or a classifier."""
    checkpoint = checkpoints.read(ckpt := checkpoints.found(ckpt))
    return restored(checkpoint, checkpoints.config(checkpoint, ckpt), ckpt, trust, kind=LightningModule)


def restored(
    checkpoint: dict[str, Any],
    config: dict[str, Any],
    path: str | Path,
    trust: Collection[str],
    seed: int | None = None,
    kind: Any = TrainsDenoiser,
) -> Any:
    """Build the model that a configuration describes, with a checkpoint's averaged weights; raises as `load` does.

    Adapters are merged into the weights that they adapt, and kept as the model's `adapters`.

    Args:
        checkpoint: the file's content.
        config: its configuration.
        path: what it is called in a message.
        trust: see `load`.
        seed: of its draws, which a configuration states once, outside of the model; None leaves the class's default.
        kind: of which the model has to be.
    """
    checkpoint, spec, adapters = merged(checkpoint, config, path, trust)
    spec, files = frozen.beside(spec, checkpoint.get(frozen.KEY), checkpoints.found(path), trust)
    part = records.read(spec, LightningModule, "model", {*trust, *files})
    if not issubclass(part.kind, kind) or (kind is Generative and not getattr(part.kind, "drawn", True)):
        serves = getattr(part.kind, "serves", "use another checkpoint")
        called = getattr(kind, "called", kind.__name__)
        raise ValueError(f"{path} holds {part.kind.__name__} weights, but those of a {called} are needed: {serves}")
    if seed is not None and "seed" in known.parameters(part.kind):
        part.arguments.setdefault("seed", seed)
    _check_sizes(part, checkpoint, path)
    model = part.make()
    check_fits(model, checkpoint, path)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_state_dict(checkpoints.averaged(checkpoint), strict=False)
    model.adapters = adapters
    model.class_names = _names(checkpoint.get(checkpoints.CLASSES))
    model.on_load_checkpoint({"global_step": checkpoint.get("global_step", 0)})
    return model.eval()


def _names(found: Any) -> list[str] | None:
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def _check_sizes(part: records.Part, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError if a record describes other sizes than the file holds, before any memory is taken for them.

    The network and the conditioner are made without memory (on the device "meta") and compared with the stored tensors;
    a part of the user's own, which is trusted code, is made as it is.
    """
    shape = part.arguments.get("shape")
    if shape is not None:
        _check_image(shape, path)
    described = {name: value for name, value in part.arguments.items() if isinstance(value, records.Part) and value.own}
    network = None
    for name in ("network", "conditioner", "timesteps", "discriminator"):
        if name not in described:
            continue
        prefix = getattr(part.kind, "places", {}).get(name, f"{name}.")
        stored = checkpoint["state_dict"].items()
        theirs = {key.removeprefix(prefix): x for key, x in stored if key.startswith(prefix)}
        made = made_on_meta(described[name].make, len(theirs), f"model.{name} in {path}")
        if name == "timesteps" and "schedule" in described:
            schedule = described["schedule"].make()
            with torch.device("meta"):
                made.prepare(schedule)
        if name == "network":
            network = made
            if shape is None:
                _check_image(image_shape(None, network), path)
        elif name == "conditioner" and network is not None:
            with torch.device("meta"):
                made.join(network)
        known.rename_weights(made, theirs)
        own, theirs = ({prefix + key: x for key, x in side.items()} for side in (made.state_dict(), theirs))
        _compare(own, theirs, path)
        spare = sum(x.numel() for x in made.buffers())
        if spare > SPARE + sum(x.numel() for x in theirs.values()):
            raise ValueError(
                f"model.{name} in {path} holds {spare:,} numbers beside its weights: use another checkpoint"
            )


def _check_image(shape: Sequence[int], path: str | Path) -> None:
    if any(n < 1 for n in shape) or torch.Size(shape).numel() > PIXELS:
        raise ValueError(f"model.shape in {path} is {shape}, which is no image of at most {PIXELS:,} numbers")


def start_from(module: nn.Module, path: str) -> None:
    """Load the averaged weights of another run's checkpoint into a module, and nothing else of that run.

    Adapters in the checkpoint are merged into the weights; those of the module adapt what was loaded.

    Raises:
        ValueError: if they are not those of a module like this one.
    """
    checkpoint, config = checkpoints.read(path), None
    if checkpoints.CONFIG in checkpoint:
        config = checkpoints.config(checkpoint, path)
        checkpoint, _, _ = merged(checkpoint, config, path)
    _rename_weights(module, checkpoint)
    lora = getattr(module, "lora", None)
    state = module.state_dict() if lora is None else lora.unadapted(module)
    theirs = {**checkpoint["state_dict"], **checkpoints.averaged(checkpoint)}
    own, theirs = (_within(side, START) for side in (state, theirs))
    _compare(own, theirs, path)
    # The averages are among them, and this run's may be of fewer weights: of adapters, or of a student alone.
    _check_weights(module, {**checkpoint, "state_dict": theirs, "callbacks": {}}, path, START)
    for name in ("first_stage.scale", "first_stage.shift"):
        here, there = own.get(name), theirs.get(name)
        if here is not None and there is not None and here.isfinite().all() and not here.allclose(there.to(here)):
            raise ValueError(
                f"{name} is {here.flatten().tolist()}, but the weights of {path} are for latents of "
                f"{there.flatten().tolist()}: give the first stage the same, or scale: measure, which takes over that "
                "of the checkpoint"
            )
    module.load_state_dict(theirs, strict=False)
    if lora is not None:
        lora.start(str(path))
    if (begin := getattr(module, "begin", None)) is not None:  # of a student, whose teacher this is
        begin(config, path)
