"""Checks before training starts; each raises one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from ... import random
from ...conditioning.base import Asked, Condition, Conditioner, Embedded, cast, example, value
from ...denoising import tensor_of, weights_dtype
from ...distributed import internals
from ...first_stages import PixelSpace
from .shapes import without_memory


def image_shape(given: Sequence[int] | None, network: nn.Module) -> tuple[int, ...]:
    """(C, H, W) of one image, as it was given or as the network states it by `in_channels` and `size`.

    Raises:
        ValueError: if there are not three sizes, or nobody states them.
    """
    if given is None:
        channels, size = (getattr(network, name, None) for name in ("in_channels", "size"))
        if not (isinstance(channels, int) and isinstance(size, int)):
            raise ValueError(
                f"the model has no shape, and {type(network).__name__} does not state in_channels and size: give "
                "shape: [channels, height, width]"
            )
        given = (channels, size, size)
    if len(given) != 3 or min(given) < 1:
        raise ValueError(f"shape is {list(given)}, but an image has three sizes: give [channels, height, width]")
    return tuple(given)


@torch.no_grad()
def classes(given: int | None, network: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of classes, as it was given or as the network states it by `classes`.

    Raises:
        ValueError: if nobody states it, or the network turns an image of `shape` into something else.
    """
    n = getattr(network, "classes", None) if given is None else given
    if not isinstance(n, int):
        raise ValueError(
            f"the classifier has no classes, and {type(network).__name__} does not state them: give their number"
        )
    found = list(_output(network, shape, None).shape)
    if found != [1, n]:
        raise ValueError(
            f"the network turns images of shape {list(shape)} into {found[1:]}, but there are {n} classes: let it "
            "return a number for each"
        )
    return n


def predicts_variance(network: nn.Module, shape: tuple[int, ...], conditioner: Conditioner) -> bool:
    """Whether the network predicts the variance, found by passing one image of `shape` (C, H, W) through it.

    Raises:
        ValueError: if the network does not take the image, or returns another shape.
    """
    output = _output(network, shape, conditioner(example(conditioner)))
    channels, *size = shape
    if list(output.shape) not in ([1, channels, *size], [1, 2 * channels, *size]):
        raise ValueError(
            f"the network turns images of shape {list(shape)} into {list(output.shape[1:])}, but what it "
            f"predicts has the images' shape: let it return {channels} channels of their size, or "
            f"{2 * channels} with the variance"
        )
    return output.shape[1] == 2 * channels


def _output(network: nn.Module, shape: tuple[int, ...], c: Embedded) -> Tensor:
    """The network's output for one image of zeros; raise ValueError if it does not take the image."""
    try:
        return _answer(without_memory(network), shape, torch.device("meta"), c)
    except Exception:  # whatever an operation raises that must see numbers, or that does not fit
        try:
            return _answer(network, shape, next((p.device for p in network.parameters()), torch.device("cpu")), c)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            condition = "" if c is None else f" and {_named(c)}"
            raise ValueError(
                f"the network does not take images of shape {list(shape)}{condition} ({reason}): make the "
                "network's arguments, the model's shape and the conditioner's width agree"
            ) from error


def _named(c: Condition | Tensor) -> str:
    """A condition's sizes in words."""
    vector, tokens, _ = c if isinstance(c, tuple) else (c, None, None)
    parts = [
        "" if vector is None else f"a condition of width {vector.shape[-1]}",
        "" if tokens is None else f"{tokens.shape[1]} tokens of {tokens.shape[2]} features",
    ]
    return " and ".join(filter(None, parts))


def _answer(network: nn.Module, shape: tuple[int, ...], device: torch.device, c: Embedded) -> Tensor:
    """The network's output for one image of zeros, at the first time, without dropout."""
    was_training, dtype = network.training, weights_dtype(network) or torch.float32
    image = torch.zeros(1, *shape, device=device, dtype=dtype)
    index = torch.zeros(1, dtype=torch.long, device=device)
    try:
        return tensor_of(network.eval()(image, index, cast(c, dtype, device)))
    finally:
        network.train(was_training)


def requested(
    n: int, first: int, y: Asked | None, conditioner: Conditioner, names: Sequence[str] | None = None
) -> Tensor | None:
    """(n, …) the conditions of samples number `first` … `first + n - 1`; None if none is given.

    Raises:
        ValueError: if such samples cannot be made.
    """
    if y is not None and not conditioner.conditional:
        raise ValueError("y was given, but this model was trained without a condition: leave y out")
    random.check_numbers(first, n)
    if y is None:
        return None
    found = conditioner.raw(y, n, names)
    if found.ndim == 0 or len(found) != n:
        raise ValueError(f"y has shape {list(found.shape)}, but there are {n} samples: give one condition for each")
    conditioner.check(found)
    return found


def check_guidance(guidance: Any, module: Any) -> None:
    """Raise ValueError if another model guides a module that is of images of another shape, or of other latents."""
    theirs = getattr(guidance, "shape", None) if callable(guidance) else None
    if theirs is None:
        return
    if tuple(theirs) != module.shape:
        raise ValueError(
            f"the guidance is by a model of images of {list(theirs)}, but this model's are {list(module.shape)}: give "
            "one of the same images"
        )
    own, other = (getattr(of, "first_stage", None) or PixelSpace() for of in (module, guidance))
    if not own.same(other):
        kinds = ["latents" if stage.latent else "pixels" for stage in (other, own)]
        raise ValueError(
            f"the guidance is by a model that sees {kinds[0]}, but this model samples {kinds[1]}"
            f"{' of another first stage' if kinds[0] == kinds[1] else ''}: give one of the same first stage"
        )


