"""The diffusion transformer: its sizes, equality with an independent one, its start, its refusals."""

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from diffusion_lightning.networks import DiT
from diffusion_lightning.networks.dit import Block
from diffusion_lightning.networks.embeddings import sinusoidal


def peer(classes: int = 1000, **shape: Any) -> DiTTransformer2DModel:
    """The DiT of diffusers, of a DiT's arguments, with the released code's frequencies and epsilon."""
    network = DiTTransformer2DModel(
        num_attention_heads=shape["heads"],
        attention_head_dim=shape["width"] // shape["heads"],
        in_channels=shape["in_channels"],
        out_channels=shape["out_channels"],
        num_layers=shape["depth"],
        sample_size=shape["size"],
        patch_size=shape["patch"],
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    )
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return network.eval()


def pairs(ours: DiT, theirs: DiTTransformer2DModel) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Our layers, and theirs that do the same: several where each of their blocks has a layer of its own."""
    blocks = list(theirs.transformer_blocks)
    embedders = [block.norm1.emb.timestep_embedder for block in blocks]
    found: list[tuple[nn.Module, list[nn.Module]]] = [
        (ours.conv_in, [theirs.pos_embed.proj]),
        (ours.time_mlp1, [embedder.linear_1 for embedder in embedders]),
        (ours.time_mlp2, [embedder.linear_2 for embedder in embedders]),
        (ours.modulation, [theirs.proj_out_1]),
        (ours.proj_out, [theirs.proj_out_2]),
    ]
    for own, other in zip(ours.blocks, blocks, strict=True):
        assert isinstance(own, Block)
        found += [
            (own.modulation, [other.norm1.linear]),
            (own.out, [other.attn1.to_out[0]]),
            (own.mlp1, [other.ff.net[0].proj]),
            (own.mlp2, [other.ff.net[2]]),
        ]
    return found


@torch.no_grad()
def copied(ours: DiT, theirs: DiTTransformer2DModel) -> Tensor:
    """Gives theirs our weights, all of them random; returns the table of labels, one for all of their blocks."""
    for p in ours.parameters():
        nn.init.normal_(p, std=0.1)
    for own, others in pairs(ours, theirs):
        for other in others:
            other.load_state_dict(own.state_dict())
    table = theirs.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    for block, other in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        assert isinstance(block, Block)
        for name in ("weight", "bias"):
            for part, layer in zip(
                getattr(block.qkv, name).chunk(3), (other.attn1.to_q, other.attn1.to_k, other.attn1.to_v), strict=True
            ):
                getattr(layer, name).copy_(part)
        other.norm1.emb.class_embedder.embedding_table.weight.copy_(table)
    return table


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("patch", "shape", "number"),
    [(2, DiT.S, 32_480_672), (4, DiT.B, 129_657_728), (8, DiT.L, 457_553_408), (2, DiT.XL, 673_681_568)],
    ids=["S/2", "B/4", "L/8", "XL/2"],
)
def test_parameters_of_the_papers_sizes(patch: int, shape: dict[str, int], number: int) -> None:
    """Those of an independent network without its labels' tables; it has a time embedding in each of its blocks."""
    arguments = {"in_channels": 4, "out_channels": 8, "size": 32, "patch": patch, **shape}
    with torch.device("meta"):
        theirs = peer(**arguments)
        first, *others = [block.norm1.emb for block in theirs.transformer_blocks]
        expected = parameters(theirs) - parameters(first.class_embedder) - sum(map(parameters, others))
        assert parameters(DiT(patch=patch, out_channels=8, **shape)) == expected == number


