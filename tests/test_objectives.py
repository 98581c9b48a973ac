"""The draws of t and the weights of L_simple."""

import math

import torch

from diffusion_lightning.objectives import Simple, Uniform
from diffusion_lightning.schedules import Linear


def test_every_sample_has_its_own_time() -> None:
    schedule = Linear(T=1000)
    t = Uniform()(schedule, 0, "t", 0, torch.arange(100_000))
    assert t.min() == 1
    assert t.max() == 1000
    assert abs(t.double().mean() - 500.5) < 3 * math.sqrt((1000**2 - 1) / 12 / len(t))
    counts = torch.bincount(t, minlength=1001)[1:].double()
    assert ((counts - 100) ** 2 / 100).sum() < 999 + 3.1 * math.sqrt(2 * 999)  # χ², 99.9%


def test_times_differ_between_steps_and_come_back() -> None:
    schedule, sample = Linear(T=1000), torch.arange(64)
    first, second = (Uniform()(schedule, 0, "t", step, sample) for step in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, Uniform()(schedule, 0, "t", 0, sample))


def test_simple_weighs_all_alike() -> None:
    assert torch.equal(Simple()(Linear(), torch.tensor([1, 500, 1000])), torch.ones(3))
