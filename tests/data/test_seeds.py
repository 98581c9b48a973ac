"""A seed or a sample's number past its range is refused: its draws would be those of another one."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lightning import random
from diffusion_lightning.callbacks import GenerativeMetrics, ReverseChain, SampleGrid, SamplerTable
from diffusion_lightning.cli import main
from diffusion_lightning.data import Arrays, Digits, ImageFolder
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import KID
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

from ..conftest import CONFIG, gaussian, tiny_unet

tried = pytest.mark.tried("Numbers, precision and words")
SCHEDULE, X = Linear(T=3), torch.zeros(2, 1, 8, 8)
DENOISE = gaussian(SCHEDULE, 0.5)
ONE = torch.zeros(1, dtype=torch.long)
BAD = {"minus one": -1, "far below zero": -(2**63), "one past the range": 2**63, "64 bits and zero": 2**64}

DRAWS: dict[str, Callable[[int], Any]] = {
    "words": lambda seed: random.words(4, seed, "a", 0, ONE),
    "uniform": lambda seed: random.uniform((4,), seed, "a", 0, ONE),
    "normal": lambda seed: random.normal((4,), seed, "a", 0, ONE),
    "integers": lambda seed: random.integers(0, 2**30, seed, "a", 0, ONE),
    "fractions": lambda seed: random.fractions(seed, "a", 0, ONE),
    "seeds": lambda seed: random.seeds(seed, "a", ONE),
    "permutation": lambda seed: random.permutation(50, seed, "a", 0),
}
TAKERS: dict[str, Callable[[int], Any]] = {
    "Diffusion": lambda seed: Diffusion(tiny_unet(), SCHEDULE, (1, 8, 8), seed=seed),
    "generate": lambda seed: Diffusion(tiny_unet(), SCHEDULE, (1, 8, 8)).generate(1, DDIM(1), seed=seed),
    "a sampler": lambda seed: DDIM(1)(DENOISE, SCHEDULE, X, seeds=[0, seed]),
    "inpaint": lambda seed: DDIM(1).inpaint(DENOISE, SCHEDULE, X, X, torch.ones(1), seeds=[0, seed]),
    "Digits": lambda seed: Digits(seed=seed),
    "ImageFolder": lambda seed: ImageFolder("nowhere", seed=seed),
    "Arrays": lambda seed: Arrays("nowhere.npz", seed=seed),
    "SampleGrid": lambda seed: SampleGrid(seed=seed),
    "ReverseChain": lambda seed: ReverseChain(seed=seed),
    "GenerativeMetrics": lambda seed: GenerativeMetrics([], seed=seed),
    "SamplerTable": lambda seed: SamplerTable([KID(DigitsNet())], [DDIM()], [1], seed=seed),
    "KID": lambda seed: KID(DigitsNet(), seed=seed),
}


@tried
@pytest.mark.parametrize("seed", BAD.values(), ids=BAD)
@pytest.mark.parametrize("take", [*DRAWS.values(), *TAKERS.values()], ids=[*DRAWS, *TAKERS])
def test_a_seed_past_its_range_is_refused_by_all_that_take_one(take: Callable[[int], Any], seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}, but .*whole number from 0 to 2\^"):
        take(seed)


@tried
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_seeds_at_the_ends_of_their_range_have_draws_of_their_own(draw: Callable[[int], Any]) -> None:
    found = [draw(seed) for seed in (0, 1, 2**32, 2**62, 2**63 - 1)]
    assert not any(torch.equal(a, b) for a, b in combinations(found, 2))


@tried
@pytest.mark.parametrize(
    "seeds", [torch.tensor([0, -1]), torch.tensor([0.0, 0.5])], ids=["negative", "with a fraction"]
)
def test_a_tensor_of_what_are_no_seeds_is_refused(seeds: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="not all whole numbers from 0 on"):
        DDIM(1)(DENOISE, SCHEDULE, X, seeds=seeds)


@tried
@pytest.mark.parametrize("step", [-1, 2**32])
def test_a_step_past_its_range_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"but this is step {step}"):
        random.words(4, 0, "a", step, ONE)


NUMBERS = {"before the first": (-1, 1), "past the last": (2**32, 1), "too many": (2**32 - 3, 4), "none": (0, 0)}


@tried
@pytest.mark.parametrize(("first", "n"), NUMBERS.values(), ids=NUMBERS)
def test_samples_past_the_last_number_are_refused(
    first: int, n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"{n} samples from number {first} on are none, or not all among the numbers"
    with pytest.raises(ValueError, match=said):
        Diffusion(tiny_unet(), SCHEDULE, (1, 8, 8)).generate(n, DDIM(1), first=first)
    error = refused(
        capsys, ["predict", "--ckpt_path", "a.ckpt", "--out", str(tmp_path / "out"), f"--first={first}", f"--n={n}"]
    )
    assert said in error
    assert not (tmp_path / "out").exists()


@tried
def test_the_last_sample_of_all_is_drawn_as_in_any_other_company() -> None:
    model = Diffusion(tiny_unet(), SCHEDULE, (1, 8, 8))
    two = model.generate(2, DDIM(1), first=2**32 - 2, batch_size=2)
    assert torch.equal(model.generate(1, DDIM(1), first=2**32 - 1, batch_size=2), two[1:])


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code not in (0, None)
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line.startswith("error: ") for line in said] == [True]
    return said[0]


@tried
@pytest.mark.parametrize("seed", ["-1", str(2**63), str(2**64)])
def test_predict_refuses_a_seed_past_its_range(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--ckpt_path", "a.ckpt", "--out", str(tmp_path / "out"), f"--seed={seed}"]
    assert f"--seed is {seed}, but a seed is a whole number from 0 to 2^63 - 1" in refused(capsys, words)
    assert not (tmp_path / "out").exists()


@tried
@pytest.mark.parametrize("seed", ["-1", str(2**32), "true"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_run_refuses_a_seed_past_its_range(
    command: str, seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy's, 2³², which Lightning seeds beside PyTorch's."""
    root = tmp_path / "run"
    words = [command, "--config", str(CONFIG), f"--seed_everything={seed}", "--trainer.default_root_dir", str(root)]
    assert f"seed_everything is {seed.title()}, but" in refused(capsys, words)
    assert not root.exists()
