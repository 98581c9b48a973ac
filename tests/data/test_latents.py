"""Latents that are computed once: the same training as on the images, whatever the images and the first stage are."""

import os
import subprocess
import sys
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Arrays, Digits, DigitScenes, Latents
from diffusion_lightning.data.base import Images
from diffusion_lightning.first_stages import FirstStage, PixelSpace, Pretrained
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.networks.base.moments import Moments
from diffusion_lightning.schedules import Cosine

from ..conftest import BARE, put, small_config
from ..support.first_stages import autoencoder
from ..support.groups import ranks

tried = pytest.mark.tried("The cache")


class Halves(FirstStage):
    """Latents of 2 channels and half the size, not symmetric in x, whose variance depends on the image."""

    def __init__(self, variance: bool = True, measured: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2, 2).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        self.conv.weight.data = torch.randn(4, 1, 2, 2, generator=generator)
        self.conv.bias.data.zero_()  # type: ignore[union-attr]
        self.variance, self.encoded = variance, 0

    def latent_shape(self, shape: Any) -> tuple[int, int, int]:
        if shape[0] != 1:
            raise ValueError("halves are of one channel")
        return 2, shape[1] // 2, shape[2] // 2

    def image_shape(self, shape: Any) -> tuple[int, int, int]:
        return 1, shape[1] * 2, shape[2] * 2

    def moments(self, image: Tensor) -> Moments:
        self.encoded += len(image)
        mean, log_var = self.conv(image).chunk(2, 1)
        return Moments(mean, log_var if self.variance else None)

    def scaled(self, raw: Tensor) -> Tensor:
        return raw / 2

    def decode(self, z: Tensor) -> Tensor:
        return z.mean(1, keepdim=True).repeat_interleave(2, 2).repeat_interleave(2, 3).clamp(-1, 1)


def vae(folder: Path, seed: int = 0) -> str:
    """A folder with an autoencoder of factor 2 and random weights."""
    autoencoder(folder, seed=seed)
    return str(folder)


class Losses(Callback):
    """Each example's loss, of every step and of the validation."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.found.append(outputs["losses"].clone())

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.found.append(outputs["losses"].clone())


def trained(data: LightningDataModule, stage: FirstStage, channels: int = 2, steps: int = 4) -> Tensor:
    """The losses of the training and of a validation, one after the other."""
    torch.manual_seed(0)
    network = UNet(
        in_channels=channels,
        size=4 if stage.latent else 8,
        channels=8,
        multipliers=(1,),
        blocks=1,
        attention=(),
        groups=4,
    )
    module = Diffusion(network, Cosine(12), (1, 8, 8), first_stage=stage)
    losses = Losses()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, accumulate_grad_batches=2, callbacks=[losses],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
    return torch.cat(losses.found)


def digits(flip: bool = True, batch_size: int = 300, **more: Any) -> Digits:
    """Two steps an epoch, of two batches each."""
    return Digits(batch_size=batch_size, flip=flip, seed=3, **more)


@pytest.mark.parametrize(("flip", "variance"), [(True, True), (False, False)], ids=["flipped Gaussians", "means"])
def test_a_run_is_the_same_as_on_the_images(own_cache: Path, flip: bool, variance: bool) -> None:
    """Over two epochs, step by step; and the encoder ran once for each image and mirror."""
    stage = Halves(variance)
    cached = trained(Latents(digits(flip)), stage)
    assert stage.encoded == 1501 * (1 + flip) + 298  # and an image each for the shape
    torch.testing.assert_close(cached, trained(digits(flip), Halves(variance)), rtol=1e-5, atol=1e-5)


def test_moments_in_float16_take_half_and_are_near(own_cache: Path) -> None:
    whole, half = (Latents(digits(), Halves(), precision) for precision in ("float32", "float16"))
    for one in (whole, half):
        one.setup("fit")
    torch.testing.assert_close(whole.moments()[:], half.moments()[:], rtol=1e-3, atol=1e-3)
    assert not torch.equal(whole.moments()[:].mean, half.moments()[:].mean)
    assert half.train_dataloader().dataset[0, torch.arange(4)][0].mean.dtype == torch.float16
    sizes = sorted(x.stat().st_size for x in own_cache.glob("latents/*.rows"))
    assert sizes == [297 * 64 * 2, 297 * 64 * 4, 3000 * 64 * 2, 3000 * 64 * 4]


class Watched(Halves):
    """Keeps the means that it is given and the latents that it makes of them in training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Moments, Tensor]] = []

    def encode(self, image: Any, draw: Any) -> Tensor:
        z = super().encode(image, draw)
        if draw.purpose == "training":
            self.seen.append((image, z))
        return z


