"""The layout of improved-diffusion and guided-diffusion, OpenAI's code of IDDPM and ADM."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..networks import UNet
from ..networks.base.blocks import Attention, Block, Downsample, Upsample
from .layout import Layout, Pair, joined, parts


class OpenAI(Layout):
    """A `UNet` as improved-diffusion and guided-diffusion store it.

    Args:
        new_attention_order: rows of an attention as (3, heads, …) and not head by head: guided-diffusion's option of
            this name, which its ImageNet 64×64 model has.
    """

    name = "improved-diffusion or guided-diffusion"
    network = UNet
    labels = "label_emb.weight"

    def __init__(self, new_attention_order: bool = False) -> None:
        self.new_attention_order = new_attention_order

    def pairs(self, network: Any) -> Iterator[Pair]:
        return joined(self._pairs(network), "time", "time_proj", [rows for rows in network.time_channels if rows])

    def _pairs(self, network: UNet) -> Iterator[Pair]:
        yield from parts("time_mlp1", "time_embed.0")
        yield from parts("time_mlp2", "time_embed.2")
        yield from parts("conv_in", "input_blocks.0.0")
        for i, module in enumerate(network.down):
            yield from self._module(module, f"down.{i}", f"input_blocks.{i + 1}", 0)
        first, last = network.middle
        yield from self._module(first, "middle.0", "middle_block", 0)
        yield from self._module(last, "middle.1", "middle_block", 2)
        j, k = -1, 0  # what doubles the size comes last in the entry of the block before it
        for i, module in enumerate(network.up):
            j, k = (j + 1, 0) if module.takes_skip else (j, k)
            yield from self._module(module, f"up.{i}", f"output_blocks.{j}", k)
            k += 2 if isinstance(module, Block) and isinstance(module.attention, Attention) else 1
        yield from parts("norm", "out.0")
        yield from parts("conv_out", "out.2")

    def _module(self, module: nn.Module, ours: str, entry: str, k: int) -> Iterator[Pair]:
        if isinstance(module, Downsample):
            yield from parts(f"{ours}.conv", f"{entry}.{k}.op")
        elif isinstance(module, Upsample):
            yield from parts(f"{ours}.conv", f"{entry}.{k}.conv")
        elif isinstance(module, Block):
            yield from parts(f"{ours}.norm1", f"{entry}.{k}.in_layers.0")
            yield from parts(f"{ours}.conv1", f"{entry}.{k}.in_layers.2")
            yield from parts(f"{ours}.time", f"{entry}.{k}.emb_layers.1")
            yield from parts(f"{ours}.norm2", f"{entry}.{k}.out_layers.0")
            yield from parts(f"{ours}.conv2", f"{entry}.{k}.out_layers.3")
            if isinstance(module.skip, nn.Conv2d):
                yield from parts(f"{ours}.skip", f"{entry}.{k}.skip_connection")
            if isinstance(module.attention, Attention):
                heads = None if self.new_attention_order else module.attention.heads
                yield from parts(f"{ours}.attention.norm", f"{entry}.{k + 1}.norm")
                yield from parts(f"{ours}.attention.qkv", f"{entry}.{k + 1}.qkv", 3, heads)
                yield from parts(f"{ours}.attention.out", f"{entry}.{k + 1}.proj_out", 3)
