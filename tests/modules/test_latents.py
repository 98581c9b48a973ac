"""A model over latents: what it trains on, what it samples, what of it is kept, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from diffusion_lightning.first_stages import PixelSpace, Pretrained
from diffusion_lightning.guidance import AutoGuidance, ClassifierGuided
from diffusion_lightning.likelihood import VLB
from diffusion_lightning.modules import Diffusion, NoisyClassifier
from diffusion_lightning.networks import HalfUNet, UNet
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM, Ancestral
from diffusion_lightning.schedules import Cosine

from ..conftest import tiny_unet
from ..support.first_stages import autoencoder, pictures, watched

SCALE = 0.9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stage") / "vae"
    autoencoder(path, scaling_factor=SCALE)
    return str(path)


def unet(channels: int = 4, size: int = 4) -> UNet:
    return UNet(
        in_channels=channels, size=size, channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, dropout=0.0
    )


def model(folder: str, **given: Any) -> Diffusion:
    torch.manual_seed(0)
    made = Diffusion(unet(), Cosine(12), **{"first_stage": Pretrained(folder), **given})
    for p in made.denoiser.network.parameters():
        nn.init.normal_(p, std=0.1)
    return made


def vae(made: Diffusion) -> Any:
    stage: Any = made.first_stage
    return stage.frozen.network


def trainer(**given: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{"max_steps": 2, **quiet, **given})


def loader(n: int = 16) -> DataLoader:
    return DataLoader([(image, 0) for image in pictures(n)], batch_size=8)  # type: ignore[arg-type]


def test_images_are_the_stages_and_latents_the_networks(folder: str) -> None:
    made = model(folder)
    assert (made.shape, made.latent_shape) == ((1, 8, 8), (4, 4, 4))
    pixels = Diffusion(tiny_unet(), Cosine(12))
    assert pixels.shape == pixels.latent_shape == (1, 8, 8)


def test_a_step_trains_on_the_scaled_draw(folder: str) -> None:
    """The loss of an independent computation: E of |ε - ε_θ|² at x_t of latents by diffusers' own numbers."""
    made = model(folder)
    image, sample = pictures(6), torch.arange(6)
    draw = Draw(made.seed, "training", 0, sample)
    posterior = vae(made).encode(image).latent_dist
    x_0 = SCALE * (posterior.mean + posterior.std * draw.normal("latent", posterior.mean))
    t = torch.full((6,), 5)
    expected = made._losses(x_0, t, draw)
    torch.testing.assert_close(made._losses(made.first_stage.encode(image, draw), t, draw), expected)
    eps = draw.normal("eps", x_0)
    predicted = made.denoiser(made.schedule.q_sample(x_0, t, eps), t).eps
    torch.testing.assert_close(expected, (predicted - eps).square().flatten(1).mean(1))


