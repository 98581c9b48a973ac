"""What each recipe costs, as its first lines say: parameters, and the arithmetic of training and of `test`.

    python -m benchmarks.recipes

A step of training is counted as three passes forward; `test` as its samples by its sampler and the bound in bits/dim
of the set's held-out images at all times. A first stage's work is apart.
"""

from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.denoising import Prediction
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.records import read
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.schedules import Schedule

from .measure import complete

CONFIGS = Path(__file__).parent.parent / "configs"
# Images whose bits/dim `test` measures, not of latents; of one's own pictures, which `folder` is for, any number.
HELD_OUT = {"digits": 297, "digits_edm": 297, "digits_flow": 297, "digits_v": 297, "celeba64_ddpm": 19_962,
            "imagenet64_iddpm": 50_000,
            "imagenet256_dit_xl2": 0, "latent_scenes": 0, "scenes": 1000, "scenes_dit": 1000, "folder": 0,
            "folder_classes": 0, "folder_captions": 0, "folder_ldm": 0}  # fmt: skip
OTHERS = 10_000
# A text model, and so its network's tokens, lies outside of this repository; the others are no diffusion, or students.
LEFT_OUT = ("stable_diffusion_lora", "digits_classifier", "digits_progressive", "digits_consistency", "digits_gan",
            "cifar10_progressive", "cifar10_ect", "cifar10_r3gan", "latent_scenes_stage",
            "folder_ldm_stage")  # fmt: skip


def evaluations(sampler: Sampler, schedule: Schedule) -> int:
    """How often a sampler calls the network for an image."""
    calls = 0

    def denoise(x_t: Tensor, t: int, c: Tensor | None) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(torch.zeros_like(x_t), x_t)

    sampler(denoise, schedule, torch.zeros(1, 1, 1, 1))
    return calls


def row(path: Path) -> str:
    """A line of the table."""
    config = complete(path)
    config["model"]["init_args"]["first_stage"] = None  # nothing is fetched: the network's shape is its latents'
    model = read(config["model"], Diffusion, "model").make()
    forward, T = model.operations(), model.schedule.T
    parameters = sum(p.numel() for p in model.parameters())
    data = config["data"]["init_args"]
    batch_size = data.get("source", {}).get("init_args", data)["batch_size"]
    training = 3 * forward * batch_size * config["trainer"]["max_steps"]
    samples = 0
    if config["metrics"] is not None:
        given = config["metrics"]["init_args"]
        sampler = read(given["test_sampler"] or {"class_path": "Ancestral"}, Sampler, "test_sampler").make()
        batches = 1 if given["guidance"] in (None, 1) else 2  # with the condition, and without
        samples = given["test_n"] * evaluations(sampler, model.schedule) * batches * forward
    bound = HELD_OUT.get(path.stem, OTHERS) * T * forward
    return (
        f"| {path.stem} | {parameters:,} | {forward / 1e9:.2f} | {training / 1e15:,.1f} | {samples / 1e15:,.1f} "
        f"| {bound / 1e15:,.1f} |"
    )


def main() -> None:
    print("| config | parameters | GFLOP an image | PFLOP of training | of `test`: samples | bits/dim |")
    print("|---|---|---|---|---|---|")
    for path in sorted(CONFIGS.glob("*.yaml")):
        if path.stem not in LEFT_OUT:
            print(row(path))


if __name__ == "__main__":
    main()
