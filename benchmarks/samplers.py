"""Each sampler's distance against its number of steps, on a checkpoint of configs/digits.yaml.

    python -m benchmarks.samplers [CKPT]

`fd_digits` of 297 samples to the 1,500 training images, from the same noise for all; its floor is that of the 297
held-out images. Seven minutes on two CPU cores. `Heun` asks the network twice a step.
"""

import sys

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, UniformLogSNR

STEPS = (10, 20, 50, 100, None)
SAMPLERS = {
    "`Ancestral`": lambda n: Ancestral(n),
    "`Ancestral`, fixed small": lambda n: Ancestral(n, variance=0.0),
    "`Ancestral`, `UniformLogSNR`": lambda n: Ancestral(n, spacing=UniformLogSNR()),
    "`DDIM`": lambda n: DDIM(n),
    "`DPMSolver`": lambda n: DPMSolver(n),
    "`DPMSolver`, `UniformLogSNR`": lambda n: DPMSolver(n, spacing=UniformLogSNR()),
    "`Heun`": lambda n: Heun(n),
}


def main(ckpt: str = "runs/digits/checkpoints/last.ckpt") -> None:
    data, model = Digits(), diffusion_lightning.load(ckpt)
    distance = FrechetDistance(DigitsNet())
    distance.update(images.to_uint8(data.reference("train")[:]), real=True)
    print("| sampler | " + " | ".join(f"{n or 'all'}" for n in STEPS) + " |\n|" + "---|" * (1 + len(STEPS)))
    for name, make in SAMPLERS.items():
        print(f"| {name} |", end="", flush=True)
        for n in STEPS:
            distance.reset()
            distance.update(images.to_uint8(model.generate(Digits.held_out, make(n))), real=False)
            print(f" {float(distance.compute()):.3f} |", end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
