"""Attention and dropout: the forms that are fast on a CPU do what PyTorch's do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lightning.networks import UNet, base

from .conftest import tiny_unet


@pytest.mark.parametrize("tokens", [4, 16, 1025])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_pytorchs(tokens: int, heads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, tokens, 8, dtype=torch.float64, generator=draw) for _ in range(3))
    q.requires_grad_()
    found, expected = base.attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(x.square().sum(), q)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(100, 3, 41, 81)  # no multiple of four numbers
    y = base.Dropout(p)(x)
    n, kept = x.numel(), int((y != 0).sum())
    assert abs(kept / n - (1 - p)) < 4 * (p * (1 - p) / n) ** 0.5 + 2**-17
    torch.testing.assert_close(y[y != 0], torch.full((kept,), 1 / (1 - p)), rtol=2**-17 / (1 - p) + 1e-6, atol=0)
    apart = (y != 0).flatten(1).double()
    assert abs(float(torch.corrcoef(apart[:2])[0, 1])) < 0.06  # of two examples
    assert abs(float(torch.corrcoef(torch.stack([apart[:, :-1].flatten(), apart[:, 1:].flatten()]))[0, 1])) < 0.01


def test_dropout_is_a_function_of_the_generators_state_and_of_nothing_in_evaluation() -> None:
    x, dropout = torch.randn(5, 7, 3, 3), base.Dropout(0.3)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(dropout(x))
    assert torch.equal(*found)
    assert not torch.equal(dropout(x), found[0])
    assert dropout.eval()(x) is x
    assert base.Dropout(0.0)(x) is x


def test_dropouts_gradient_is_its_mask() -> None:
    x = torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = base.Dropout(0.4)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, slope * x)
    assert 0 < int((slope == 0).sum()) < x.numel()


@pytest.mark.parametrize(("reduced", "layout"), [(False, torch.channels_last), (True, torch.contiguous_format)])
def test_a_u_nets_features_lie_as_its_weights_do(reduced: bool, layout: torch.memory_format) -> None:
    """All of them: one in another order, as the ambiguous strides of a 1×1 kernel bring about, costs copies."""
    network = UNet(1, 8, 32, (1, 2), 1, (8,), 0.0, 8)
    network.lay_out(torch.device("cpu"), not reduced)
    network.lay_out(torch.device("cpu"), reduced)
    seen = []

    def look(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if output.shape[1] > 1 and output.shape[2] > 1:
            seen.append(output.is_contiguous(memory_format=layout))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(look)
    network(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]))
    assert len(seen) > 20
    assert all(seen)


def test_the_layout_changes_no_number() -> None:
    network = tiny_unet().eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    first = network(x, t)
    network.lay_out(torch.device("cpu"), reduced=True)
    torch.testing.assert_close(network(x, t), first)
