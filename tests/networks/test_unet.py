"""The U-Net of DDPM: its size, its start, its refusals."""

from typing import Any

import pytest
import torch

from diffusion_lightning.networks import UNet
from diffusion_lightning.networks.embeddings import sinusoidal

from ..conftest import tiny_unet


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameters_of_the_papers_networks() -> None:
    with torch.device("meta"):
        assert parameters(UNet()) == 35_746_307
        assert parameters(UNet(size=256, multipliers=(1, 1, 2, 2, 4, 4))) == 113_673_219
        iddpm: dict[str, Any] = {
            "blocks": 3,
            "attention": (16, 8),
            "out_channels": 6,
            "scale_shift": True,
            "release": "IDDPM",
        }
        assert parameters(UNet(heads=4, **iddpm)) == 52_546_438
        imagenet64 = {**iddpm, "size": 64, "multipliers": (1, 2, 3, 4)}
        assert parameters(UNet(heads=4, **imagenet64)) == 121_063_942
        adm = {**imagenet64, "channels": 192, "attention": (32, 16, 8), "head_channels": 64, "resample_blocks": True}
        assert parameters(UNet(**adm)) == 295_904_454 - 1000 * 768  # its table of classes is the conditioner's


def test_starts_near_zero_but_not_dead() -> None:
    network = tiny_unet().eval()
    x, t = torch.randn(8, 1, 8, 8), torch.randint(0, 1000, (8,))
    output = network(x, t)
    assert output.shape == x.shape
    assert output.abs().max() < 1e-3
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_depends_on_the_time_and_the_condition() -> None:
    network = tiny_unet().eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 1, 8, 8)
    here, there = network(x, torch.tensor([0, 0])), network(x, torch.tensor([0, 500]))
    torch.testing.assert_close(here[0], there[0])
    assert not torch.allclose(here[1], there[1])
    assert not torch.allclose(network(x, torch.tensor([0, 0]), torch.ones(2, 32)), here)


def test_the_embedding_tells_every_time_apart_even_under_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = sinusoidal(torch.arange(1000), 128)
    assert embedding.dtype == torch.float32
    assert len(embedding.unique(dim=0)) == 1000
    half = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(64) / 63)
    torch.testing.assert_close(embedding[7], torch.cat([torch.sin(7 * half), torch.cos(7 * half)]))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"size": 10, "multipliers": (1, 2, 2)}, "halve the image 2 times, which 10 pixels do not allow"),
        ({"channels": 100}, "100 features cannot be normalised in 32 groups"),
        ({"release": "ADM"}, "release is ADM, but only DDPM and IDDPM have released code"),
        ({"heads": 3}, "attention over 256 features cannot be split among 3 heads"),
        ({"head_channels": 48}, "attention over 256 features cannot be split among heads of 48"),
        ({"attention": (5,)}, r"attention is set at 5 pixels, but the U-Net's levels are at \[32, 16, 8, 4\]"),
    ],
)
def test_impossible_networks_are_refused(kwargs: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UNet(**kwargs)


@pytest.mark.parametrize(
    ("shape", "says"), [((3, 8, 8), "of 1 channels, but these have 3"), ((1, 7, 8), "which 7×8 pixels do not allow")]
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny_unet()(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long))


def test_iddpm_starts_at_zero_and_as_pytorch_does() -> None:
    """Blocks begin as the identity, the net as zero; what draws is nn.Conv2d's and nn.Linear's default."""
    network = UNet(3, 16, 32, (1, 2), 1, (8,), 0.0, 8, heads=4, scale_shift=True, release="IDDPM")
    block: Any = network.down[0]
    x, time = torch.randn(2, 32, 16, 16), torch.randn(2, 64, 1, 1)
    assert torch.equal(block(x, time), x)
    assert not network(torch.randn(2, 3, 16, 16), torch.tensor([0, 9])).any()
    bound = (32 * 9) ** -0.5
    assert 0.97 * bound < block.conv1.weight.abs().max() <= bound
    assert block.conv1.bias.abs().max() > 0


@pytest.mark.parametrize("resize", [0.5, 2.0])
def test_residual_resampling_averages_and_repeats(resize: float) -> None:
    """At its start a residual block that resizes is the plain average, or repetition, of its input."""
    network = UNet(3, 16, 32, (1, 2), 1, (), 0.0, 8, resample_blocks=True, release="IDDPM")
    block: Any = next(m for m in network.modules() if getattr(m, "resize", 1.0) == resize)
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    blocks = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    expected = blocks if resize < 1 else x[:, :, torch.arange(16) // 2][:, :, :, torch.arange(16) // 2]
    torch.testing.assert_close(block(x, torch.randn(2, block.time_channels, 1, 1)), expected)


def test_a_folded_u_net_is_that_of_smaller_images_with_more_channels() -> None:
    torch.manual_seed(0)
    folded = UNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), groups=4, dropout=0.0, patch=2)
    plain = UNet(4, 4, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), groups=4, dropout=0.0)
    for p in folded.parameters():
        torch.nn.init.normal_(p, std=0.2)
    plain.load_state_dict(folded.state_dict())
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 9])
    small = x.unfold(2, 2, 2).unfold(3, 2, 2)[:, 0].flatten(3).permute(0, 3, 1, 2)  # (3, 4, 4, 4)
    found, expected = folded(x, t), plain(small, t)
    assert found.shape == x.shape
    for k in range(4):
        assert torch.equal(found[:, 0, k // 2 :: 2, k % 2 :: 2], expected[:, k])


def test_a_patch_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="folds squares of 3 pixels, which 8 pixels do not allow"):
        UNet(1, 8, channels=8, multipliers=(1,), attention=(), groups=4, patch=3)
    with pytest.raises(ValueError, match="sizes divisible by 4"):
        UNet(1, 8, channels=8, multipliers=(1, 2), attention=(), groups=4, patch=2)(
            torch.zeros(1, 1, 6, 6), torch.zeros(1)
        )
