"""Stable Diffusion's U-Net behind our signature: diffusers' own numbers, the published sizes, what is refused."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from diffusion_lightning import records
from diffusion_lightning.conditioning.base import Condition
from diffusion_lightning.networks import ConditionUNet

from ..support.pipelines import UNET, randomised

PUBLISHED: dict[str, Any] = {  # of version 1.5
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8,
}  # fmt: skip
SECOND = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


@pytest.mark.parametrize(("changes", "size"), [({}, 859_520_964), (SECOND, 865_910_724)], ids=["1.5", "2.x"])
def test_the_published_sizes(changes: dict, size: int) -> None:
    with torch.device("meta"):
        made = ConditionUNet({**PUBLISHED, **changes})
    assert sum(p.numel() for p in made.parameters()) == size
    assert (made.in_channels, made.size) == (4, 64)
    assert made.token_width == changes.get("cross_attention_dim", 768)


def test_the_published_autoencoders_size() -> None:
    with torch.device("meta"):
        made = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
        )  # fmt: skip
    assert sum(p.numel() for p in made.parameters()) == 83_653_863


def test_it_is_diffusers_own() -> None:
    torch.manual_seed(0)
    theirs, ours = randomised(UNet2DConditionModel(**UNET)), ConditionUNet(UNET).eval()
    ours.load_state_dict({f"model.{name}": x for name, x in theirs.state_dict().items()})
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with torch.no_grad():
        for given in (None, mask):
            expected = theirs(x, t, tokens, encoder_attention_mask=given).sample
            assert torch.equal(ours(x, t, Condition(tokens=tokens, mask=given)), expected)
        masked, short = ours(x, t, Condition(tokens=tokens, mask=mask)), ours(x, t, Condition(tokens=tokens[:, :2]))
        assert (masked[1] - short[1]).abs().max() < 1e-5  # what is masked is not seen
        assert (masked[0] - short[0]).abs().max() > 1e-2


def test_a_record_holds_its_configuration_as_data() -> None:
    spec = {"class_path": "ConditionUNet", "init_args": {"config": {**UNET, "_class_name": "os.system", "dropout": 0}}}
    part = records.read(spec, nn.Module, "model.network")
    made = part.make()
    assert records.read(part.spec(), nn.Module, "model.network").make().model.config == made.model.config
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    for config, says in (
        (deep, "is no tree of plain values"),
        ({"sample_size": 10**9}, "no whole number past"),
        ({1: 2}, "is no tree of plain values"),
        ([1], "but it takes dict"),
    ):
        with pytest.raises(ValueError, match=says):
            records.read({"class_path": "ConditionUNet", "init_args": {"config": config}}, nn.Module, "model.network")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type is timestep, so it is fed a class"),
        ({"addition_embed_type": "text_time"}, "a second text, as Stable Diffusion XL"),
        ({"sample_size": [8, 16]}, "one number for all"),
        ({"cross_attention_dim": None}, "one number for all"),
        ({"attention_heads_dim": 4}, "did you mean attention_head_dim"),
        ({"act_fn": "none"}, "does not take this config"),
    ],
)
def test_what_it_cannot_be_given_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ConditionUNet({**UNET, **changes})


def test_a_condition_of_no_tokens_is_refused() -> None:
    made, x, t = ConditionUNet(UNET), torch.zeros(1, 4, 8, 8), torch.zeros(1)
    for c in (None, torch.zeros(1, 16), Condition(torch.zeros(1, 16), torch.zeros(1, 2, 16))):
        with pytest.raises(ValueError, match="attends to tokens, but the condition has"):
            made(x, t, c)
