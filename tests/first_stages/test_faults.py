"""Faults that others had with first stages, each impossible here or refused, by its number in the list of them.

What a training of first stages could do wrong (6, 7, 8, 12) is in `modules/test_autoencoder.py`, what latents that are
kept could (9, 10) in `data/test_latents.py`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base import latents
from diffusion_lightning.networks import UNet
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Cosine

from ..support.first_stages import KINDS, autoencoder, pictures, watched

DRAW = Draw(0, "training", 0, torch.arange(4))


@pytest.mark.tried("Numbers, precision and words")
def test_fault_1_the_shift_is_applied_at_both_ends(tmp_path: Path) -> None:
    """Training's latents are sampling's: what is decoded is the very raw latent that was encoded."""
    theirs = autoencoder(tmp_path / "sd3", scaling_factor=1.5305, shift_factor=0.0609)
    stage = Pretrained(str(tmp_path / "sd3"))
    raw = theirs.encode(pictures(4)).latent_dist.mean
    torch.testing.assert_close(stage.scaled(raw), (raw - 0.0609) * 1.5305)
    expected = theirs.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(stage.decode(stage.scaled(raw)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"was published with 0\.0609: leave shift out"):
        Pretrained(str(tmp_path / "sd3"), scale=1.5305, shift=0.0)


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("kind", KINDS)
def test_fault_2_decoding_undoes_the_scale(kind: str, tmp_path: Path) -> None:
    """Through `generate` too, for every kind and not for Stable Diffusion's alone."""
    theirs = autoencoder(tmp_path / "stage", kind, scaling_factor=0.25)
    stage = Pretrained(str(tmp_path / "stage"))
    channels, size, _ = stage.latent_shape((1, 8, 8))
    network = UNet(in_channels=channels, size=size, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4)
    model = Diffusion(network, Cosine(12), first_stage=stage)
    image, z = watched(model, DDIM(3, clip=None), 2)
    expected = theirs.decode(z / 0.25).sample.clamp(-1, 1)
    torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize(("own", "others"), [(0.13025, 0.18215), (1.5305, 0.3611), (0.41407, 0.32)])
def test_fault_3_the_scale_of_another_stage_is_refused(own: float, others: float, tmp_path: Path) -> None:
    autoencoder(tmp_path / "vae", scaling_factor=own)
    for scale in (others, [others] * 4):
        with pytest.raises(ValueError, match=f"was published with {own}: leave scale out, or give scale: measure"):
            Pretrained(str(tmp_path / "vae"), scale)
    assert float(Pretrained(str(tmp_path / "vae")).scale) == own


@pytest.mark.tried("Several processes")
def test_fault_4_the_scale_is_that_of_all_ranks(tmp_path: Path) -> None:
    """Each rank reads its blocks and adds up the others' sums; the buffers stay those that a strategy has wrapped."""
    autoencoder(tmp_path / "vae")
    data = SimpleNamespace(reference=lambda split: pictures(200))

    def measured(world: int) -> list[Pretrained]:
        stages, sums = [Pretrained(str(tmp_path / "vae"), "measure") for _ in range(world)], list[Tensor]()
        for last in (False, True):  # first all ranks' sums are collected, then each gets their total

            def reduce(x: Tensor, reduce_op: str, last: bool = last) -> Tensor:
                assert reduce_op == "sum"
                if not last:
                    sums.append(x)
                return torch.stack(sums).sum(0) if last else torch.ones_like(x) * torch.tensor([[2.0], [1.0], [3.0]])

            for rank, stage in enumerate(stages):
                if last:
                    stage.scale.fill_(float("nan"))
                trainer = SimpleNamespace(datamodule=data, global_rank=rank, world_size=world,
                                          strategy=SimpleNamespace(reduce=reduce))  # fmt: skip
                before = stage.scale.data_ptr()
                latents.measure(SimpleNamespace(first_stage=stage, trainer=trainer, device=torch.device("cpu")))
                assert stage.scale.data_ptr() == before
        return stages

    (alone,) = measured(1)
    for world in (2, 3):
        for stage in measured(world):
            torch.testing.assert_close(stage.scale, alone.scale, rtol=1e-12, atol=0)
            torch.testing.assert_close(stage.shift, alone.shift, rtol=1e-12, atol=1e-12)


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize(("pixels", "low", "high"), [((-1.0, 1.0), -1.0, 1.0), ((0.0, 1.0), 0.0, 1.0)])
def test_fault_5_an_autoencoder_sees_the_pixels_that_it_takes(
    pixels: Any, low: float, high: float, tmp_path: Path
) -> None:
    """Images are in [-1, 1] everywhere but there, on the way in and on the way out."""
    autoencoder(tmp_path / "vae")
    stage, seen = Pretrained(str(tmp_path / "vae"), "measure", pixels=pixels), list[Tensor]()
    stage.frozen.network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    white_and_black = torch.tensor([-1.0, 1.0]).repeat(32).view(1, 1, 8, 8)
    stage.measure([white_and_black], lambda sums: sums)
    assert (float(seen[0].min()), float(seen[0].max())) == (low, high)
    raw = stage.moments(white_and_black).mean
    out = stage.frozen.network.decode(raw).sample
    expected = (out - low) * (2 / (high - low)) - 1
    torch.testing.assert_close(stage.decode(stage.scaled(raw)), expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"is for pixels in \[-1, 1\]: leave pixels out"):
        Pretrained(str(tmp_path / "vae"), pixels=(0.0, 1.0))


@pytest.mark.tried("Numbers, precision and words")
def test_fault_6_latents_of_any_size_have_unit_size_at_both_ends(tmp_path: Path) -> None:
    """Those of an autoencoder that next to nothing held near N(0, I), whose scale is measured."""
    theirs = autoencoder(tmp_path / "vae")
    with torch.no_grad():
        theirs.quant_conv.weight[:4] *= 50.0
        theirs.quant_conv.bias[:4] += 7.0
    theirs.save_pretrained(tmp_path / "vae")
    stage, images = Pretrained(str(tmp_path / "vae"), "measure"), pictures(64)
    stage.measure([images], lambda sums: sums)
    z = stage.scaled(stage.moments(images).mean)
    assert 0.5 < float(z.std(unbiased=False)) < 1.1
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    assert float(stage.moments(images).mean.std()) > 3
    model = Diffusion(UNet(in_channels=4, size=4, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4),
                      Cosine(12), first_stage=stage)  # fmt: skip
    image, made = watched(model, DDIM(3, clip=None), 2)
    raw = made / stage.scale.view(-1, 1, 1).float() + stage.shift.view(-1, 1, 1).float()
    torch.testing.assert_close(image, theirs.decode(raw).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.tried("Numbers, precision and words")
def test_fault_11_half_precision_that_overflows_is_refused(tmp_path: Path) -> None:
    """Where the autoencoder says that it overflows, before anything is read; elsewhere, before the first step."""
    autoencoder(tmp_path / "vae", force_upcast=True)
    with pytest.raises(ValueError, match=r"has force_upcast.*give bfloat16 or float32"):
        Pretrained(str(tmp_path / "vae"), precision="float16")
    autoencoder(tmp_path / "silent", force_upcast=False)
    stage = Pretrained(str(tmp_path / "silent"), precision="float16")
    for p in stage.frozen.network.parameters():
        nn.init.constant_(p, 1000.0)
    with pytest.raises(ValueError, match="the latents of the first batch are not finite"):
        stage.encode(pictures(4), DRAW)
    with pytest.raises(ValueError, match="decodes to what is not finite in float16"):
        stage.decode(torch.ones(1, 4, 4, 4))
