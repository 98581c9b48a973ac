"""The DiT of published pipelines: diffusers' own class as a network of ours."""

from typing import Any

import torch
from torch import Tensor, nn

from ..frozen import installed


class DiffusersDiT(nn.Module):
    """diffusers' `DiTTransformer2DModel`, which takes the class of each sample itself; of `conditioning.Labels`.

    It computes what a `DiTPipeline` computes. From `DiT` it differs by its time's frequencies, 10000^(-i/127) and not
    the released code's 10000^(-i/128), and by `norm_eps`, so the weights of one are not those of the other. Dropping
    labels is left to the conditioner, whose draws are counted: diffusers' own would drop them by the global generator,
    and differently in each block. Needs the optional package, `pip install diffusion_lightning[diffusers]`.

    Paper: Scalable diffusion models with transformers. Peebles, Xie, 2022, arXiv 2212.09748, section 3.2.

    Args:
        in_channels: channels of the images or latents, C.
        size: their height and width; divisible by `patch`.
        patch: height and width of a patch.
        depth: number of blocks.
        heads: attention heads.
        head_channels: features of a head; the width is `heads` times as many, and divisible by 4.
        out_channels: channels of the output: C, or 2·C to predict the variance too.
        classes: how many; the table has one row more, for the null condition.
        shared: whether all blocks have one embedder of time and class, as published files have, and not each its own.
        dropout: in the blocks' attention and MLP, in [0, 1).
        norm_eps: ε of the norm before the MLP.

    Raises:
        ValueError: if diffusers is not installed, or the patches do not divide the size.
    """

    def __init__(
        self,
        in_channels: int = 4,
        size: int = 32,
        patch: int = 2,
        depth: int = 28,
        heads: int = 16,
        head_channels: int = 72,
        out_channels: int = 8,
        classes: int = 1000,
        shared: bool = True,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if patch < 1 or size < 1 or size % patch:
            raise ValueError(
                f"the DiT cuts images into patches of {patch} pixels, which {size} pixels do not allow: use a size "
                "divisible by patch, or another patch"
            )
        self.in_channels, self.size, self.classes, self.shared = in_channels, size, classes, shared
        self.model: Any = installed("DiffusersDiT", "diffusers").DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_channels,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=depth,
            dropout=dropout,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=classes,
            norm_eps=norm_eps,
        )
        first, *others = [block.norm1 for block in self.model.transformer_blocks]
        for norm in (first, *others):
            norm.emb.class_embedder.dropout_prob = 0.0
        if shared:
            for norm in others:
                norm.emb = _Same(first.emb)

    def forward(self, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        """What the network is trained to output at x_t, (B, out_channels, H, W).

        Args:
            x_t: (B, C, H, W).
            t: (B,) the time as the 0-based index 0 … T - 1.
            c: (B,) the class of each sample, `classes` for the null condition.

        Raises:
            ValueError: if c is no class, or x_t has other sizes than those of the network.
        """
        if not isinstance(c, Tensor) or c.ndim != 1 or c.is_floating_point():
            raise ValueError(
                "DiffusersDiT takes the class of each sample, but the model's conditioner gives something else: set "
                f"it to Labels of {self.classes} classes"
            )
        if x_t.shape[1:] != (self.in_channels, self.size, self.size):
            raise ValueError(
                f"the DiT was built for {[self.in_channels, self.size, self.size]}, but its input is "
                f"{list(x_t.shape[1:])}: set the network's in_channels and size to the input's"
            )
        return self.model(x_t, t, c).sample


class _Same(nn.Module):
    """Calls another block's embedder, whose weights stay that block's alone."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = (other,)  # in a tuple, which no module looks into

    def forward(self, *given: Any, **more: Any) -> torch.Tensor:
        return self.other[0](*given, **more)