def test_samples_are_decoded_and_their_way_is_unclipped(folder: str) -> None:
    made = model(folder).eval()
    image, z = watched(made, DDIM(4, clip=None), 3)
    assert list(image.shape) == [3, 1, 8, 8]
    assert list(z.shape) == [3, 4, 4, 4]
    assert z.abs().max() > 1
    network = vae(made)
    torch.testing.assert_close(image, network.decode(z / SCALE).sample.clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert made.own_sampler().clip is None
    assert torch.equal(made.generate(3, Ancestral(clip=None)), made.generate(3))
    assert made.decoded(z).shape == image.shape


def test_what_is_frozen_is_in_no_state(folder: str) -> None:
    made = model(folder)
    assert sum(p.numel() for p in vae(made).parameters()) > 1000
    kept = {name for name in made.state_dict() if name.startswith("first_stage")}
    assert kept == {"first_stage.scale", "first_stage.shift"}
    assert not [name for name, _ in made.named_parameters() if "first_stage" in name]


def test_a_copy_of_a_model_shares_what_never_changes(folder: str) -> None:
    made = model(folder)
    image = made.generate(2)
    again = copy.deepcopy(made)
    assert vae(again) is vae(made)
    assert torch.equal(again.generate(2), image)


def test_a_training_leaves_the_stage_as_it_was(folder: str) -> None:
    made = model(folder)
    network = vae(made)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    trainer().fit(made, loader())
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not network.training


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
def test_a_latent_model_trains_in_every_precision(folder: str, precision: Any) -> None:
    """The stage computes in its own, and its scale stays exact."""
    made = model(folder)
    losses: list[float] = []
    step = made.training_step
    made.training_step = lambda *given: (found := step(*given), losses.append(float(found["loss"].detach())))[0]  # type: ignore
    trainer(precision=precision, num_sanity_val_steps=1, limit_val_batches=1).fit(made, loader(), loader())
    assert len(losses) == 2
    assert all(0.1 < loss < 10 for loss in losses)
    stage: Any = made.first_stage
    assert stage.scale.dtype == torch.float64
    assert float(stage.scale) == SCALE
    assert next(stage.frozen.network.parameters()).dtype == torch.float32
    image = made.generate(2, DDIM(2, clip=None))
    assert image.isfinite().all()
    assert image.dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_bits_per_dim_are_not_measured_of_latents(folder: str) -> None:
    made = model(folder)
    (found,) = trainer().test(made, loader(), verbose=False)
    assert set(found) == {"test/loss", "step"}
    assert getattr(made, "bound", None) is None


class Pictures(LightningDataModule):
    """Images of a seed, whose `reference` is all of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.images = pictures(100, seed=seed)

    def reference(self, split: str) -> torch.Tensor:
        assert split == "train"
        return self.images

    def train_dataloader(self) -> DataLoader:
        return DataLoader([(image, 0) for image in self.images], batch_size=8)  # type: ignore[arg-type]


def test_a_scale_is_measured_once_and_stays_with_the_weights(folder: str, tmp_path: Path) -> None:
    """A run that goes on with other data has the scale that its weights were trained for."""
    made, data = model(folder, first_stage=Pretrained(folder, "measure")), Pictures(1)
    run = trainer(default_root_dir=tmp_path)
    run.fit(made, datamodule=data)
    stage: Any = made.first_stage
    posterior = stage.frozen.network.encode(data.images).latent_dist
    mean = posterior.mean.double()
    std = (mean.var((0, 2, 3), correction=0) + posterior.var.double().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(stage.scale.flatten(), 1 / std, rtol=1e-6, atol=0)
    torch.testing.assert_close(stage.shift.flatten(), mean.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = model(folder, first_stage=Pretrained(folder, "measure"))
    trainer(max_steps=4).fit(again, datamodule=Pictures(2), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    kept: Any = again.first_stage
    assert torch.equal(kept.scale, stage.scale)
    assert torch.equal(kept.shift, stage.shift)
    assert again.steps_done == 4


def test_a_scale_is_not_measured_on_what_is_not_there(folder: str) -> None:
    made = model(folder, first_stage=Pretrained(folder, "measure"))
    with pytest.raises(ValueError, match=r"the data have no `reference` of its images: give the scale"):
        trainer().fit(made, loader())


def test_two_models_of_other_latents_do_not_guide_each_other(folder: str, tmp_path: Path) -> None:
    made = model(folder)
    made.check(None, AutoGuidance(model(folder), 2.0))
    made.generate(1, DDIM(2, clip=None), guidance=AutoGuidance(model(folder), 2.0))
    autoencoder(tmp_path / "vae", scaling_factor=SCALE, seed=1)
    autoencoder(tmp_path / "wide", scaling_factor=SCALE, latent_channels=3)
    pixels = Diffusion(tiny_unet(), Cosine(12))
    wide = Diffusion(unet(3), Cosine(12), first_stage=Pretrained(str(tmp_path / "wide")))
    classifier = NoisyClassifier(
        HalfUNet(3, 1, 8, channels=8, multipliers=(1, 2), attention=(4,), groups=4), Cosine(12)
    )
    for guidance, says in (
        (AutoGuidance(model(str(tmp_path / "vae")), 2.0), "latents, but this model samples latents of another first"),
        (AutoGuidance(wide, 2.0), "latents, but this model samples latents of another first stage"),
        (AutoGuidance(pixels, 2.0), "a model that sees pixels, but this model samples latents"),
        (ClassifierGuided(classifier), "a model that sees pixels, but this model samples latents"),
    ):
        with pytest.raises(ValueError, match=says):
            made.check(None, guidance)
        with pytest.raises(ValueError, match=says):
            made.generate(1, DDIM(2, clip=None), guidance=guidance)
    with pytest.raises(ValueError, match="a model that sees latents, but this model samples pixels"):
        pixels.check(None, AutoGuidance(made, 2.0))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bits/dim": ({"vlb": VLB()}, "latents have no levels: leave vlb out"),
    "channels that are not the latent's": ({"network": unet(3)}, "latents of 3 channels, but those of .* have 4"),
    "channels beside a shape": (
        {"network": unet(3), "shape": (1, 8, 8)}, r"takes \[3, 4, 4\], but the first stage makes .* \[4, 4, 4\]",
    ),
    "a size that is not the latent's": (
        {"network": unet(4, 8), "shape": (1, 8, 8)}, r"takes \[4, 8, 8\], but the first stage makes",
    ),
    "images of another factor": ({"shape": (1, 7, 7)}, "sizes that are multiples of 2"),
    "images of other channels": ({"shape": (3, 8, 8)}, "takes 1 channels"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_fit_is_refused_when_it_is_made(folder: str, fault: str) -> None:
    given, says = REFUSED[fault]
    network = given.get("network", unet())
    with pytest.raises(ValueError, match=says):
        Diffusion(**{"network": network, "schedule": Cosine(12), "first_stage": Pretrained(folder), **given})


@pytest.mark.parametrize("sampler", [DDIM(4), Ancestral(4), DDIM(4, clip=3.0)])
def test_a_sampler_that_clips_latents_is_refused(folder: str, sampler: Any) -> None:
    made = model(folder)
    for ask in (lambda: made.check(sampler), lambda: made.generate(1, sampler)):
        with pytest.raises(ValueError, match=r"clips x_0 to ±[13], .* set the sampler's clip to null"):
            ask()


def test_a_model_without_a_stage_is_that_with_pixel_space() -> None:
    """The same draws, and the same samples to the bit."""
    torch.manual_seed(0)
    one = Diffusion(tiny_unet(), Cosine(12), (1, 8, 8))
    torch.manual_seed(0)
    other = Diffusion(tiny_unet(), Cosine(12), (1, 8, 8), first_stage=PixelSpace())
    for made in (one, other):
        trainer().fit(made, loader())
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())
    assert torch.equal(one.generate(2), other.generate(2))
