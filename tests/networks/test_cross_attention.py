"""Cross-attention to tokens: equality with independent ones, masks and padding, where it is, its start, refusals."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.networks import DiT, UNet, base
from diffusion_lightning.networks.base import CrossAttention, attention
from diffusion_lightning.networks.base.blocks import TokenAttention, places

WIDTH, LENGTHS = 12, (5, 1, 3)  # features of a token; real tokens of three conditions
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def unet(**changes: Any) -> UNet:
    arguments: dict[str, Any] = {
        "in_channels": 2, "size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,),
        "dropout": 0.0, "groups": 4, "heads": 2, "token_width": WIDTH, "cross_attention": (8, 4),
    }  # fmt: skip
    return UNet(**{**arguments, **changes})


def dit(**changes: Any) -> DiT:
    arguments: dict[str, Any] = {"in_channels": 2, "size": 8, "patch": 2, "width": 16, "depth": 3, "heads": 4}
    return DiT(**{**arguments, "token_width": WIDTH, **changes})


def adm(**changes: Any) -> UNet:
    style: dict[str, Any] = {"scale_shift": True, "resample_blocks": True, "release": "IDDPM", "head_channels": 4}
    return unet(**{**style, "cross_attention": (4,), **changes})


NETWORKS: list[Callable[..., Any]] = [unet, adm, dit]


def random(network: nn.Module, seed: int = 0) -> Any:
    """No weight at zero, so that no branch is hidden."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        mean = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0  # a norm's
        scale = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
        p.data.copy_(mean + scale * torch.randn(p.shape, generator=draw))  # in place: it keeps its memory format
    return network.eval()


