"""The layout of DiT's released checkpoints."""

from collections.abc import Iterator
from math import isqrt
from typing import Any

from ..networks.dit import DiT
from .layout import Layout, Pair, Weights, described_model, parts

HEADS = {size["width"]: size["heads"] for size in (DiT.S, DiT.B, DiT.L, DiT.XL)}


class ReleasedDiT(Layout):
    """A `DiT` as its authors' code stores it."""

    name = "DiT"
    network = DiT
    labels = "y_embedder.embedding_table.weight"

    def pairs(self, network: Any) -> Iterator[Pair]:
        yield from parts("time_mlp1", "t_embedder.mlp.0")
        yield from parts("time_mlp2", "t_embedder.mlp.2")
        yield from parts("conv_in", "x_embedder.proj")
        for i in range(len(network.blocks)):
            for ours, theirs in (
                ("qkv", "attn.qkv"),
                ("out", "attn.proj"),
                ("mlp1", "mlp.fc1"),
                ("mlp2", "mlp.fc2"),
                ("modulation", "adaLN_modulation.1"),
            ):
                yield from parts(f"blocks.{i}.{ours}", f"blocks.{i}.{theirs}")
        yield from parts("modulation", "final_layer.adaLN_modulation.1")
        yield from parts("proj_out", "final_layer.linear")

    def derived(self, network: Any) -> Weights:
        """The fixed places of the patches."""
        return {"pos_embed": network.positions[None]}


def model_arguments(weights: Weights) -> dict[str, Any]:
    """The model that a released checkpoint is of, as our configuration describes it.

    All of them have the linear schedule of 1,000 steps, a predicted variance and classes that were dropped in training.

    Raises:
        ValueError: if the width is none of the paper's, so that the number of heads is unknown.
    """
    width, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    if width not in HEADS:
        raise ValueError(
            f"the DiT has a width of {width}, and its file does not say how many heads: the paper's have "
            f"{', '.join(map(str, HEADS))}; give the model by --config"
        )
    size = patch * isqrt(weights["pos_embed"].shape[1])
    classes = len(weights[ReleasedDiT.labels]) - 1
    network = {
        "in_channels": channels,
        "size": size,
        "patch": patch,
        "width": width,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "heads": HEADS[width],
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "out_channels": len(weights["final_layer.linear.weight"]) // patch**2,
    }
    described: dict[str, tuple[str, dict[str, Any]]] = {
        "network": ("networks.DiT", network),
        "schedule": ("schedules.Linear", {"T": 1000}),
        "conditioner": ("conditioning.ClassLabels", {"classes": classes, "width": width, "dropout": 0.1}),
    }
    return described_model([channels, size, size], described)
