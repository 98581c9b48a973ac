"""The parts that pipelines of latent models have in common: networks, first stage and scheduler, in and out."""

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from ..files import write_text
from ..frozen import installed, plain
from ..known import parameters
from ..schedules import Schedule
from .diffusers import PREDICTS, schedule_of, scheduler_config
from .layout import PACKAGE
from .source import Weights, read_json, read_weights

Record = dict[str, Any]
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors",
           "pytorch_model.bin")  # fmt: skip
# Schedulers whose first-order, deterministic form is DDIM, with the final ᾱ where their configs state none.
ENDS_AT_ONE = {"DDIMScheduler": True, "PNDMScheduler": False}


class Described(NamedTuple):
    """A pipeline as this package has it.

    Args:
        model: the record of its `Diffusion`.
        sampler: the record of the sampler that is the pipeline's.
        weights: tensors by their names in the model's state_dict; what it does not name is made with the model.
    """

    model: Record
    sampler: Record
    weights: Weights


def record(name: str, **arguments: Any) -> Record:
    """A class of this package and its arguments, as a configuration has them."""
    return {"class_path": f"{PACKAGE}.{name}", "init_args": arguments}


def config_of(folder: Path, part: str, kinds: Collection[str] = ()) -> Record:
    """The `config.json` of a part of a pipeline.

    Raises:
        ValueError: if it is missing, or none of these classes of diffusers.
    """
    file = folder / part / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no {part}/config.json, which its kind of pipeline needs: copy it whole")
    config = read_json(file)
    if kinds and config.get("_class_name") not in kinds:
        raise ValueError(
            f"{folder / part} holds a {config.get('_class_name')!s:.60}, but of this pipeline {' or '.join(kinds)} "
            "is read: give such a one"
        )
    return config


def weights_of(folder: Path, part: str) -> Path:
    """The file of a part's weights, safetensors if there are both; raise ValueError if there is none."""
    found = next((folder / part / name for name in WEIGHTS if (folder / part / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder / part} has none of {', '.join(WEIGHTS)}: add its weights, in one file")
    return found


def network_weights(
    folder: Path, part: str, prefix: str, renamed: Callable[[Weights], Weights] = lambda weights: weights
) -> Weights:
    """The weights of a network under their names in the model."""
    return {prefix + name: x for name, x in renamed(read_weights(weights_of(folder, part))).items()}


def network_config(config: Record, kind: str, source: str) -> Record:
    """The arguments of a network of diffusers: known keys with plain values."""
    return plain(config, parameters(getattr(installed(source, "diffusers"), kind)), source)


@contextmanager
def safe(folder: Path, frozen: Collection[str]) -> Iterator[Path]:
    """The folder with the weights of these parts as safetensors: itself, or for the time of the block a copy of it."""
    if all(weights_of(folder, part).suffix == ".safetensors" for part in frozen):
        yield folder
        return
    with TemporaryDirectory() as made:
        for part in (entry.name for entry in folder.iterdir() if entry.is_dir()):
            target = Path(made) / part
            if part not in frozen:
                target.symlink_to((folder / part).resolve())
                continue
            file = weights_of(folder, part)
            shutil.copytree(folder / part, target, ignore=shutil.ignore_patterns("*.bin", "*.safetensors", "*.msgpack"))
            kept = {name: x.contiguous().clone() for name, x in read_weights(file).items()}
            stem = "diffusion_pytorch_model" if file.stem.startswith("diffusion") else "model"
            save_file(kept, target / f"{stem}.safetensors", metadata={"format": "pt"})
        yield Path(made)


def scheduler(folder: Path, offset: int | None = None) -> tuple[Record, Record, Record]:
    """The schedule, the parameterization and the sampler that the `scheduler_config.json` of a pipeline describes.

    The sampler is DDIM of 50 steps; diffusers' offset and final time are a `Leading` of ours. Warns where the
    pipeline's own scheduler is another.

    Args:
        folder: the pipeline's.
        offset: the offset of a pipeline that takes its own, whatever the file says.
    """
    file = folder / "scheduler/scheduler_config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no scheduler/scheduler_config.json, which says its schedule: copy it whole")
    said = read_json(file)
    kind, predicts = str(said.get("_class_name")), said.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise ValueError(f"prediction_type in {file} is {predicts}, but {', '.join(PREDICTS)} are known: give one")
    said = {"num_train_timesteps": said.get("timesteps", 1000), **said}  # its name before version 0.3
    try:
        name, arguments = schedule_of({**said, "rescale_betas_zero_snr": False})
        schedule = record(name, **arguments)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"{file} describes no schedule ({error}): get it again") from error
    offset = said.get("steps_offset", 0) if offset is None else offset
    spacing = said.get("timestep_spacing", "leading")
    if type(offset) is not int or offset < 0:
        raise ValueError(f"steps_offset in {file} is {offset!r:.60}, but it is a whole number from 0 on: get it again")
    if said.get("rescale_betas_zero_snr"):
        schedule = record("schedules.ZeroTerminalSNR", schedule=schedule)
    final = 0 if said.get("set_alpha_to_one", ENDS_AT_ONE.get(kind, offset == 0)) else 1
    leading = record("samplers.Leading", offset=offset, final=final)
    chosen = record("samplers.Trailing") if spacing == "trailing" else leading
    if kind != "DDIMScheduler" or spacing not in ("leading", "trailing") or (spacing == "trailing" and final):
        warnings.warn(
            f"the pipeline's scheduler is {kind} with {spacing} steps; its schedule is taken as it is, and the "
            f"sampler is DDIM, {_spaced(chosen)}",
            stacklevel=2,
        )
    if said.get("clip_sample", kind == "DDIMScheduler"):
        warnings.warn(
            "the pipeline's scheduler has clip_sample, which clips latents as if they were pixels: it is left out",
            stacklevel=2,
        )
    sampler = record("samplers.DDIM", steps=50, clip=None, spacing=chosen)
    return schedule, record(f"denoising.{PREDICTS[predicts]}"), sampler