def inputs(network: Any, seed: int = 1) -> list[Tensor]:
    """x_t, and the vector and the tokens of its condition."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (3, 2, 8, 8), (3, network.condition_width), (*MASK.shape, WIDTH)
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


T = torch.tensor([0, 3, 9])  # at 999, a last digit of the angles is 6e-5, and compilers round them otherwise


def slopes(network: nn.Module, given: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """The output, and the gradients of what goes in and of all parameters."""
    x_t, vector, tokens = given
    output = network(x_t, T, (vector, tokens, mask))
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, [*given, *network.parameters()], slope)]


def assert_close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= bound * theirs.norm()


def one_by_one(self: CrossAttention, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula for one condition at a time, whose padding is cut off."""
    rows = []
    for i in range(len(x)):
        real = tokens[i] if mask is None else tokens[i][mask[i]]
        centred = real - real.mean(1, keepdim=True)
        real = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * self.norm.weight + self.norm.bias
        key_weight, value_weight = self.key_value.weight.chunk(2)
        key_bias, value_bias = self.key_value.bias.chunk(2)
        q = (x[i] @ self.query.weight.T + self.query.bias).view(len(x[i]), self.heads, -1)
        k = (real @ key_weight.T + key_bias).view(len(real), self.heads, -1)
        v = (real @ value_weight.T + value_bias).view(len(real), self.heads, -1)
        scores = torch.einsum("nhd,lhd->hnl", q, k) / q.shape[2] ** 0.5
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        rows.append(torch.einsum("hnl,lhd->nhd", weights, v).flatten(1) @ self.out.weight.T + self.out.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("longest", [attention.LONGEST, 0], ids=["by matmuls", "fused"])
def test_it_is_pytorchs_multihead_attention(
    masked: bool, heads: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONGEST", longest)
    draw, pixels = torch.Generator().manual_seed(0), 16
    ours = random(CrossAttention(8, WIDTH, heads))
    theirs = nn.MultiheadAttention(8, heads, kdim=WIDTH, vdim=WIDTH, batch_first=True)
    norm = copy.deepcopy(ours.norm)
    key, value = ours.key_value.weight.data.chunk(2)
    theirs.load_state_dict({
        "q_proj_weight": ours.query.weight, "k_proj_weight": key, "v_proj_weight": value,
        "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
        "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
    })  # fmt: skip
    x, tokens = torch.randn(3, pixels, 8, generator=draw), torch.randn(*MASK.shape, WIDTH, generator=draw)
    x.requires_grad_()
    tokens.requires_grad_()
    mask = MASK if masked else None
    slope = torch.randn(x.shape, generator=draw)
    y = ours(x, tokens, mask)
    named = dict(ours.named_parameters())
    found = dict(zip(["x", "tokens", *named], torch.autograd.grad(y, [x, tokens, *named.values()], slope), strict=True))

    keys = norm(tokens)
    exact = theirs(x, keys, keys, key_padding_mask=None if mask is None else ~mask, need_weights=False)[0]
    named = {**dict(theirs.named_parameters()), **{f"norm.{name}": p for name, p in norm.named_parameters()}}
    expected = dict(
        zip(["x", "tokens", *named], torch.autograd.grad(exact, [x, tokens, *named.values()], slope), strict=True)
    )
    query_bias, key_value_bias = expected.pop("in_proj_bias").split([8, 16])
    together = {
        "x": expected["x"], "tokens": expected["tokens"],
        "norm.weight": expected["norm.weight"], "norm.bias": expected["norm.bias"],
        "query.weight": expected["q_proj_weight"], "query.bias": query_bias,
        "key_value.weight": torch.cat([expected["k_proj_weight"], expected["v_proj_weight"]]),
        "key_value.bias": key_value_bias,
        "out.weight": expected["out_proj.weight"], "out.bias": expected["out_proj.bias"],
    }  # fmt: skip
    assert_close([y, *(found[name] for name in together)], [exact, *together.values()])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("make", NETWORKS)
def test_networks_attend_by_the_formula(
    make: Callable[..., Any], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random(make())
    given, mask = inputs(network), MASK if masked else None
    found = slopes(network, given, mask)
    monkeypatch.setattr(CrossAttention, "forward", one_by_one)
    assert_close(found, slopes(network, given, mask))


@pytest.mark.parametrize("make", NETWORKS)
def test_what_a_gpu_is_given_compiled_is_the_same_network(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random(make())
    given = inputs(network)
    expected = slopes(network, given, MASK)
    monkeypatch.setattr(base.gpu, "compiling", lambda x: True)
    assert_close(slopes(network, given, MASK), expected)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_it_is_the_formula(masked: bool) -> None:
    module, mask = random(CrossAttention(8, WIDTH, 2)), MASK if masked else None
    draw = torch.Generator().manual_seed(0)
    x, tokens = (torch.randn(shape, generator=draw).requires_grad_() for shape in ((3, 16, 8), (*MASK.shape, WIDTH)))
    slope = torch.randn(x.shape, generator=draw)
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=False, fullgraph=True)(x, tokens, mask)
    found, expected = (
        [y, *torch.autograd.grad(y, [x, tokens, *module.parameters()], slope)]
        for y in (compiled, one_by_one(module, x, tokens, mask))
    )
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "changes"), [(unet, {"size": 4, "multipliers": (1,), "cross_attention": (4,)}), (dit, {"size": 4})]
)
def test_compiled_it_is_the_same_network(make: Callable[..., Any], changes: dict[str, Any]) -> None:
    """As one graph, of which no code is made: that takes minutes."""
    network = random(make(**changes))
    x_t, *condition = inputs(network)
    given = [x_t.detach()[:, :, :4, :4].requires_grad_(), *condition]
    expected = slopes(network, given, MASK)
    torch._dynamo.reset()
    network.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    assert_close(slopes(network, given, MASK), expected)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("content", [0.0, -1e4, float("inf"), float("nan")])
def test_padding_of_any_length_and_content_changes_nothing(make: Callable[..., Any], content: float) -> None:
    network = random(make())
    x_t, vector, tokens = inputs(network)
    expected = slopes(network, [x_t, vector, tokens], MASK)
    assert not expected[3][~MASK].any()  # the gradient of tokens that are padding
    for more in (1, 70):
        padded = torch.cat([tokens.detach(), torch.empty(3, more, WIDTH)], 1)
        mask = torch.cat([MASK, torch.zeros(3, more, dtype=torch.bool)], 1)
        padded[~mask] = content
        found = slopes(network, [x_t, vector, padded.requires_grad_()], mask)
        assert not found[3][~mask].any()
        found[3] = found[3][:, : MASK.shape[1]]
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
        assert_close(found, expected)


@pytest.mark.parametrize("make", NETWORKS)
def test_each_image_attends_to_its_own_tokens(make: Callable[..., Any]) -> None:
    network = random(make())
    x_t, vector, tokens = inputs(network)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        here = network(x_t, T, (vector, tokens, MASK))
        there = network(x_t[order], T[order], (vector[order], tokens[order], MASK[order]))
        torch.testing.assert_close(there, here[order], rtol=1e-6, atol=1e-6)
        other = network(x_t, T, (vector, torch.cat([-tokens[:1], tokens[1:]]), MASK))
        assert torch.allclose(other[1:], here[1:], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(other[0], here[0], atol=1e-3)
        torch.testing.assert_close(network(x_t, T, (None, tokens, None)), network(x_t, T, (0 * vector, tokens, None)))


def test_a_pixel_asks_from_where_it_is() -> None:
    """Of an image of one value, whose pixels are alike in all else, each attends in its own way."""
    block = random(TokenAttention(8, unet().style, 4))
    _, _, tokens = inputs(unet())
    with torch.no_grad():
        y = block(torch.zeros(3, 8, 4, 4), tokens, MASK).flatten(2)[0]
    assert torch.cdist(y.mT, y.mT)[~torch.eye(16, dtype=torch.bool)].min() > 1e-3


def test_an_image_of_another_size_than_the_networks_has_places_of_its_own() -> None:
    network, larger = random(unet()), random(unet(size=16, attention=(8,), cross_attention=(16, 8)))
    _, vector, tokens = inputs(network)
    x_t = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network(x_t, T, (vector, tokens, MASK))
        assert torch.equal(found, larger(x_t, T, (vector, tokens, MASK)))


def test_places_are_shares_of_the_image() -> None:
    wide, narrow = places(8, 2, 6), places(8, 2, 2)
    assert torch.allclose(wide[..., 1::3], narrow, atol=1e-6)
    row, column = wide[:4, :, 0], wide[4:, 0]
    assert torch.equal(wide, torch.cat([row[:, :, None].expand(4, 2, 6), column[:, None].expand(4, 2, 6)]))
    p = (torch.arange(6) + 0.5) / 6
    waves = [wave(frequency * torch.pi * p) for wave in (torch.sin, torch.cos) for frequency in (1, 8)]
    assert torch.allclose(column, torch.stack(waves), atol=1e-5)


def sizes_of_attention(network: nn.Module) -> list[int]:
    """Of each cross-attention in turn: how many pixels or patches ask."""
    seen = []
    for module in network.modules():
        if isinstance(module, CrossAttention):
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    x_t, vector, tokens = inputs(network)
    network(x_t, T, (vector, tokens, None))
    return seen


def test_it_is_where_it_is_asked_for() -> None:
    assert sizes_of_attention(unet()) == [64, 16, 16, 16, 16, 64, 64]
    assert sizes_of_attention(unet(cross_attention=(4,), blocks=2)) == [16] * 6
    assert sizes_of_attention(unet(cross_attention=(8,))) == [64, 16, 64, 64]
    assert sizes_of_attention(adm(cross_attention=(8,))) == [64, 16, 64, 64]
    attends = [[block.cross is not None for block in dit(depth=5, cross_every=n).blocks] for n in (1, 2, 7)]
    assert attends == [[True] * 5, [True, False] * 2 + [True], [True] + [False] * 4]


@pytest.mark.parametrize("make", NETWORKS)
def test_without_tokens_the_parameters_are_those_of_before(make: Callable[..., Any]) -> None:
    """With them, the others keep names and shapes: weights trained without start a network with tokens."""
    none = {"token_width": None} | ({} if make is dit else {"cross_attention": ()})
    plain, made = make(**none), make()
    assert not any("cross" in name for name, _ in plain.named_modules())
    shapes, others = ({name: p.shape for name, p in net.named_parameters()} for net in (plain, made))
    assert {name: shape for name, shape in others.items() if ".cross." not in name} == shapes
    assert len(others) > len(shapes)


@pytest.mark.parametrize("make", NETWORKS)
def test_it_starts_as_the_network_without_tokens(make: Callable[..., Any]) -> None:
    none = {"token_width": None} | ({} if make is dit else {"cross_attention": ()})
    plain, made = random(make(**none)), make().eval()
    made.load_state_dict(plain.state_dict(), strict=False)
    x_t, vector, tokens = inputs(made)
    here, there = plain(x_t, T, vector), made(x_t, T, (vector, tokens, MASK))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3 if make is unet else 0)  # DDPM's starts near zero


@pytest.mark.parametrize("make", NETWORKS)
def test_it_starts_at_zero_but_not_dead(make: Callable[..., Any]) -> None:
    """By the third step, what the zeros held back has a gradient too."""
    network = make().train()
    given, target = [x.detach() for x in inputs(network)], torch.randn(3, 2, 8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (network(given[0], T, (given[1], given[2], MASK)) - target).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_each_release_starts_its_output_as_its_other_branches() -> None:
    for network, bound in ((unet(), 1e-4), (adm(), 0.0), (dit(), 0.0)):
        for module in network.modules():
            if isinstance(module, CrossAttention):
                assert module.out.weight.abs().max() <= bound
                assert bool(module.out.weight.any()) == (bound > 0)
                assert not module.out.bias.any()
                assert all(w.std() > 0.05 for w in (module.query.weight, *module.key_value.weight.chunk(2)))


@pytest.mark.parametrize("make", NETWORKS)
def test_it_runs_under_bfloat16(make: Callable[..., Any]) -> None:
    network = random(make())
    x_t, vector, tokens = (x.detach() for x in inputs(network))
    exact = network(x_t, T, (vector, tokens, MASK))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(x_t, T, (vector, tokens.bfloat16(), MASK))
    assert (found - exact).norm() < 0.05 * exact.norm()
    reduced = network.bfloat16()
    assert reduced(x_t.bfloat16(), T, (vector.bfloat16(), tokens, MASK)).dtype == torch.bfloat16


@pytest.mark.parametrize(("reduced", "layout"), [(False, torch.channels_last), (True, torch.contiguous_format)])
def test_a_u_nets_features_keep_their_memory_format(reduced: bool, layout: torch.memory_format) -> None:
    network = unet()
    network.set_memory_format(torch.device("cpu"), not reduced)
    network.set_memory_format(torch.device("cpu"), reduced)
    seen = []

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=layout))

    for module in network.modules():
        if isinstance(module, base.blocks.Block | nn.Conv2d):
            module.register_forward_hook(look)
    x_t, vector, tokens = inputs(network)
    network(x_t, T, (vector, tokens, MASK))
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.parametrize(
    ("make", "changes", "says"),
    [
        (unet, {"cross_attention": ()}, r"token_width is 12, but cross_attention names no size .* \[8, 4\] pixels"),
        (unet, {"token_width": None}, r"cross_attention is set at \[8, 4\] pixels, but token_width is None"),
        (
            unet,
            {"cross_attention": (4, 2)},
            r"cross_attention is set at 2 pixels, but the U-Net's levels are at \[8, 4",
        ),
        (unet, {"token_width": 0}, "token_width is 0, but"),
        (unet, {"attention": (), "heads": 3}, "attention over 8 features cannot be split among 3 heads"),
        (dit, {"token_width": 0}, "token_width is 0 and cross_every 1, but"),
        (dit, {"cross_every": 0}, "token_width is 12 and cross_every 0, but"),
        (dit, {"token_width": None, "cross_every": 2}, "cross_every is 2, but token_width is None"),
    ],
)
def test_impossible_networks_are_refused(make: Callable[..., Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(**changes)


@pytest.mark.parametrize(
    ("token_width", "shape", "mask", "says"),
    [
        (12, None, None, "attends to tokens of 12 features, but gets none: "),
        (
            None,
            (3, 5, 12),
            None,
            "attends to no tokens, but gets some of 12 features: set the network's token_width to",
        ),
        (12, (3, 5, 7), None, r"tokens of shape \(B, L, 12\), but these have \(3, 5, 7\): .* token_width to 7"),
        (12, (3, 12), None, r"tokens of shape \(B, L, 12\), but these have \(3, 12\)"),
        (12, (3, 5, 12), torch.ones(3, 4).bool(), r"\(3, 5, 12\), but their mask is torch.bool of shape \(3, 4\)"),
        (12, (3, 5, 12), torch.ones(3, 5), r"mask is torch.float32 of shape \(3, 5\): give a torch.bool mask"),
    ],
)
@pytest.mark.parametrize("make", [unet, dit])
def test_tokens_that_do_not_fit_are_refused(
    make: Callable[..., Any], token_width: int | None, shape: tuple[int, ...] | None, mask: Tensor | None, says: str
) -> None:
    network = make(**({"token_width": token_width} | ({} if token_width or make is dit else {"cross_attention": ()})))
    tokens = None if shape is None else torch.zeros(shape)
    for c in [(None, tokens, mask)] if shape else [None, torch.zeros(3, network.condition_width), (None, None, None)]:
        with pytest.raises(ValueError, match=f"the ({'tokens have|' if mask is not None else ''}U-Net|DiT) ?.*{says}"):
            network(torch.zeros(3, 2, 8, 8), T, c)
