"""Attention, dropout, norms, twice the size: the forms that are fast somewhere do what PyTorch's do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lightning.networks import UNet, base
from diffusion_lightning.networks.base.normalisation import group_norm
from diffusion_lightning.networks.base.upsample import FEWEST

from ..conftest import tiny_unet


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
    network.set_memory_format(torch.device("cpu"), not reduced)
    network.set_memory_format(torch.device("cpu"), reduced)
    seen = []

    def look(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if output.shape[1] > 1 and output.shape[2] > 1:
            seen.append(output.is_contiguous(memory_format=layout))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(look)
    network(torch.randn(64, 1, 8, 8), torch.arange(64))  # enough for a transposed convolution
    assert len(seen) > 20
    assert all(seen)


def test_the_layout_changes_no_number() -> None:
    network = tiny_unet().eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    first = network(x, t)
    network.set_memory_format(torch.device("cpu"), reduced=True)
    torch.testing.assert_close(network(x, t), first)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("compiled", [False, True])
def test_trained_compiled_on_a_gpu_the_weights_lie_as_gradients_come(device: str, compiled: bool) -> None:
    network = UNet(1, 8, 32, (1, 2), 1, (8,), 0.0, 8)
    network.set_memory_format(torch.device(device), False, compiled)
    last = not (device == "cuda" and compiled)
    assert network.conv_out.weight.is_contiguous(memory_format=torch.channels_last) == last
    assert all(p.is_contiguous() != last for p in network.parameters() if p.shape[2:] == (3, 3) and p.shape[1] > 1)


@pytest.mark.parametrize("away", [0.0, 100.0])
def test_the_norm_by_channels_is_pytorchs(away: float) -> None:
    """Far from zero too, where a mean of squares less a squared mean would lose its digits."""
    draw = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(3, 24, 6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    given = [
        (x + away).requires_grad_(),
        *(torch.randn(24, generator=draw).double().requires_grad_() for _ in range(2)),
    ]
    exact = F.group_norm(given[0], 8, given[1], given[2], 1e-6)
    slopes = torch.autograd.grad(exact, given, slope)
    single = [part.detach().float().requires_grad_() for part in given]
    found = group_norm(single[0], 8, single[1], single[2], 1e-6)
    bound = 2e-6 if away == 0 else 3e-5  # x itself is known to 2⁻²³ of 100
    torch.testing.assert_close(found.double(), exact, rtol=bound, atol=bound)
    for ours, theirs in zip(torch.autograd.grad(found, single, slope.float()), slopes, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=10 * bound, atol=10 * bound)


def test_the_norm_by_channels_of_equal_pixels_is_finite() -> None:
    x = torch.full((2, 8, 4, 4), 1000.1, requires_grad=True)
    y = group_norm(x, 2, torch.ones(8), torch.full((8,), 3.0), 1e-6)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.full_like(y, 3.0))
    assert slope.isfinite().all()


@pytest.mark.parametrize("n", [2, 64])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_twice_the_size_and_a_convolution(n: int, layout: torch.memory_format) -> None:
    """By few pixels and by many: in the values, and in the gradients of all that goes in."""
    conv = base.UpsampleConv(3, 5).double().to(memory_format=layout)
    assert (n * 5 * 4 >= FEWEST) == (n == 64)
    x = torch.randn(n, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    given = [x, conv.weight, conv.bias]
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)
    with FlopCounterMode(display=False) as counter:
        found = conv(x)
    assert counter.get_total_flops() == 2 * (16 if n == 64 else 4 * 9) * n * 5 * 4 * 3 * 5
    slope = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    slopes = (torch.autograd.grad(y, given, slope) for y in (found, expected))  # type: ignore[arg-type]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("adm", [False, True])
def test_what_a_gpu_is_given_compiled_is_the_same_network(adm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    style = {"scale_shift": True, "resample_blocks": True, "release": "IDDPM", "head_channels": 4} if adm else {}
    net = UNet(in_channels=3, size=16, channels=16, multipliers=(1, 2), blocks=1, attention=(8,), groups=4, **style)  # type: ignore[arg-type]
    net = net.double().eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x_t, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([3, 700])

    def slopes() -> list[torch.Tensor]:
        y = net(x_t, t)
        return [y, *torch.autograd.grad(y.square().mean(), list(net.parameters()))]

    expected = slopes()
    asked = []
    monkeypatch.setattr(base.gpu, "compiling", lambda x: not asked.append(x))  # type: ignore[func-returns-value]
    found = slopes()
    assert len(asked) > 10
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()  # the norms are in float32
