"""Products on a CPU that is slow in reduced precision: made in float32, and what they would have been."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.networks import DiT, UNet, base
from diffusion_lightning.networks.base import matmuls

from ..support.tensors import Made

REDUCED = [torch.bfloat16, torch.float16]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without units for reduced precision."""
    monkeypatch.setattr(matmuls, "FAST", frozenset({torch.float32, torch.float64}))


NETWORKS: list[Callable[[], nn.Module]] = [
    lambda: UNet(1, 16, 8, (1, 2), 1, (8,), 0.1, 4),
    lambda: UNet(1, 16, 8, (1, 2), 1, (8,), 0.0, 4, scale_shift=True, resample_blocks=True, release="IDDPM"),
    lambda: DiT(in_channels=1, size=16, width=32, depth=2, heads=2),
]


@pytest.mark.parametrize("make", NETWORKS, ids=["ddpm", "iddpm", "dit"])
@pytest.mark.usefixtures("slow")
def test_no_product_of_a_network_is_made_in_the_slow_type(make: Callable[[], nn.Module]) -> None:
    """Forward and backward, in mixed precision and wholly in the type."""
    for whole in (False, True):
        network, made = make(), Made()
        x, t = torch.randn(8, 1, 16, 16), torch.arange(8)
        if whole:
            network, x = network.bfloat16(), x.bfloat16()
        with made:
            with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
                output = network(x, t)
            output.square().sum().backward()
        assert output.dtype == torch.bfloat16
        assert list(made.types) == [torch.float32]
        assert made.types[torch.float32] > 50


def test_a_fast_type_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmuls, "FAST", frozenset({torch.float32, torch.bfloat16}))
    made = Made()
    with made, torch.autocast("cpu", torch.bfloat16):
        NETWORKS[0]()(torch.randn(8, 1, 16, 16), torch.arange(8)).sum().backward()
    assert list(made.types) == [torch.bfloat16]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]] = {
    "convolution": (
        lambda: base.Conv2d(6, 8, 3, stride=2, padding=1),
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        (4, 6, 10, 10),
    ),
    "linear": (lambda: base.Linear(24, 16), F.linear, (4, 5, 24)),
    "twice the size": (
        lambda: base.UpsampleConv(6, 8),
        lambda x, w, b: F.conv2d(base.upsample2x(x), w, b, padding=1),
        (16, 6, 8, 8),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", REDUCED)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.usefixtures("slow")
def test_a_layer_is_the_exact_one_rounded_once(name: str, dtype: torch.dtype, whole: bool) -> None:
    """Against float64 on the same numbers, and so for its gradients; those of a float32 weight are not rounded."""
    torch.manual_seed(0)
    make, exact, shape = LAYERS[name]
    layer: Any = make()
    for p in layer.parameters():
        p.data = p.to(dtype).to(dtype if whole else torch.float32)  # rounded already
    x = torch.randn(shape).to(dtype).requires_grad_()
    given = [part.detach().double().requires_grad_() for part in (x, layer.weight, layer.bias)]
    with torch.autocast("cpu", dtype, enabled=not whole):
        found = layer(x)
    expected = exact(*given)
    once = torch.finfo(dtype).eps / 2
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * once, atol=1e-5)
    slope = torch.randn(expected.shape).to(dtype)
    slopes = torch.autograd.grad(found, [x, layer.weight, layer.bias], slope)
    bounds = [once, *2 * [once if whole else 1e-6]]
    rest = 2e-4  # of sums of 4,096 products in float32; rounding them to float16 would err by 0.02
    for ours, truth, bound in zip(slopes, torch.autograd.grad(expected, given, slope.double()), bounds, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1.01 * bound, atol=rest)


@pytest.mark.usefixtures("slow")
def test_float64_is_left_alone_as_autocast_does() -> None:
    made = Made()
    with made, torch.autocast("cpu", torch.bfloat16):
        assert base.Conv2d(2, 2, 3).double()(torch.randn(1, 2, 4, 4).double()).dtype == torch.float64
    assert list(made.types) == [torch.float64]


@pytest.mark.parametrize("tokens", [16, 1025])
@pytest.mark.usefixtures("slow")
def test_attention_is_the_exact_one_rounded_once(tokens: int) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, tokens, 8, generator=draw).bfloat16() for _ in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(base.attend(q, k, v).double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("able", "reduced"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False, "amx_fp16": False}, []),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True, "amx_fp16": False}, [torch.bfloat16]),
        ({"cpu_name": "Intel Xeon 6", "avx512_bf16": True, "amx_bf16": True, "amx_fp16": True}, REDUCED),
        ({"cpu_name": "AMD EPYC 9B14", "avx512_bf16": True, "amx_bf16": False, "amx_fp16": False}, [torch.bfloat16]),
        ({"cpu_name": "AMD EPYC 7B13", "avx512_bf16": False, "amx_bf16": False, "amx_fp16": False}, []),
        ({"architecture": "arm64", "bf16": True}, [torch.bfloat16]),
        ({"architecture": "arm64", "bf16": False}, []),
        ({"architecture": "ppc64"}, []),
    ],
)
def test_fast_types_by_processor(able: dict[str, Any], reduced: list[torch.dtype]) -> None:
    assert matmuls.fast_types(able) == {torch.float32, torch.float64, *reduced}


def test_what_this_processor_says_of_itself_is_understood() -> None:
    """A key that PyTorch renames would leave every processor slow in silence."""
    able = torch.cpu.get_capabilities()
    if able["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16", "amx_fp16", "cpu_name"} <= set(able)
    else:
        assert "bf16" in able
