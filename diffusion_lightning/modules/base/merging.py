"""Adapters of a checkpoint merged into the weights that they adapt: W + alpha/rank·B·A, in float32."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ... import checkpoints, frozen, records
from .lora import NAME, A, B, LoRA, base_of

NETWORK = "denoiser.network."


class Adapters(NamedTuple):
    """The adapters of a model whose weights they were merged into, averaged: (rank, in, …) and (out, rank, …)."""

    lora: LoRA
    layers: dict[str, tuple[Tensor, Tensor]]


def merged(
    checkpoint: dict[str, Any], config: dict[str, Any], path: str | Path, trust: Collection[str] = ()
) -> tuple[dict[str, Any], Any, Adapters | None]:
    """A checkpoint as one of a model without adapters, its model's record, and its adapters; others as they are.

    Args:
        checkpoint: the file's content.
        config: its configuration.
        path: beside which the file of the base lies.
        trust: see `loading.load`.

    Raises:
        ValueError: if the base is missing or another, or the adapters are not those that the configuration describes.
    """
    spec = config.get("model")
    given = spec.get("init_args") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(given, dict) or given.get(NAME) is None:
        return checkpoint, spec, None
    lora: LoRA = records.read(given[NAME], LoRA, f"model.{NAME}", trust).make()
    state = {**checkpoint["state_dict"], **checkpoints.averaged(checkpoint)}
    lora.check(state, path)
    weights = base_of(checkpoint, checkpoints.found(path)).weights()
    names = {name.removeprefix(NETWORK): x for name, x in state.items() if name.startswith(NETWORK)}
    layers = {name.removesuffix(A): (x, names.get(name.removesuffix(A) + B)) for name, x in names.items() if A in name}
    if stray := sorted(names.keys() - {layer + part for layer in layers for part in (A, B)}):
        raise ValueError(f"{path} holds adapters, but its {stray[0]} is none: use another checkpoint")
    found = {}
    for layer, (a, b) in layers.items():
        weight = weights.get(f"{layer}.weight")
        if weight is None or b is None or not _fit(weight, a, b, lora.rank):
            shapes = [list(x.shape) if isinstance(x, Tensor) else "missing" for x in (a, b, weight)]
            raise ValueError(
                f"lora's rank is {lora.rank}, but in {path} the adapter of {layer} is {shapes[0]} and {shapes[1]}, of "
                f"a weight {shapes[2]}: use the configuration that it was trained with, or another checkpoint"
            )
        product = (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape)
        weights[f"{layer}.weight"] = weight.float() + lora.scale * product
        found[layer] = (a, b)
    rest = {name: x for name, x in state.items() if not name.startswith((NETWORK, f"{NAME}."))}
    plain = {
        **checkpoint,
        "state_dict": {**rest, **{NETWORK + name: x for name, x in weights.items()}},
        "callbacks": {key: x for key, x in checkpoint.get("callbacks", {}).items() if key != "EMA"},
        frozen.KEY: {name: x for name, x in checkpoint[frozen.KEY].items() if name != NAME},
    }
    return plain, unadapted(spec), Adapters(lora, found)


def unadapted(spec: dict[str, Any]) -> dict[str, Any]:
    """The record of a model as it is when its adapters are merged."""
    return {**spec, "init_args": {k: None if k == NAME else x for k, x in spec["init_args"].items()}}


def _fit(weight: Tensor, a: Tensor, b: Tensor, rank: int) -> bool:
    ones = (1,) * (weight.ndim - 2)
    wanted = ((rank, *weight.shape[1:]), (weight.shape[0], rank, *ones))
    return weight.ndim >= 2 and (tuple(a.shape), tuple(b.shape)) == wanted