@tried
def test_fault_9_cached_latents_are_no_one_posterior_sample(own_cache: Path) -> None:
    """An image is another sample of its own distribution in each epoch, and no step has the noise of another."""
    stage = Watched()
    trained(Latents(digits(flip=False)), stage)
    noise: dict[tuple[float, ...], list[Tensor]] = {}
    batches: list[Tensor] = []
    for moments, z in stage.seen:
        assert moments.log_var is not None
        batches.append((z * 2 - moments.mean) / (moments.log_var / 2).exp())
        for mean, drawn in zip(moments.mean, batches[-1], strict=True):
            noise.setdefault(tuple(mean.flatten().tolist()), []).append(drawn)
    twice = [both for both in noise.values() if len(both) == 2]
    assert len(twice) > 500
    first, second = (torch.stack(epoch).flatten() for epoch in zip(*twice, strict=True))
    n = len(first) ** 0.5
    for one in (first, second):
        assert abs(float(one.mean())) < 4 / n
        assert abs(float(one.var()) - 1) < 4 * 2**0.5 / n
    assert abs(float((first * second).mean())) < 4 / n
    for one, other in combinations(batches, 2):
        assert abs(float((one * other).mean())) < 5 / one.numel() ** 0.5


@tried
def test_fault_10_cached_latents_are_of_no_one_flip(own_cache: Path) -> None:
    """About half of the images change sides between two epochs, and are then latents of mirrored pixels."""
    stage = Halves()
    data, source = Latents(digits(batch_size=1500), stage), digits(batch_size=1500)
    for one in (data, source):
        one.setup("fit")
    seen = []
    for epoch in range(2):
        indices = epoch, torch.arange(1500)
        (moments, y), (pixels, labels) = (x.train_dataloader().dataset[indices] for x in (data, source))
        expected = stage.moments(source.scaled(pixels))
        torch.testing.assert_close(moments, expected)
        assert torch.equal(y, labels)
        seen.append(moments.mean)
    assert 600 < (seen[0] != seen[1]).flatten(1).any(1).sum() < 900


@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_and_the_batches_are_the_sources(own_cache: Path, workers: int) -> None:
    data, source, stage = Latents(digits(num_workers=workers), Halves(), max_memory_gib=0), digits(), Halves()
    for one in (data, source):
        one.setup("fit")
    for name in ("train_dataloader", "val_dataloader"):
        ours, theirs = list(getattr(data, name)()), list(getattr(source, name)())
        assert len(ours) == len(theirs) > 0
        for (moments, y), (pixels, labels) in zip(ours, theirs, strict=True):
            assert torch.equal(y, labels)
            torch.testing.assert_close(moments, stage.moments(source.scaled(pixels)), rtol=1e-5, atol=1e-5)


def test_whatever_else_is_asked_is_the_sources(own_cache: Path) -> None:
    source = DigitScenes(64, batch_size=8)
    data = Latents(source, Halves())
    data.setup("fit")
    for name in ("shape", "levels", "captions", "splits", "batch_size", "flip", "num_workers", "seed", "may_download"):
        assert getattr(data, name) is getattr(source, name), name
    assert data.reference("train").digest() == source.reference("train").digest()
    assert data.captions_of("val") == source.captions_of("val")
    assert data.conditions_of("val") == source.conditions_of("val")
    assert data.index(3, 2) == source.index(3, 2)
    assert not hasattr(data, "class_names")
    data.may_download = False
    assert source.may_download is False
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch[1] == [source.captions[i] for i in next(iter(data.train_dataloader()))[1].tolist()]  # type: ignore[index]
    moments = data.moments("train")
    assert len(moments) == len(source.reference("train"))
    torch.testing.assert_close(moments[3:7], data.first_stage.moments(source.reference("train")[3:7]))  # type: ignore[union-attr]