SHAPES = [
    {"in_channels": 3, "out_channels": 3, "size": 8, "patch": 2, "width": 16, "depth": 2, "heads": 2},
    {"in_channels": 4, "out_channels": 8, "size": 20, "patch": 4, "width": 48, "depth": 3, "heads": 6},
    {"in_channels": 1, "out_channels": 2, "size": 7, "patch": 1, "width": 36, "depth": 1, "heads": 3},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_an_independent_one(shape: dict[str, int]) -> None:
    ours, theirs = DiT(**shape), peer(10, **shape)
    table = copied(ours, theirs)
    t, y = torch.tensor([0, 1, 17, 500, 999]), torch.tensor([0, 3, 9, 3, 10])  # the last label: their null
    x_t = torch.randn(5, shape["in_channels"], shape["size"], shape["size"])
    with torch.no_grad():
        expected = theirs(x_t, t, y).sample
        found = ours(x_t, t, table[y])
        assert (found - expected).norm() < 1e-5 * expected.norm()
        for block in theirs.transformer_blocks:  # the waves are float32: the same ones, since time is told apart above
            block.norm1.emb.time_proj.forward = lambda t: sinusoidal(t, 256, cosine_first=True, shift=0)
        ours, theirs, x_t = ours.double(), theirs.double(), x_t.double()
        expected = theirs(x_t, t, y).sample
        found = ours(x_t, t, table[y])
    assert (found - expected).norm() < 1e-12 * expected.norm()


def test_the_layers_are_those_that_the_released_code_is_made_of() -> None:
    """By the names of its checkpoints: qkv, proj, fc1, fc2."""
    block, attention, mlp = Block(24, 3, 96), Attention(24, num_heads=3, qkv_bias=True), Mlp(24, 96)
    mlp.act = nn.GELU(approximate="tanh")
    attention.qkv.load_state_dict(block.qkv.state_dict())
    attention.proj.load_state_dict(block.out.state_dict())
    mlp.fc1.load_state_dict(block.mlp1.state_dict())
    mlp.fc2.load_state_dict(block.mlp2.state_dict())
    nn.init.zeros_(block.modulation.weight)
    # Neither shift nor scale; at first the attention's gate alone, then the MLP's alone.
    x, emb, norm = torch.randn(2, 9, 24), torch.zeros(2, 24), nn.LayerNorm(24, eps=1e-6, elementwise_affine=False)
    for gate, branch in ((2, attention), (5, mlp)):
        nn.init.zeros_(block.modulation.bias)
        nn.init.ones_(block.modulation.bias.data.chunk(6)[gate])
        torch.testing.assert_close(block(x, emb), x + branch(norm(x)))


def test_no_two_places_are_alike_and_x_comes_before_y() -> None:
    positions = DiT(size=12, patch=2, width=32, heads=4, depth=1).positions.view(6, 6, 32)
    assert len(positions.flatten(0, 1).unique(dim=0)) == 36
    x, y = positions.chunk(2, dim=2)
    assert torch.equal(x, x[:1].expand_as(x))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert torch.equal(x[0], y[:, 0])
    assert "positions" not in DiT(size=12, width=32, heads=4, depth=1).state_dict()


def small(**changes: Any) -> DiT:
    return DiT(**{"in_channels": 1, "size": 8, "patch": 2, "width": 32, "depth": 2, "heads": 4, **changes})


def test_starts_as_the_released_code() -> None:
    network = DiT(width=384, depth=1, heads=6)
    block = network.blocks[0]
    assert isinstance(block, Block)
    for linear, fans in ((network.conv_in, 4 * 4 + 384), (block.qkv, 4 * 384), (block.mlp1, 5 * 384)):
        bound = (6 / fans) ** 0.5  # of a uniform distribution, whose standard deviation is bound/√3
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert float(linear.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    for linear in (network.time_mlp1, network.time_mlp2):
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.01)
    zero = {"blocks.0.modulation.weight", "modulation.weight", "proj_out.weight"}
    assert {name for name, p in network.named_parameters() if not p.any() and not name.endswith("bias")} == zero
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_starts_at_zero_but_not_dead() -> None:
    """One step moves the output; by the third, what the zeros held back has a gradient too."""
    network = small()
    x, t, target = torch.randn(8, 1, 8, 8), torch.arange(8), torch.randn(8, 1, 8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    assert not network(x, t).any()
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, t) - target).square().mean().backward()
        optimizer.step()
        assert network(x, t).any()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_depends_on_the_time_and_the_condition() -> None:
    network = small()
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 1, 8, 8)
    here, there = network(x, torch.tensor([0, 0])), network(x, torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(here[0], there[0])
    assert not torch.allclose(here[1], there[1])
    assert not torch.allclose(network(x, torch.tensor([0, 0]), torch.ones(2, 32)), here)
    torch.testing.assert_close(network(x, torch.tensor([0, 0]), torch.zeros(2, 32)), here)


def test_runs_under_bfloat16() -> None:
    network = small(out_channels=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.randn(2, 1, 8, 8), torch.tensor([0, 9])).shape == (2, 2, 8, 8)
    assert network.bfloat16()(torch.randn(2, 1, 8, 8).bfloat16(), torch.tensor([0, 9])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"patch": 3}, "patches of 3 pixels, which 8 pixels do not allow"),
        ({"patch": 0}, "patches of 0 pixels, which 8 pixels do not allow"),
        ({"heads": 5}, "a width of 32 features cannot be split among 5 heads"),
        ({"width": 30, "heads": 3}, "width is 30, .* divisible by 4"),
    ],
)
def test_impossible_networks_are_refused(kwargs: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small(**kwargs)


@pytest.mark.parametrize(
    ("shape", "says"),
    [((3, 8, 8), "of 1 channels, but these have 3"), ((1, 8, 6), "of 8×8 pixels, but these have 8×6")],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small()(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long))
