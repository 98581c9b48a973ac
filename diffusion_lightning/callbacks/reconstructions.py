"""What an autoencoder keeps of the images that it was not trained on, and what its latents look like."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from .. import images
from ..metrics import FrechetDistance
from ..modules.base.generative import generative
from .base import save_picture


class Reconstructions(Callback):
    """Saves `reconstructions/step=<n>.png` in the run's folder after every validation and `test`, and logs

    - `val/psnr` in dB and `val/ssim` of the reconstructions, means over the images (ITU-T J.340; Image quality
      assessment: from error visibility to structural similarity. Wang et al., 2004, equation 13);
    - `val/latent_mean_<channel>` and `val/latent_std_<channel>` of the latents' means: far from 0 and 1, a model of
      them needs `scale: measure`;
    - `val/rfid`, or `val/rfd_<name>` over another extractor's features, the Fréchet distance of the reconstructions
      to the very images.

    Over all validation images, on whatever number of devices. In the picture every image stands left of its
    reconstruction.

    Args:
        n: how many images are in the picture, the first of the validation.
        extractor: in whose features the distance is measured; None measures none.
        allow_few: allow no more images than features: see `FrechetDistance`.
    """

    def __init__(self, n: int = 16, extractor: nn.Module | None = None, allow_few: bool = False) -> None:
        if n < 1:
            raise ValueError(f"a picture of {n} reconstructions shows nothing: give n ≥ 1")
        self.n = n
        self.distance = None if extractor is None else FrechetDistance(extractor, allow_few)
        self._sums: Tensor | None = None  # of the images: their number, psnr, ssim, each channel's mean and mean square
        self._shown: tuple[Tensor, Tensor] | None = None  # (n, 2, C, H, W) pairs of bytes, and (n,) which are there

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not hasattr(module, "reconstruct"):
            raise ValueError(
                f"Reconstructions needs a module that reconstructs images, but {type(module).__name__} does not: leave "
                "reconstructions out, or train an Autoencoder"
            )
        data: Any = getattr(trainer, "datamodule", None)
        split = "test" if stage == "test" else "val"
        if self.distance is not None and split in getattr(data, "splits", {}):
            count = len(data.reference(split))
            self.distance.expect(count, count)

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._sums, self._shown = None, None
        if self.distance is not None:  # its sums are float64, which Apple's devices lack
            device = module.device if module.device.type != "mps" else torch.device("cpu")
            self.distance.reset()
            self.distance.reference = None
            self.distance.to(device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        image, made, latent = (outputs[name].float() for name in ("image", "reconstruction", "latent"))
        similarity: Any = ssim(made, image, data_range=2.0, reduction="none")
        each = torch.stack([psnr(image, made), similarity.view(-1)])
        exact = torch.float32 if module.device.type == "mps" else torch.float64
        first, second = (x.to(exact).mean((2, 3)).sum(0) for x in (latent, latent.square()))
        sums = torch.cat([each.new_tensor([len(image)]).to(exact), each.to(exact).sum(1), first, second])
        self._sums = sums if self._sums is None else self._sums + sums
        pairs = images.to_uint8(torch.stack([image, made], 1))  # (B, 2, C, H, W)
        if self._shown is None:
            self._shown = pairs.new_zeros(self.n, *pairs.shape[1:]), pairs.new_zeros(self.n)
        here = outputs["sample"] < self.n
        for kept, own in zip(self._shown, (pairs, torch.ones_like(pairs[:, 0, 0, 0, 0])), strict=True):
            kept[outputs["sample"][here]] = own[here]
        if self.distance is not None:
            for real in (True, False):
                one = pairs[:, 0 if real else 1].to(self.distance.device)
                self.distance.update(one, real, outputs["sample"].to(self.distance.device))

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule, stage: str = "val") -> None:
        if trainer.sanity_checking or self._sums is None or self._shown is None:
            return
        sums = _sum(trainer, self._sums)
        signal_to_noise, similarity, *latent = (sums[1:] / sums[0]).tolist()
        values = {"psnr": signal_to_noise, "ssim": similarity}
        half = len(latent) // 2
        for k, (first, second) in enumerate(zip(latent[:half], latent[half:], strict=True)):
            values |= {f"latent_mean_{k}": first, f"latent_std_{k}": max(second - first**2, 0.0) ** 0.5}
        if self.distance is not None:
            found = self.distance.compute()
            found = found if isinstance(found, dict) else {self.distance.name: found}
            values |= {f"r{name}": float(x) for name, x in found.items()}
        for name, value in values.items():
            module.log(f"{stage}/{name}", value, rank_zero_only=True)
        pairs, there = (_sum(trainer, x.float()) for x in self._shown)
        if trainer.is_global_zero:
            shown = pairs[there > 0].to(torch.uint8).flatten(0, 1).cpu()
            columns = 2 * max(1, round((len(shown) / 2) ** 0.5))
            step = generative(module, self).steps_done
            sheet = images.grid(shown, columns=columns)
            save_picture(trainer, f"reconstructions/step={step}.png", sheet, "reconstructions", step)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_validation_epoch_start(trainer, module)

    def on_test_batch_end(self, trainer: Trainer, module: LightningModule, *given: Any) -> None:
        self.on_validation_batch_end(trainer, module, *given)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_validation_epoch_end(trainer, module, "test")


def psnr(image: Tensor, made: Tensor) -> Tensor:
    """(B,) 10·log10(2²/mse) of images (B, C, H, W) in [-1, 1], at most 106 dB."""
    return 10 * (4 / (image - made).square().flatten(1).mean(1).clamp(min=1e-10)).log10()


def _sum(trainer: Trainer, x: Tensor) -> Tensor:
    """The sum over the ranks."""
    return trainer.strategy.reduce(x.clone(), reduce_op="sum")