def test_the_scale_is_measured_without_encoding_again(own_cache: Path, tmp_path: Path) -> None:
    """And is that of the images: flips do not count."""
    found = []
    for cached in (True, False):
        stage = Pretrained(vae(tmp_path / "vae"), scale="measure")
        losses = trained(Latents(digits()) if cached else digits(), stage, channels=4, steps=1)
        found.append((losses, stage.scale, stage.shift))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# The key


def computed(own_cache: Path, data: Latents) -> int:
    """How many files of latents data add to the cache."""
    before = len(list(own_cache.glob("latents/*.rows")))
    data.setup("test")
    return len(list(own_cache.glob("latents/*.rows"))) - before


class Others(Digits):
    """One pixel of one image differs."""

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        images, y = super().read(split)
        images = images.clone()
        images[0, 0, 0, 0] += 1
        return images, y


@tried
def test_latents_of_other_images_or_another_first_stage_are_computed_anew(own_cache: Path, tmp_path: Path) -> None:
    first, second = vae(tmp_path / "a"), vae(tmp_path / "b", 1)
    of: Any = Pretrained
    assert computed(own_cache, Latents(Digits(), of(first))) == 1
    for same in (of(first, slices=3), of(first, scale="measure"), of(vae(tmp_path / "copy"))):
        assert computed(own_cache, Latents(Digits(), same)) == 0
    assert computed(own_cache, Latents(Digits(seed=1, flip=True, batch_size=7), of(first))) == 0  # one mirror
    assert computed(own_cache, Latents(Others(), of(first))) == 1
    assert computed(own_cache, Latents(Digits(), of(second))) == 1
    assert computed(own_cache, Latents(Digits(), of(first, pixels=(0, 1), scale="measure"))) == 1
    assert computed(own_cache, Latents(Digits(), of(first), precision="float16")) == 1
    changed = Halves()
    assert computed(own_cache, Latents(Digits(), changed)) == 1
    changed.conv.weight.data[0, 0, 0, 0] += 1
    assert computed(own_cache, Latents(Digits(), changed)) == 1


# What is refused


class Loaders(LightningDataModule):
    """A user's own, without splits."""


