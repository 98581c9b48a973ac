"""The U-Net of Stable Diffusion, as diffusers has it, behind this package's signature."""

import inspect
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from ..conditioning.base import Embedded, whole
from ..frozen import installed, plain

# What such a U-Net may be fed beside x_t, the time and tokens, and no conditioner here gives.
NOT_GIVEN = {
    "class_embed_type": "a class",
    "num_class_embeds": "a class",
    "addition_embed_type": "sizes or a second text, as Stable Diffusion XL is",
    "encoder_hid_dim_type": "tokens of pictures",
    "encoder_hid_dim": "tokens of another width",
    "time_cond_proj_dim": "the scale of its guidance",
}


class ConditionUNet(nn.Module):
    """diffusers' `UNet2DConditionModel`, the U-Net of Stable Diffusion 1.x and 2.x, which attends to tokens.

    The class itself is `model`, so that its weights have their published names. It needs the optional package,
    `pip install diffusion_lightning[diffusers]`.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752,
    section 3.3.

    Args:
        config: its own configuration, as its `config.json` states it: `sample_size`, `in_channels`, `out_channels`,
            `block_out_channels`, `cross_attention_dim`, … Keys that begin with _ are left out.

    Raises:
        ValueError: if a key is unknown, a value is not plain, or it is fed what no conditioner gives.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        kind = installed("the network ConditionUNet", "diffusers").UNet2DConditionModel
        known = inspect.signature(kind.__init__).parameters
        given = plain(config, config.keys(), "ConditionUNet")
        if unknown := sorted(set(given) - set(known)):
            near = get_close_matches(unknown[0], known, n=1, cutoff=0.7)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"config has the key {unknown[0]}, but UNet2DConditionModel takes no such{meant}: remove it"
            )
        for key, what in NOT_GIVEN.items():
            if given.get(key) is not None:
                raise ValueError(
                    f"the U-Net's {key} is {given[key]}, so it is fed {what}, but ConditionUNet is given x_t, the time "
                    "and tokens alone: take another model"
                )
        sizes = {
            name: _one(name, given.get(name, known[name].default)) for name in ("sample_size", "cross_attention_dim")
        }
        try:
            self.model = kind(**given)
        except Exception as error:  # whatever diffusers raises
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"UNet2DConditionModel does not take this config ({reason}): correct it") from error
        self.size, self.token_width = sizes["sample_size"], sizes["cross_attention_dim"]
        self.in_channels: int = self.model.config["in_channels"]

    def forward(self, x_t: Tensor, t: Tensor, c: Embedded = None) -> Tensor:
        """(B, out_channels, H, W) of x_t (B, in_channels, H, W), t (B,) and the tokens of c."""
        vector, tokens, mask = whole(c)
        if tokens is None or vector is not None:
            has = "no tokens" if tokens is None else "a vector beside them"
            raise ValueError(
                f"ConditionUNet attends to tokens, but the condition has {has}: give a conditioner of texts, such as "
                "PretrainedText"
            )
        return self.model(x_t, t, tokens, encoder_attention_mask=mask, return_dict=False)[0]


def _one(name: str, value: Any) -> int:
    """The one size that a value states for all directions or levels."""
    sizes = set(value) if isinstance(value, list | tuple) else {value}
    if len(sizes) != 1 or not all(type(size) is int for size in sizes):
        raise ValueError(
            f"the U-Net's {name} is {value}, but ConditionUNet takes one number for all: take another model"
        )
    return sizes.pop()
