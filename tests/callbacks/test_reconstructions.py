"""Reconstructions after a validation: their figures against the images themselves, and their picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from diffusion_lightning import images
from diffusion_lightning.callbacks import Reconstructions
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.modules import Autoencoder, Diffusion
from diffusion_lightning.networks import PlainAutoencoder
from diffusion_lightning.schedules import Cosine

from ..conftest import tiny_unet


def validated(folder: Path, model: Any, callback: Reconstructions, test: bool = False, **options: Any) -> Trainer:
    options = {"accelerator": "cpu", "devices": 1, **options}
    if options["devices"] > 1:
        torch.set_num_threads(1)  # a fork has no more of this process's, and would wait for them
    trainer = Trainer(default_root_dir=folder, logger=False, callbacks=[callback], enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False, **options)  # fmt: skip
    verb = trainer.test if test else trainer.validate
    verb(model, datamodule=Digits(batch_size=64), verbose=False)
    return trainer


def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(PlainAutoencoder(1, 8, 4, 1, 2, 1, variational=False))


def held_out(split: str = "val") -> Tensor:
    data = Digits()
    data.setup("test")
    return images.from_uint8(images.to_uint8(data.reference(split)[:]))


def test_its_figures_are_those_of_all_held_out_images(tmp_path: Path) -> None:
    module, callback = model(), Reconstructions(5, DigitsNet())
    found = validated(tmp_path, module, callback).callback_metrics
    x = held_out()
    made = module.reconstruct(x)
    with torch.no_grad():
        z = module.encode(x).mean.double()
    psnr = torch.stack([PeakSignalNoiseRatio(data_range=2.0)(a, b) for a, b in zip(made, x, strict=True)]).mean()
    ssim = StructuralSimilarityIndexMeasure(data_range=2.0)(made, x)
    distance = FrechetDistance(DigitsNet())
    distance.update(images.to_uint8(x), real=True)
    distance.update(images.to_uint8(made), real=False)
    wanted = {"psnr": psnr, "ssim": ssim, "rfd_digits": distance.compute()}
    for k in range(2):
        wanted |= {f"latent_mean_{k}": z[:, k].mean(), f"latent_std_{k}": z[:, k].std(correction=0)}
    for name, value in wanted.items():
        assert float(found[f"val/{name}"]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("test", [False, True], ids=["validate", "test"])
def test_its_picture_is_of_images_beside_their_reconstructions(tmp_path: Path, test: bool) -> None:
    module = model()
    trainer = validated(tmp_path, module, Reconstructions(3), test)
    sheet = np.asarray(Image.open(tmp_path / "reconstructions/step=0.png"))
    x = held_out("test" if test else "val")[:3]
    pairs = torch.stack([x, module.reconstruct(x)], 1).flatten(0, 1)
    wanted = images.grid(images.to_uint8(pairs), columns=4).squeeze(-1).numpy()
    assert sheet.shape == wanted.shape
    assert np.abs(sheet.astype(int) - wanted).max() <= 1
    assert f"{'test' if test else 'val'}/psnr" in trainer.callback_metrics


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_two_processes_see_what_one_does(tmp_path: Path) -> None:
    found = [
        validated(tmp_path / str(n), model(), Reconstructions(70, DigitsNet()), devices=n,
                  strategy="auto" if n == 1 else "ddp_fork", use_distributed_sampler=False)
        for n in (1, 2)
    ]  # fmt: skip
    one, two = (trainer.callback_metrics for trainer in found)
    assert {name for name in one if name != "step"} <= set(two)
    for name, value in one.items():
        assert float(two[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    pictures = [(tmp_path / f"{n}/reconstructions/step=0.png").read_bytes() for n in (1, 2)]
    assert pictures[0] == pictures[1]


def test_an_image_without_an_error_has_a_finite_psnr() -> None:
    from diffusion_lightning.callbacks.reconstructions import psnr

    x = torch.rand(2, 1, 4, 4)
    assert psnr(x, x).isfinite().all()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shows nothing"):
        Reconstructions(0)
    with pytest.raises(ValueError, match="but Diffusion does not: leave"):
        validated(tmp_path, Diffusion(tiny_unet(), Cosine(8)), Reconstructions())

    class Wide(DigitsNet):
        num_features = 5000

    with pytest.raises(ValueError, match="has 5000 features, but only"):
        validated(tmp_path, model(), Reconstructions(4, Wide()))