@tried
def test_what_has_no_latents_is_refused_in_a_sentence(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the source of Latents is a Loaders, but .* derive yours from"):
        Latents(Loaders())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the source of Latents is a Latents"):
        Latents(Latents(Digits()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PixelSpace leaves them pixels: .* or take Digits itself"):
        Latents(Digits(), PixelSpace())
    with pytest.raises(ValueError, match="precision is bfloat16, but latents are kept in float32 or float16: give one"):
        Latents(Digits(), precision="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the seed of Latents is 1, but that of its source is 3: give one"):
        Latents(digits(), seed=1)
    assert Latents(Digits(), seed=5).seed == 5
    with pytest.raises(ValueError, match="Latents have no first stage, and there is no model with one"):
        Latents(Digits()).setup("fit")
    with pytest.raises(ValueError, match="halves are of one channel"):
        Latents(of_colours(tmp_path), Halves()).setup("fit")


def of_colours(folder: Path) -> Images:
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(folder / "set.npz", images=images)
    return Arrays(folder / "set.npz", batch_size=4)


@tried
def test_another_first_stage_than_the_models_is_refused(own_cache: Path, tmp_path: Path) -> None:
    one, two = (Pretrained(vae(tmp_path / str(seed), seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match=f"of the data is {one.key()}, but that of the model is {two.key()}: leave"):
        trained(Latents(digits(), one), two, channels=4)
    with pytest.raises(ValueError, match="PixelSpace leaves them pixels"):
        trained(Latents(digits(), one), PixelSpace(), channels=1)


class Overflowing(Halves):
    """Passes the largest number of float16 in one image."""

    def moments(self, image: Tensor) -> Moments:
        mean, log_var = super().moments(image)
        return Moments(mean + 1e5 * (image.sum((1, 2, 3), keepdim=True) == image.sum((1, 2, 3)).max()).float(), log_var)


@tried
def test_latents_that_overflow_are_found_and_named(own_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"the latent of image \d+ of the train images is not finite in float16: give"):
        Latents(digits(), Overflowing(), precision="float16").setup("fit")
    assert not list(own_cache.glob("latents/*.rows"))


# Several ranks, and the command


def test_ranks_of_other_images_are_refused_before_any_is_encoded(own_cache: Path) -> None:
    def work(rank: int) -> None:
        Latents(Others() if rank else Digits(), Halves()).setup("test")

    assert all("have different images or first stages" in str(words) for _, words in ranks(work))


def with_latents(folder: Path, cached: bool = True) -> Path:
    """The small config over latents of digits, by the model's own first stage."""
    path = small_config(folder)
    config = yaml.safe_load(path.read_text())
    source = config["data"]
    put(source, "init_args.flip", True)
    if cached:
        config["data"] = {"class_path": "Latents", "init_args": {"source": source}}
    network = config["model"]["init_args"]["network"]["init_args"]
    network.update(in_channels=4, size=4, multipliers=[1, 2])
    stage = {"class_path": "Pretrained", "init_args": {"model": vae(folder / "vae")}}
    config["model"]["init_args"]["first_stage"] = stage
    config["checkpoint"]["monitor"] = None
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_latents_from_fit_to_predict_and_resumed(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = str(with_latents(tmp_path)), tmp_path / "run"
    bare = [*BARE, "--trainer.logger", "false"]
    main(["fit", "--config", config, "--trainer.max_steps", "3", *bare])
    last = root / "checkpoints/last.ckpt"
    main(["fit", "--config", config, "--ckpt_path", "last", *bare])
    resumed = read(last)
    assert resumed["global_step"] == 6
    one = [*bare, "--trainer.default_root_dir", str(tmp_path / "one")]
    main(["fit", "--config", config, *one])
    for name, x in read(tmp_path / "one/checkpoints/last.ckpt")["state_dict"].items():
        assert torch.equal(x, resumed["state_dict"][name]), name
    assert len(list(own_cache.glob("latents/*.rows"))) == 2
    main(["validate", "--ckpt_path", str(last), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"])
    assert len(list(own_cache.glob("latents/*.rows"))) == 2  # the stage in the run's folder is the same
    main(["predict", "--ckpt_path", str(last), "--n", "2", "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--ckpt_path", "last", "--data.init_args.source.init_args.batch_size", "16"])
    assert "from 32 images a step" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_on_latents_as_one_does_and_as_the_images_do(own_cache: Path, tmp_path: Path) -> None:
    """One with batch 32, and DDP of two with 16; the two compute the latents together."""
    config = str(with_latents(tmp_path))
    bare = [*BARE, "--trainer.logger", "false"]

    def weights(name: str, *more: str) -> dict[str, Tensor]:
        words = ["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path / name), *bare, *more]
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *words], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return read(tmp_path / name / "checkpoints/last.ckpt")["state_dict"]

    size = "--data.init_args.source.init_args.batch_size"
    two = weights("two", size, "16", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert len(list(own_cache.glob("latents/*"))) == 4
    one = weights("one")
    config = str(with_latents(tmp_path, cached=False))
    images = weights("images")
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(images[name], x, rtol=1e-4, atol=1e-5, msg=name)


def test_the_models_shape_is_that_of_the_source_where_none_is_stated(own_cache: Path, tmp_path: Path) -> None:
    from diffusion_lightning.cli.fit import described

    path = with_latents(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["network"] = {"class_path": "torch.nn.Identity"}
    path.write_text(yaml.safe_dump(config))
    assert yaml.safe_load(described(["--config", str(path)]))["model"]["init_args"]["shape"] == [1, 8, 8]