def _spaced(spacing: Record) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in spacing["init_args"].items())
    return f"{spacing['class_path'].rpartition('.')[2]}({arguments})"


# Out again


def network_of(model: Any, kind: str) -> Any:
    """Diffusers' own network of this class within a model, None if it has another."""
    network = model.denoiser.network
    return next((x for x in (network, getattr(network, "model", None)) if type(x).__name__ == kind), None)


def autoencoder(model: Any, pipeline: str) -> Any:
    """The model's first stage as diffusers' own class.

    Raises:
        ValueError: if it is none of theirs, or scaled as a pipeline cannot.
    """
    stage = model.first_stage
    instead = "export its weights, by --format weights"
    described = getattr(getattr(stage, "frozen", None), "description", {})
    if described.get("kind") != "diffusers":
        raise ValueError(
            f"the first stage is a {type(stage).__name__} of its own, but {pipeline} takes one of diffusers: {instead}"
        )
    if stage.scale.numel() != 1 or stage.shift.any() or stage.pixels != (-1.0, 1.0):
        raise ValueError(
            f"the first stage has a scale for each channel, a shift or pixels in [0, 1], but {pipeline} divides by one "
            f"scaling_factor: {instead}"
        )
    return stage.frozen.network


def set_scale(model: Any, file: Path) -> None:
    """State the scale that the model was trained with in the written config of its first stage."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["scaling_factor"] = float(model.first_stage.scale)
    write_text(file, json.dumps(config, indent=2) + "\n")


def ddim(model: Any, config: Mapping[str, Any]) -> Any:
    """The `DDIMScheduler` of a model, spaced as the sampler of its grid of samples is."""
    found = scheduler_config(model.schedule, type(model.denoiser.parameterization).__name__, False)
    betas = found.pop("trained_betas")
    spacing = _at(config, "grid", "init_args", "sampler", "init_args", "spacing")
    given = _at(spacing, "init_args") or {}
    leading = str(_at(spacing, "class_path")).endswith("Leading")
    return installed("the format pipeline", "diffusers").DDIMScheduler(
        num_train_timesteps=found["num_train_timesteps"],
        prediction_type=found["prediction_type"],
        timestep_spacing="leading" if leading else "trailing",
        steps_offset=given.get("offset", 0) if leading else 1,  # of no effect there, and diffusers warns of others
        set_alpha_to_one=given.get("final", 0) == 0 if leading else True,
        clip_sample=False,
        **_betas(model.schedule, betas),
    )


def _betas(schedule: Schedule, betas: list[float]) -> Record:
    """Diffusers' name of a schedule where it has one, so that other schedulers of theirs read it too."""
    root = torch.tensor(betas, dtype=torch.float64).sqrt()
    straight = torch.linspace(float(root[0]), float(root[-1]), len(root), dtype=torch.float64)
    if not torch.allclose(root, straight, rtol=1e-9, atol=0):
        return {"trained_betas": betas}
    first, last = (float(f"{betas[k]:.12g}") for k in (0, -1))
    return {"beta_schedule": "scaled_linear", "beta_start": first, "beta_end": last}


def check_parameterization(model: Any, pipeline: str) -> None:
    """Raise ValueError if diffusers' schedulers do not know what the network predicts or how it is fed the time."""
    predicts = type(model.denoiser.parameterization).__name__
    if predicts not in PREDICTS.values() or model.denoiser.rescale_timesteps or model.predicts_variance:
        raise ValueError(
            f"the network predicts {predicts}{' and the variance' if model.predicts_variance else ''}"
            f"{' at rescaled times' if model.denoiser.rescale_timesteps else ''}, but {pipeline} takes "
            f"{', '.join(PREDICTS.values())} at whole times: export its weights, by --format weights"
        )


def _at(config: Any, *keys: str) -> Any:
    """A value of a configuration that comes from a file, None if it is not there."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config