def check_data(data: Any, shape: tuple[int, ...], conditioner: Conditioner, uses_y: bool = True) -> None:
    """Raise ValueError if a data module's images or labels do not fit a model for images of `shape` (C, H, W).

    Warns if the data are configured to give labels and the model has no conditioner.
    """
    theirs = tuple(getattr(data, "shape", shape))
    if theirs != shape:
        raise ValueError(
            f"the data's images have shape {list(theirs)}, but the model's shape is {list(shape)}: "
            "set the model's shape, and the network's channels and size, to the data's"
        )
    if not uses_y:
        return
    wanted = next((name for name in ("classes", "labels", "label") if getattr(data, name, None)), None)
    if wanted is not None and not conditioner.conditional:
        rank_zero_warn(
            f"the data's {wanted} is {getattr(data, wanted)}, but the model has no conditioner, so labels go unused: "
            f"give it one, such as --model.init_args.conditioner ClassLabels, or leave {wanted} out"
        )
    if not conditioner.conditional:
        if getattr(data, "captions", None) is not None:
            rank_zero_warn(
                f"{type(data).__name__} gives captions, but the model has no conditioner, so they go unused: give it "
                "one, such as --model.init_args.conditioner TextEncoder"
            )
        return
    for split, (_, y) in getattr(data, "splits", {}).items():
        given = y if getattr(data, "captions", None) is None else data.conditions_of(split)
        own = value(given, conditioner.keys) if isinstance(given, Mapping) and conditioner.keys else given
        kind = Mapping if not conditioner.keys else list if "captions" in conditioner.takes else Tensor
        if not isinstance(own, kind):
            raise ValueError(
                f"the conditioner is {type(conditioner).__name__}, which takes {' and '.join(conditioner.takes)}, but "
                f"{type(data).__name__} gives {_given(given)}: take a conditioner of these, or set the data's captions "
                "and classes to what the conditioner takes"
            )
        if isinstance(own, Tensor):
            conditioner.check(own)
            if split == "train":
                conditioner.check_training(own)


def _given(y: Any) -> str:
    """What a set of images gives beside them, in words."""
    if isinstance(y, Mapping):
        return " and ".join(map(str, y))
    return "captions alone" if isinstance(y, list) else "labels alone"


def check_optimizer(optimizer: Optimizer, trainer: Trainer) -> None:
    """Raise ValueError if gradient clipping is requested but impossible with this optimizer."""
    unscales = getattr(optimizer, "_step_supports_amp_scaling", False)
    if unscales and trainer.precision == "16-mixed" and trainer.gradient_clip_val:
        raise ValueError(
            "a fused optimizer undoes fp16's scaling in its own step, but the gradients are to be clipped before: "
            "set the optimizer's fused to false, or trainer.precision to bf16-mixed"
        )


def check_rate(total: int | None, steps: int) -> None:
    """Raise ValueError if a learning-rate schedule of `total` steps ends before the run does."""
    if total is not None and steps > total:
        raise ValueError(
            f"the learning rate's schedule ends at step {total}, but the run goes on to step {steps}: set the "
            f"lr_scheduler's total_steps to {steps} (model.init_args.lr_scheduler.init_args.total_steps; a run that is "
            "resumed by fit then has the new schedule, by a Trainer alone it keeps the checkpoint's)"
        )


def check_strategy(trainer: Trainer) -> None:
    """Raise ValueError if the strategy is none of one device, DDP and FSDP2, which keep parameters by name."""
    strategy: Any = trainer.strategy
    name = type(strategy).__name__
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"the strategy is {name}, which packs the parameters into flat pieces, but the EMA and the checkpoints "
            "need each by its name: set trainer.strategy to ModelParallelStrategy, which shards them one by one, or to "
            "ddp"
        )
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"the strategy is {name}, but the EMA and the order of the images are made for one device, DDP and FSDP2: "
            "set trainer.strategy to auto, ddp or ModelParallelStrategy"
        )
    if isinstance(strategy, DDPStrategy):
        _check_graph(strategy, trainer.accumulate_grad_batches)
    if isinstance(strategy, ModelParallelStrategy):
        _check_sizes(strategy, trainer.num_nodes * trainer.num_devices)


def _check_sizes(strategy: Any, devices: int) -> None:
    sizes = internals.parallel_sizes(strategy)
    if sizes.tensor not in ("auto", 1):
        raise ValueError(
            f"tensor_parallel_size is {sizes.tensor}, but the networks have no plan of how to cut a "
            "layer: leave it out, so that all devices share the batch and hold a part of every parameter"
        )
    if sizes.data not in ("auto", devices):
        raise ValueError(
            f"data_parallel_size is {sizes.data}, but the run has {devices} devices, and all of them "
            "share the batch: leave it out"
        )


def _check_graph(strategy: Any, accumulate: int) -> None:
    if internals.graph_is_static(strategy) and accumulate > 1:
        raise ValueError(
            f"static_graph is true, but a step takes {accumulate} batches, and DDP records the graph from one whose "
            "gradients are exchanged at once: set the strategy's static_graph to false, or "
            "trainer.accumulate_grad_batches to 1"
        )
