"""What each choice brings: a training step with one of them undone at a time, in one run.

    python -m benchmarks gains --size cifar10|digits [--precision bfloat16|float32]

Forward, loss, backward, clip, optimizer and average of the recipe's network, without Lightning's loop. The sides take
turns, on a GPU ten steps each; the factor is by how much a step is longer without the choice. On a CPU torch.compile,
which is a flag, is added instead.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.modules.base import memory
from diffusion_lightning.modules.base.compiling import compile_network
from diffusion_lightning.networks import UNet, base, unet
from diffusion_lightning.networks.base import matmuls

from .measure import interleaved, machine, options, report
from .train import network, recipe

Around = Callable[[], Any]


class Step:
    """One network, its optimizer and its average.

    Args:
        last: features lie channels last, or first; None is what the network chooses.
        fused: whether the optimizer is one kernel.
        together: whether the average and the clip are made of all tensors at once.
        compiled: whether torch.compile makes code of the network.
        graphs: whether its kernels are recorded and started at once, on a GPU.
    """

    def __init__(
        self,
        size: str,
        batch: int,
        device: str,
        reduced: bool,
        last: bool | None = None,
        fused: bool = True,
        together: bool = True,
        compiled: bool = False,
        graphs: bool = True,
    ) -> None:
        self.net: UNet = network(size).to(device)
        if last is None:
            self.net.set_memory_format(torch.device(device), reduced, compiled)
        else:
            self.net.set_memory_format(torch.device("cpu"), reduced=not last)
        shape = recipe(size)["model"]["init_args"]["shape"]
        self.x_t, self.eps = (torch.randn(batch, *shape, device=device) for _ in range(2))
        self.index = torch.randint(0, 1000, (batch,), device=device)
        self.weights = list(self.net.parameters())
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, fused=fused)
        self.kind, self.reduced, self.together = torch.device(device).type, reduced, together
        if compiled:
            compile_network(self.net, torch.device(device), graphs=graphs)

    def __call__(self) -> None:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.reduced):
            output = self.net(self.x_t, self.index)
        F.mse_loss(output.float(), self.eps).backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=self.together)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            if self.together:
                torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1e-4)
            else:
                for mean, weight in zip(self.average, self.weights, strict=True):
                    mean.lerp_(weight, 1e-4)


@contextmanager
def giving_back() -> Iterator[None]:
    """The C library as it comes, for once."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(memory.MMAP_MAX, 65536)
    mallopt(memory.TRIM_THRESHOLD, 128 * 1024)
    try:
        yield
    finally:
        memory.keep_freed()


def reduced_products() -> Any:
    return patch.object(matmuls, "FAST", matmuls.FAST | {torch.bfloat16})


def pytorchs_attention() -> Any:
    return patch.object(unet, "attend", partial(matmuls.in_fast_type, F.scaled_dot_product_attention))


def plain_doubling() -> Any:
    def forward(self: base.UpsampleConv, x: Tensor) -> Tensor:
        return base.Conv2d.forward(self, base.upsample2x(x))

    return patch.object(base.UpsampleConv, "forward", forward)


def pytorchs_norm() -> Any:
    return patch.object(base.GroupNorm, "forward", nn.GroupNorm.forward)


def pytorchs_dropout() -> Any:
    def forward(self: nn.Dropout, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    return patch.object(base.Dropout, "forward", forward)


def main(args: Sequence[str]) -> None:
    parser = options("gains", sizes=("cifar10", "digits"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args(args)
    small, on_cpu = given.size == "digits", given.device == "cpu"
    batch = given.batch or (128 if small or not on_cpu else 16)
    reduced, rounds = given.precision == "bfloat16", 40 if small and on_cpu else 7
    common: tuple[str, int, str, bool] = (given.size, batch, given.device, reduced)
    step = Step(*common, compiled=not on_cpu)
    sides: dict[str, Callable[[], Any]] = {"all of them": step}

    def within(around: Around, step: Step = step) -> Callable[[], None]:
        def run() -> None:
            with around():
                step()

        return run

    if on_cpu:
        memory.keep_freed()
        if reduced and torch.bfloat16 not in matmuls.FAST:
            sides["products in float32, rounded, on a CPU without fast bf16"] = within(reduced_products)
        sides["twice the size by a transposed convolution"] = within(plain_doubling)
        sides["attention as two products"] = within(pytorchs_attention)
        sides["four draws of dropout a word"] = within(pytorchs_dropout)
        if sys.platform == "linux":
            sides["freed memory kept"] = within(giving_back)
        sides[f"channels {'first' if reduced else 'last'}"] = Step(*common, last=reduced)
    else:
        sides["kernels recorded, started at once"] = Step(*common, compiled=True, graphs=False)
        sides["group norms by channels"] = within(pytorchs_norm, Step(*common, compiled=True))
        sides["torch.compile, and what it allows"] = Step(*common)
    sides["a fused optimizer"] = Step(*common, fused=False, compiled=not on_cpu)
    sides["average and clip of all tensors at once"] = Step(*common, together=False, compiled=not on_cpu)
    if on_cpu:
        sides["torch.compile, added"] = Step(*common, compiled=True)
    found = interleaved(sides, given.rounds or rounds, given.device, times=1 if on_cpu else 10)
    least = found["all of them"]
    rows = [{"choice": name, "ms a step": 1e3 * value, "factor": value / least} for name, value in found.items()]
    rows[0]["choice"] = "(none undone)"
    facts = machine(given.device) | {"size": given.size, "batch": batch, "precision": given.precision}
    report(f"gains-{given.size}-{given.precision}", facts, rows, given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
