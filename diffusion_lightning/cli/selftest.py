"""`diffusion-lightning selftest`: figures whose answer is known, worked out on this machine and device.

A driver, a library or an edit that changes the mathematics shows here before it shows in a week of training.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import images, random
from ..callbacks import EMA
from ..data.base import Order
from ..denoising import Epsilon, Prediction, log_variance
from ..likelihood import bits_per_dim, decoder, kl, prior
from ..metrics import frechet_distance
from ..modules.base import batches
from ..networks import UNet
from ..objectives import MinSNR
from ..samplers import DDIM, Ancestral, DPMSolver, Heun, Leading, Sampler, Step
from ..schedules import Cosine, Linear, Schedule, ZeroTerminalSNR
from . import devices

EXACT = 1e-9  # relative: float64, and constants of at least ten digits


class Check(NamedTuple):
    """A figure: what it is, what it must be, by how much it may differ, and how it is found."""

    what: str
    expected: float
    tolerance: float
    find: Callable[[], float | Tensor]


class Result(NamedTuple):
    """A check and what came of it."""

    check: Check
    found: str
    passed: bool


def run(device: torch.device) -> Iterator[Result]:
    """All checks, one after the other; one that raises has failed, and its error is what was found."""
    for check in checks(device):
        try:
            value = float(check.find())
        except Exception as error:  # whatever it is, the table says it
            yield Result(check, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False)
        else:
            yield Result(check, f"{value:.10g}", abs(value - check.expected) <= check.tolerance)


def checks(device: torch.device) -> Iterator[Check]:
    """Every check on a device."""
    linear, cosine = Linear().to(device), Cosine().to(device)

    def exact(what: str, expected: float, find: Callable[[], float | Tensor], relative: float = EXACT) -> Check:
        return Check(what, expected, abs(expected) * relative, find)

    def number(x: float) -> Tensor:
        return torch.full((1, 1, 1, 1), x, dtype=torch.float64, device=linear.alpha_bar.device)

    # Schedules: published tables, whose index t is our t + 1
    yield exact("linear: alpha_bar, index 500", 0.07779665836502389, lambda: linear.alpha_bar[501])
    yield exact("linear: alpha_bar, index 999", 4.035829765375676e-05, lambda: linear.alpha_bar[1000])
    yield exact("cosine: alpha_bar, index 500", 0.49228517244880304, lambda: cosine.alpha_bar[501])
    yield exact("cosine: alpha_bar, index 999", 2.4287669070348567e-09, lambda: cosine.alpha_bar[1000])
    yield exact("cosine, T = 4000: alpha_bar, index 3999", 1.5179804688514517e-10, lambda: Cosine(4000).alpha_bar[4000])
    yield exact("cosine: beta, index 0", 4.128422482196914e-05, lambda: cosine.beta(1, 0))
    yield Check("zero terminal SNR: alpha_bar at T", 0, 0, lambda: ZeroTerminalSNR(Linear()).to(device).alpha_bar[-1])
    yield Check("table in a half-precision model: distinct alpha_bar", 1001, 0, lambda: _distinct(device))

    # The posterior and the reverse variance
    yield exact("posterior mean: share of x_0, index 500", 0.003058057075629619,
                lambda: linear.posterior(number(1), number(0), 501, 500)[0])  # fmt: skip
    yield exact("posterior mean: share of x_t, index 500", 0.9941043507567258,
                lambda: linear.posterior(number(0), number(1), 501, 500)[0])  # fmt: skip
    yield exact("posterior variance, index 1", 5.4531876613021935e-05, lambda: linear.posterior_variance(2, 1))
    yield exact("posterior variance, index 500", 0.010051335778909593, lambda: linear.posterior_variance(501, 500))
    yield exact("DDPM's first log-variance", -9.81672513529567, lambda: log_variance(linear, 1, 0, 0.0))
    yield exact(
        "learned log-variance, v = 0, index 500", -4.59962092, lambda: log_variance(linear, 501, 500, 0.5), 2e-9
    )

    # Likelihood, in bits/dim
    yield exact("prior, |x_0| = 1", 2.911295e-05, lambda: bits_per_dim(prior(linear, number(1)), 1), 1e-6)
    yield exact("prior, x_0 = 0", 5.875e-10, lambda: bits_per_dim(prior(linear, number(0)), 1), 1e-4)
    yield exact("KL terms of N(0, 0.25), fixed small", 6.302436876, lambda: _kl_terms(linear, 0.0), 1e-9)
    yield exact("KL terms of N(0, 0.25), fixed large", 5.645641042, lambda: _kl_terms(linear, 1.0), 1e-9)
    yield exact("decoder: sum over the 256 levels", 1, lambda: _levels(linear))

    # Objectives
    yield exact("least L_simple of N(0, 0.0625)", 0.098639296, lambda: _least_loss(linear, 0.25), 1e-8)
    yield exact("min-SNR weight of eps at SNR 9999", 5 / 9999,
                lambda: MinSNR()(linear, Epsilon(), torch.ones(1, dtype=torch.long, device=device)))  # fmt: skip

    # Samplers: the standard deviation that they make of N(0, 0.25), which each step's algebra fixes
    makes: tuple[tuple[str, Sampler, float], ...] = (
        ("ancestral, fixed small", Ancestral(variance=0.0, clip=None), 0.49611008),
        ("ancestral, fixed large", Ancestral(variance=1.0, clip=None), 0.50075151),
        ("DDIM, 10 steps", DDIM(10, clip=None, spacing=Leading()), 0.37412849),
        ("DDIM, 50 steps", DDIM(50, clip=None, spacing=Leading()), 0.47243911),
    )
    for name, sampler, expected in makes:
        yield exact(f"{name}: std of N(0, 0.25)", expected, partial(_std, sampler, linear), 2e-8)
    solvers: tuple[tuple[str, Sampler, float], ...] = (
        ("DPM-Solver++ 2M", DPMSolver(None, clip=None), 1.48e-3),
        ("Heun", Heun(None, clip=None), 1.44e-3),
    )
    for name, sampler, expected in solvers:
        yield Check(f"{name}, 72 steps: error", expected, 6e-6, partial(_solver_error, sampler, device))

    # Random numbers
    for k, word in enumerate((0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)):
        yield Check(f"Philox4x32-10 of zeros: word {k}", word, 0, partial(_word, k, device))
    yield Check("words that differ between this device and the CPU", 0, 0, lambda: _foreign_words(device))
    yield Check("noise that two devices of one run share", 0, 0, lambda: _shared_noise(device))
    yield Check("images that two devices of one step share", 0, 0, _shared_images)

    # Images, averages, distances
    yield Check("grey levels that survive floats and back", 256, 0, lambda: _surviving_levels(device))
    yield Check("TF1's resize of 0, 1, 4, … 49 to three: their sum", 36, 1e-4, lambda: _resized(device))
    yield exact("EMA 0.9 after 10 steps: weight of the start", 0.9**10, lambda: _ema(device), 1e-6)
    yield exact("Fréchet distance of N(0, I) and N(0.1, 4I) in 64", 64.64, _frechet)

    # The network, which no formula knows: this device against the CPU's float64
    yield Check("U-Net: furthest from float64, of outputs of size 1", 0, 1e-2, lambda: _network_error(device))


def _distinct(device: torch.device) -> int:
    model = nn.Sequential(nn.Linear(1, 1), Linear()).to(device).to(torch.bfloat16)
    schedule: Any = model[1]
    return len(schedule.alpha_bar.unique())


def _gaussian(schedule: Schedule, std: float) -> Callable[..., Prediction]:
    """The optimal denoiser of data N(0, std²)."""

    def denoise(x_t: Tensor, t: int, c: Tensor | None = None) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        x_0 = signal * std**2 / (signal**2 * std**2 + noise**2) * x_t
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    return denoise


def _std(sampler: Sampler, schedule: Schedule) -> float:
    """Step by step, each linear in x_t and in its noise."""
    denoise, variance = _gaussian(schedule, 0.5), 1.0
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=schedule.alpha_bar.device)
    times = sampler.times(schedule)
    for t, s in pairwise(times):
        of_x, of_noise = (
            float(sampler.step(x, Step(schedule, t, s, denoise(x, t), (), denoise, lambda z=z: z)))  # type: ignore[misc]
            for x, z in ((one, 0 * one), (0 * one, one))
        )
        variance = of_x**2 * variance + of_noise**2
    return math.sqrt(variance)


def _solver_error(sampler: Sampler, device: torch.device) -> float:
    """On EDM's grid of 72 steps, σ from 80 to 0.002, for N(0, 0.5²), whose exact flow is a change of scale."""
    sigma = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 72, dtype=torch.float64) ** 7
    schedule = Schedule(torch.cat([torch.ones(1, dtype=torch.float64), 1 / (1 + sigma**2)])).to(device)
    x_T = torch.full((1, 1, 1, 1), 80 / math.sqrt(1 + 80**2), dtype=torch.float64, device=schedule.alpha_bar.device)
    return abs(float(sampler(_gaussian(schedule, 0.5), schedule, x_T)) - 0.5 * 80 / math.sqrt(80**2 + 0.25))


