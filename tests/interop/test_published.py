"""Weights there and back, and outputs against the other projects' networks."""

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from diffusion_lightning.interop import Diffusers, Layout, OpenAI, ReleasedDiT
from diffusion_lightning.interop.diffusers import unet_arguments, unet_config
from diffusion_lightning.networks import DiT, UNet

from ..support.weights import SHAPES, random_unet

LAYOUTS: list[Layout] = [Diffusers(), OpenAI(), OpenAI(new_attention_order=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
def test_weights_go_there_and_back_unchanged(layout: Layout, shape: str) -> None:
    network = random_unet(shape)
    own = dict(network.named_parameters())
    theirs = layout.write(network, own)
    assert sum(x.numel() for x in theirs.values()) == sum(p.numel() for p in own.values())
    back = layout.read(network, theirs)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    again = layout.write(network, back)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("layout", [*LAYOUTS, ReleasedDiT()], ids=lambda x: x.name)
def test_a_network_that_attends_to_tokens_has_no_place_there(layout: Layout) -> None:
    """Its weights without those of the cross-attention would be another network's."""
    unet = {"size": 8, "channels": 8, "multipliers": (1,), "attention": (), "groups": 4, "cross_attention": (8,)}
    dit = {"size": 8, "width": 16, "depth": 2, "heads": 2, "cross_every": 2}
    network = layout.network(token_width=12, **(dit if layout.network is DiT else unet))
    for way in (layout.write, layout.read):
        with pytest.raises(ValueError, match=r"the network's .*\.cross\..* has no place in a checkpoint of"):
            way(network, dict(network.named_parameters()))


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_those_of_diffusers(shape: str) -> None:
    network = random_unet(shape)
    config = unet_config(network)
    theirs = UNet2DModel.from_config(config).eval()
    theirs.load_state_dict(Diffusers().write(network, dict(network.named_parameters())))
    x = torch.randn(3, 3, network.size, network.size)
    for t in ([0, 1, 7], [100, 500, 999], [250, 250, 3]):
        index = torch.tensor(t)
        with torch.no_grad():
            found, expected = network(x, index), theirs(x, index).sample
        assert (found - expected).norm() / expected.norm() < 1e-5
        assert expected.std() > 0.1
    assert UNet(**unet_arguments(theirs.config)).state_dict().keys() == network.state_dict().keys()
    arguments = unet_arguments(theirs.config)
    for key, value in SHAPES[shape].items():
        if key != "heads":
            assert (tuple(value) if isinstance(value, tuple) else value) == (
                tuple(arguments[key]) if isinstance(value, tuple) else arguments[key]
            )


def test_released_dit_there_and_back() -> None:
    """And its names, of facebookresearch/DiT, one of each kind; its positions are worked out anew."""
    network = DiT(in_channels=4, size=8, patch=2, out_channels=8, **{**DiT.S, "depth": 2})
    own = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    theirs = ReleasedDiT().write(network, own)
    names = {re.sub(r"blocks\.\d", "blocks.#", name).rpartition(".")[0] for name in theirs if name != "pos_embed"}
    assert names == {
        "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "blocks.#.attn.qkv", "blocks.#.attn.proj",
        "blocks.#.mlp.fc1", "blocks.#.mlp.fc2", "blocks.#.adaLN_modulation.1", "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    }  # fmt: skip
    assert theirs["pos_embed"].shape == (1, 16, 384)
    back = ReleasedDiT().read(network, theirs)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_names_of_improved_diffusion() -> None:
    """Of its CIFAR-10 network, as its file lists them: how many, and some of each kind with their shapes."""
    with torch.device("meta"):
        network = UNet(blocks=3, attention=(16, 8), out_channels=6, heads=4, scale_shift=True, release="IDDPM")
    found = {name: list(x.shape) for name, x in OpenAI().write(network, dict(network.named_parameters())).items()}
    some = {
        "time_embed.0.weight": [512, 128], "input_blocks.0.0.weight": [128, 3, 3, 3],
        "input_blocks.4.0.op.weight": [128, 128, 3, 3], "input_blocks.5.0.in_layers.2.weight": [256, 128, 3, 3],
        "input_blocks.5.0.emb_layers.1.weight": [512, 512], "input_blocks.5.0.skip_connection.weight": [256, 128, 1, 1],
        "input_blocks.5.1.qkv.weight": [768, 256, 1], "input_blocks.5.1.proj_out.weight": [256, 256, 1],
        "input_blocks.15.0.out_layers.3.weight": [256, 256, 3, 3], "middle_block.1.norm.weight": [256],
        "middle_block.2.out_layers.0.bias": [256], "output_blocks.3.1.conv.weight": [256, 256, 3, 3],
        "output_blocks.7.2.conv.weight": [256, 256, 3, 3], "output_blocks.15.0.in_layers.0.weight": [256],
        "out.0.weight": [128], "out.2.weight": [6, 128, 3, 3],
    }  # fmt: skip
    assert some.items() <= found.items()
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 52_546_438


@pytest.mark.parametrize("new", [True, False])
def test_heads_of_openai_are_read_in_either_order(new: bool) -> None:
    """Attention by its formula, from their rows: head by head (q, k, v of each), or all q, all k, all v."""
    network = random_unet("iddpm")
    attention: Any = network.middle[0].attention
    stored = OpenAI(new).write(network, dict(network.named_parameters()))
    x = torch.randn(2, attention.qkv.in_channels, 4, 4)
    rows = torch.einsum("oc,bcn->bon", stored["middle_block.1.qkv.weight"][:, :, 0], attention.norm(x).flatten(2))
    rows = rows + stored["middle_block.1.qkv.bias"][:, None]
    split = rows.unflatten(1, (3, 4, -1) if new else (4, 3, -1))
    q, k, v = (split if new else split.transpose(1, 2)).unbind(1)  # (B, heads, C/heads, N)
    weight = torch.softmax(torch.einsum("bhcn,bhcm->bhnm", q, k) / q.shape[2] ** 0.5, dim=-1)
    mixed = torch.einsum("bhnm,bhcm->bhcn", weight, v).flatten(1, 2)
    out = torch.einsum("oc,bcn->bon", stored["middle_block.1.proj_out.weight"][:, :, 0], mixed)
    expected = x + (out + stored["middle_block.1.proj_out.bias"][:, None]).view_as(x)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
def test_nothing_may_be_missing_or_left_over(layout: Layout) -> None:
    network = random_unet("no attention")
    theirs = layout.write(network, dict(network.named_parameters()))
    with pytest.raises(ValueError, match=r"has further\.weight, for which the network has no place"):
        layout.read(network, {**theirs, "further.weight": torch.zeros(1)})
    name = sorted(theirs)[7]
    with pytest.raises(ValueError, match=f"has no {name}"):
        layout.read(network, {k: x for k, x in theirs.items() if k != name})
    with pytest.raises(ValueError, match=f"'s {name} has shape"):
        layout.read(network, {**theirs, name: torch.zeros(7)})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"act_fn": "gelu"}, "has act_fn = gelu, but UNet has silu alone"),
        ({"freq_shift": 1}, "has flip_sin_to_cos = True, freq_shift = 1"),
        ({"block_out_channels": (32, 48)}, r"levels of \[32, 48\] features"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "attends on the way down"),
    ],
)
def test_networks_of_diffusers_that_are_not_ours_are_refused(changes: dict, says: str) -> None:
    theirs = {
        "in_channels": 3, "out_channels": 3, "sample_size": 16, "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    unet_arguments(theirs)
    with pytest.raises(ValueError, match=says):
        unet_arguments({**theirs, **changes})


def test_heads_that_diffusers_cannot_have_are_refused() -> None:
    network = UNet(size=16, channels=32, multipliers=(1, 2), attention=(16, 8), groups=8, heads=4)
    with pytest.raises(ValueError, match=r"heads have \[8, 16\] features at its levels"):
        unet_config(network)
