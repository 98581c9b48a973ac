"""diffusers' example of unconditional generation: `UNet2DModel`, `DDPMScheduler`, `EMAModel`, accelerate, datasets.

Its loop and its defaults (AdamW, a cosine rate with warm-up, an average with warm-up, a line of logs each step), on a
network that has the shape of ours.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import load_dataset
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torchvision import transforms
from tqdm.auto import tqdm

from diffusion_lightning.interop import diffusers as layout
from diffusion_lightning.networks import UNet

from .base import Peer, Task


def twin(network: UNet) -> Any:
    """The `UNet2DModel` of the same shape and with the same weights."""
    config = {key: value for key, value in layout.unet_config(network).items() if key != "_class_name"}
    model = diffusers.UNet2DModel(**config)
    model.load_state_dict(layout.Diffusers().write(network, network.state_dict()))
    return model


class Diffusers(Peer):
    """The example's loop."""

    name = "diffusers"

    def __init__(self, task: Task, network: UNet, folder: Path) -> None:
        self.task = task
        self.network = model = twin(copy.deepcopy(network))
        half = "bf16" if task.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(mixed_precision=half, cpu=task.device == "cpu")
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
            model_cls=diffusers.UNet2DModel, model_config=model.config,
        )  # fmt: skip
        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=task.steps)
        loader = torch.utils.data.DataLoader(self._images(folder), batch_size=task.batch, shuffle=True, drop_last=True)
        self.model, self.optimizer, self.loader, self.rate = self.accelerator.prepare(model, optimizer, loader, rate)
        self.ema.to(self.accelerator.device)
        self.bar = tqdm(total=task.steps, disable=None)
        self.batches = self._endless()

    def _images(self, folder: Path) -> Any:
        channels, height, _ = self.task.shape
        kind = "L" if channels == 1 else "RGB"
        augmented = transforms.Compose([
            transforms.Resize(height, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(height),
            transforms.RandomHorizontalFlip() if self.task.flip else transforms.Lambda(lambda x: x),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ])  # fmt: skip
        images = load_dataset(
            "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache")
        )
        images.set_transform(lambda rows: {"input": [augmented(image.convert(kind)) for image in rows["image"]]})
        return images

    def _endless(self) -> Iterator[Tensor]:
        while True:
            for batch in self.loader:
                yield batch["input"]

    def step(self) -> None:
        self.model.train()
        x_0 = next(self.batches)
        noise = torch.randn(x_0.shape, device=x_0.device)
        index = torch.randint(0, 1000, (len(x_0),), device=x_0.device).long()
        x_t = self.scheduler.add_noise(x_0, noise, index)
        with self.accelerator.accumulate(self.model):
            loss = F.mse_loss(self.model(x_t, index).sample.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.model.parameters())
            self.bar.update(1)
        logs = {"loss": loss.detach().item(), "lr": self.rate.get_last_lr()[0], "step": self.bar.n}
        self.bar.set_postfix(**logs)
        self.accelerator.log(logs, step=self.bar.n)

    def sample(self, n: int, steps: int) -> Tensor:
        unet = self.accelerator.unwrap_model(self.model)
        self.ema.store(unet.parameters())
        self.ema.copy_to(unet.parameters())
        pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        sizes = [min(500, n - k) for k in range(0, n, 500)]
        blocks = [pipeline(batch_size=b, num_inference_steps=steps, output_type="np").images for b in sizes]
        self.ema.restore(unet.parameters())
        return (torch.cat([torch.from_numpy(x) for x in blocks]) * 255).round().to(torch.uint8).permute(0, 3, 1, 2)