def _kl_terms(schedule: Schedule, m: float) -> Tensor:
    """KL is quadratic in the error of x_0, so the error √Var[x_0 | x_t] gives its expectation over N(0, 0.5²)."""
    t = torch.arange(2, schedule.T + 1, device=schedule.alpha_bar.device)
    alpha_bar = schedule.alpha_bar[t]
    error = (0.25 * (1 - alpha_bar) / (alpha_bar * 0.25 + 1 - alpha_bar)).sqrt().view(-1, 1, 1, 1)
    return bits_per_dim(kl(schedule, error, t, Prediction(torch.zeros_like(error), error), m), 1).sum()


def _levels(schedule: Schedule) -> Tensor:
    x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64, device=schedule.alpha_bar.device).view(-1, 1, 1, 1)
    return torch.exp(-decoder(schedule, x_0, Prediction(torch.full_like(x_0, 0.3), x_0), 1.0)).sum()


def _least_loss(schedule: Schedule, std: float) -> Tensor:
    snr = schedule.snr(torch.arange(1, schedule.T + 1)) * std**2
    return (snr / (snr + 1)).mean()


def _word(k: int, device: torch.device) -> Tensor:
    zero = torch.zeros(2, 1, dtype=torch.long, device=device)
    return random.philox(zero, zero, zero)[k % 2][k // 2]


def _foreign_words(device: torch.device) -> Tensor:
    sample = torch.arange(100)
    there = random.words(1000, 1, "selftest", 2, sample.to(device)).cpu()
    return (there != random.words(1000, 1, "selftest", 2, sample)).sum()


def _shared_noise(device: torch.device) -> int:
    """Two devices of one run take the same training step: how many of their samples have the same noise."""
    seen = []
    for rank in (0, 1):
        draw = random.Draw(0, "training", 0, batches.in_blocks(0, 32, 32, 2, rank, device))
        seen.append(draw.normal("eps", torch.zeros(32, 1, 4, 4, device=device)))
    first, second = (noise.view(32, 1, -1) for noise in seen)
    return int((first == second.transpose(0, 1)).all(2).sum())


def _shared_images() -> int:
    first, second = (set(next(iter(Order(1000, 64, rank, 2, seed=0)))[1].tolist()) for rank in (0, 1))
    return len(first & second)


def _surviving_levels(device: torch.device) -> int:
    levels = torch.arange(256, dtype=torch.uint8, device=device)
    # A sample is no exact level: half a level off, less a little, is still the same one.
    off = torch.tensor([-0.49, 0.0, 0.49], device=device)[:, None] / 127.5
    return int((images.to_uint8(images.from_uint8(levels) + off) == levels).all(0).sum())


def _resized(device: torch.device) -> Tensor:
    squares = torch.arange(8.0, device=device).square().expand(1, 1, 8, 8)
    return images.resize_tf1(squares, 3)[0, 0, 0].sum()


def _ema(device: torch.device) -> Tensor:
    module: Any = nn.Linear(1, 1, bias=False).to(device)
    nn.init.ones_(module.weight)
    ema = EMA(0.9)
    ema.average = {"weight": module.weight.detach().clone()}
    ema.compensation = {"weight": torch.zeros_like(ema.average["weight"])}
    nn.init.zeros_(module.weight)
    for _ in range(10):
        ema.update(module)
    return ema.average["weight"]


def _frechet() -> Tensor:
    eye = torch.eye(64, dtype=torch.float64)
    return frechet_distance(torch.zeros(64), eye, torch.full((64,), 0.1, dtype=torch.float64), 4 * eye)


def _network_error(device: torch.device) -> float:
    network = UNet(
        in_channels=3, size=16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), groups=8, dropout=0
    )
    for k, parameter in enumerate(network.parameters()):
        numbers = torch.arange(parameter.numel())
        with torch.no_grad():
            fan = max(parameter[0].numel(), 1)
            parameter.copy_(random.normal((), 0, "selftest: weights", k, numbers).view_as(parameter) / math.sqrt(fan))
    x = random.normal((3, 16, 16), 0, "selftest: images", 0, torch.arange(4))
    t = torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        here = network.to(device)(x.to(device), t.to(device)).cpu().double()
        there = network.to("cpu").double()(x.double(), t)
    return float((here - there).abs().max() / there.std())


def main(options: Namespace) -> None:
    """Prints the table as it grows.

    Raises:
        ValueError: where the device is not there, or a check fails.
    """
    device = devices.chosen(options.device, ("cuda", "mps"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"torch {torch.__version__} on {name}\n\n{'what':<58} {'expected':>15} {'found':>15} {'tolerance':>10}  pass")
    results, start = [], time.monotonic()
    for check, found, passed in run(device):
        mark = "yes" if passed else "NO"
        print(f"{check.what:<58} {check.expected:>15.10g} {found:>15} {check.tolerance:>10.1e}  {mark}", flush=True)
        results.append((check.what, passed))
    failed = [what for what, passed in results if not passed]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(results)} checks failed ({'; '.join(failed)}): do not trust figures from this "
            "installation; reinstall torch and this package, or report the table above"
        )
    print(f"\nall {len(results)} checks passed in {time.monotonic() - start:.0f} s")
