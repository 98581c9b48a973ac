"""What exactness costs: the counter-based draws of a training step as a share of the step.

    python -m benchmarks.exactness

For the digits config and for DDPM's CIFAR-10 U-Net at batch 16, in float32 on the CPU: t, ε and the reseeding of
dropout against forward, backward, clip and AdamW. Interleaved, medians; seconds are this machine's, shares travel.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from diffusion_lightning import random
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Cosine, Linear


def measure(name: str, module: Diffusion, batch: int, rounds: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    x_0, eps = torch.rand(batch, *module.shape) * 2 - 1, torch.randn(batch, *module.shape)
    t, sample = torch.randint(1, module.schedule.T + 1, (batch,)), torch.arange(batch)

    def draws() -> None:
        torch.manual_seed(random.state(0, "training: dropout", 1, 0, 0))
        module.timesteps(module.schedule, random.Draw(0, "training", 1, sample), batch)
        random.normal(x_0.shape[1:], 0, "training: eps", 1, sample)

    def step() -> None:
        prediction = module.denoiser(module.schedule.q_sample(x_0, t, eps), t)
        (prediction.output - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def seconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    seconds(draws), seconds(step)
    pairs = [(seconds(draws), seconds(step)) for _ in range(rounds)]
    cost, whole = (median(side) for side in zip(*pairs, strict=True))
    print(f"{name:<22} draws {1e3 * cost:6.2f} ms   step {1e3 * whole:8.1f} ms   share {cost / whole:6.2%}")


def main() -> None:
    torch.set_num_threads(2)
    small = UNet(in_channels=1, size=8, channels=32, multipliers=(1, 2, 2), blocks=1, attention=(), dropout=0, groups=8)
    measure("digits, batch 128", Diffusion(small, Cosine(), (1, 8, 8)), 128, 40)
    measure("CIFAR-10, batch 16", Diffusion(UNet(), Linear(), (3, 32, 32)), 16, 7)


if __name__ == "__main__":
    main()
