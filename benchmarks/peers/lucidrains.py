"""denoising-diffusion-pytorch: its own U-Net (the width whose number of parameters is nearest above ours), its Trainer.

What its `Trainer.train` does in a step, with its network, process, loader, optimizer and average as it makes them. Its
process is asked to predict the noise, as ours and DDPM's do.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning.networks import UNet

from .base import Peer, Task


class Lucidrains(Peer):
    """Its trainer, a step at a time."""

    name = "denoising-diffusion-pytorch"

    def __init__(self, task: Task, network: UNet, folder: Path) -> None:
        channels, size, _ = task.shape
        width = 144 if network.channels == 128 else network.channels
        unet = Unet(dim=width, dim_mults=network.multipliers, channels=channels, dropout=network.style.dropout)
        process = GaussianDiffusion(unet, image_size=size, timesteps=1000, objective="pred_noise")
        self.network = unet
        self.trainer: Any = Trainer(
            process, str(folder), train_batch_size=task.batch, train_num_steps=task.steps, calculate_fid=False,
            augment_horizontal_flip=task.flip, amp=task.precision == "bfloat16", mixed_precision_type="bf16",
            convert_image_to="L" if channels == 1 else "RGB", results_folder=tempfile.mkdtemp(),
        )  # fmt: skip
        self.bar = tqdm(total=task.steps, disable=None)

    def step(self) -> None:
        its, accelerator = self.trainer, self.trainer.accelerator
        its.model.train()
        x_0 = next(its.dl).to(accelerator.device)
        with accelerator.autocast():
            loss = its.model(x_0)
            total = loss.item()
        accelerator.backward(loss)
        self.bar.set_description(f"loss: {total:.4f}")
        accelerator.clip_grad_norm_(its.model.parameters(), its.max_grad_norm)
        its.opt.step()
        its.opt.zero_grad()
        its.step += 1
        its.ema.update()
        self.bar.update(1)

    def sample(self, n: int, steps: int) -> Tensor:
        process = self.trainer.ema.ema_model.eval()
        process.sampling_timesteps, process.is_ddim_sampling, process.ddim_sampling_eta = steps, True, 1.0
        with torch.inference_mode():
            images = torch.cat([process.sample(batch_size=min(500, n - k)) for k in range(0, n, 500)])
        return (images.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
