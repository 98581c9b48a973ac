"""What a sampler's loop costs beside its network calls, and a batch of images against diffusers' pipeline, in one run.

    python -m benchmarks sample --size digits|cifar10 --against diffusers

For each sampler `--steps` steps of its loop, and as many bare calls of the network, taken in turn; medians. Guided,
both halves are one call of twice the images. Then `generate` against diffusers' `DDIMPipeline` of the same weights, as
both come and under bf16 autocast, and ours compiled too, with how far its images lie from those in float32. Weights are
fresh: they cost what trained ones do.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Cosine

from .measure import interleaved, machine, options, report
from .measure import peers as named
from .train import PRECISIONS, network, recipe

SAMPLERS = (Ancestral, DDIM, DPMSolver, Heun)


class Counted(nn.Module):
    """A network that counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.network(x_t, t, c)


def loops(net: UNet, shape: tuple[int, int, int], n: int, steps: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """A row a sampler: its loop against the calls that it makes."""
    counted, labels = Counted(net), ClassLabels(10, 4 * net.channels)
    module = Diffusion(counted, Cosine(1000), shape, conditioner=labels).to(device).eval()
    x_T, index = torch.randn(n, *shape, device=device), torch.full((n,), 500, device=device)
    c = labels(torch.zeros_like(index))
    sides: dict[str, Callable[[], Any]] = {}
    calls: dict[str, int] = {}

    def add(name: str, sampler: Sampler, denoise: Callable[..., Any], halves: int = 1) -> None:
        def loop() -> None:
            counted.calls = 0
            sampler(denoise, module.schedule, x_T, c=c)
            calls[name] = counted.calls

        given = [torch.cat([x] * halves) for x in (x_T, index, c)]

        def bare() -> None:
            for _ in range(calls[name]):
                net(*given)

        sides[name], sides[f"{name}, bare"] = loop, bare

    for kind in SAMPLERS:
        add(kind.__name__, kind(steps=steps), module.denoiser)
    guided = ClassifierFree(2.0)(module.denoiser, labels, torch.zeros(n, dtype=torch.long))
    add("DDIM, guided", DDIM(steps), guided, halves=2)
    found = interleaved(sides, rounds, device)
    return [
        {
            "sampler": name,
            "network calls": calls[name],
            "ms a call, with the loop": 1e3 * found[name] / calls[name],
            "bare": 1e3 * found[f"{name}, bare"] / calls[name],
            "share": found[name] / found[f"{name}, bare"],
        }
        for name in calls
    ]


def whole(net: UNet, shape: tuple[int, int, int], n: int, who: list[str], rounds: int, device: str) -> list[dict]:
    """Rows of n images in 50 steps of DDIM."""
    kind, sampler = torch.device(device).type, DDIM(50)

    def within(reduced: bool, made: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.autocast(kind, torch.bfloat16, enabled=reduced):
                return made()

        return call

    def side(reduced: bool, compiled: bool) -> Callable[[], Tensor]:
        copied = copy.deepcopy(net)
        copied.set_memory_format(torch.device(device), reduced)
        module = Diffusion(copied, Cosine(1000), shape).to(device).eval()
        if compiled:
            module.compile()

        return within(reduced, lambda: module.generate(n, sampler))

    made = {
        "ours, float32": side(reduced=False, compiled=False),
        "ours, float32, compiled": side(reduced=False, compiled=True),
        "ours, bfloat16": side(reduced=True, compiled=False),
        "ours, bfloat16, compiled": side(reduced=True, compiled=True),
    }
    sides: dict[str, Callable[[], Any]] = {**made}
    if "diffusers" in who:
        import diffusers

        from .peers.diffusers import twin

        unet = twin(net).to(device).eval()
        scheduler = diffusers.DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2")
        pipeline = diffusers.DDIMPipeline(unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        for precision, (_, dtype) in PRECISIONS.items():
            sides[f"diffusers' DDIMPipeline, {precision}"] = within(
                dtype is torch.bfloat16, lambda: pipeline(batch_size=n, num_inference_steps=50, output_type="np")
            )
    found = interleaved(sides, rounds, device)
    bases = {precision: found.get(f"diffusers' DDIMPipeline, {precision}") for precision in PRECISIONS}
    exact = made["ours, float32"]()
    moved = {name: float((generate() - exact).abs().mean()) * 127.5 for name, generate in made.items()}
    return [
        {
            "made by": name,
            "images": n,
            "seconds": value,
            "images/s": n / value,
            **{f"as fast as diffusers' {precision}": base and base / value for precision, base in bases.items()},
            "levels of 255 that a pixel moves by in the mean": moved.get(name),
        }
        for name, value in found.items()
    ]


@torch.no_grad()
def main(args: Sequence[str]) -> None:
    parser = options("sample")
    parser.add_argument("--steps", type=int, help="of each loop")
    given = parser.parse_args(args)
    small = given.size == "digits"
    shape = tuple(recipe(given.size)["model"]["init_args"]["shape"])
    on_gpu = given.device.startswith("cuda")
    n = given.batch or (64 if small else 500 if on_gpu else 16)
    steps, rounds = given.steps or (50 if small else 4), given.rounds or (9 if small else 3 if on_gpu else 5)
    net = network(given.size).to(given.device).eval()
    for p in net.parameters():  # as they start, the last layers would answer nearly zero
        if p.ndim > 1:
            nn.init.xavier_uniform_(p)
    facts = machine(given.device) | {"size": given.size, "batch": n}
    report(f"sample-{given.size}-loop", facts, loops(net, shape, n, steps, rounds, given.device), None)
    if small or on_gpu:
        rows = whole(net, shape, n, named(given.against), rounds, given.device)
        report(f"sample-{given.size}", facts, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
