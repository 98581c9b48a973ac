"""The benchmark of objectives: every row of its table is trained, and what is measured is not measured again."""

from pathlib import Path

import pytest
import torch

from benchmarks import objectives
from benchmarks.objectives import EVALUATIONS, OBJECTIVES, SAMPLERS, Cells, tables, train
from benchmarks.recipes import evaluations
from diffusion_lightning import load
from diffusion_lightning.schedules import Cosine, LogSigma, RectifiedFlow


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Several wait for each other longer than they work."""
    torch.set_num_threads(1)


def cell(name: str, seed: int, sampler: str, n: int, distance: float) -> dict:
    return {"objective": name, "seed": seed, "sampler": sampler, "evaluations": n, "fd_digits": distance,
            "precision": 0.5, "recall": 0.75}  # fmt: skip


@pytest.mark.parametrize("schedule", [Cosine(), LogSigma(), RectifiedFlow()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_has_more_evaluations_than_the_table_says(name: str, schedule: Cosine) -> None:
    for n in EVALUATIONS:
        assert n - 2 <= evaluations(SAMPLERS[name](n), schedule) <= n  # Heun has one less where no signal is left


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_trained_and_its_checkpoint_can_be_loaded(name: str, tmp_path: Path) -> None:
    train(name, 0, tmp_path / name, steps=2)
    model = load(tmp_path / name / "last.ckpt")
    assert torch.isfinite(model.generate(2, SAMPLERS["DDIM"](2), guidance=2.0)).all()
    assert [path.name for path in sorted((tmp_path / name).iterdir())] == ["last.ckpt", "objective.yaml"]


def test_a_cell_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Cells(tmp_path)
    for sampler in SAMPLERS:
        for n in EVALUATIONS:
            cells.add(cell("flow", 0, sampler, n, 1.0))

    def fail(*_: object) -> float:
        raise AssertionError("trained again")

    monkeypatch.setattr(objectives, "train", fail)
    again = Cells(tmp_path)
    assert again.found == cells.found
    objectives.measure("flow", 0, tmp_path, again, None)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="trained again"):
        objectives.measure("flow", 1, tmp_path, again, None)  # type: ignore[arg-type]


def test_the_table_has_the_sampler_of_the_smallest_mean(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for seed, (ddim, heun) in enumerate([(1.0, 1.4), (1.2, 0.9), (1.4, 1.6)]):
        cells.add(cell("flow", seed, "DDIM", 10, ddim))
        cells.add(cell("flow", seed, "Heun", 10, heun))
    text = tables(cells, {"fd_digits": 0.27, "precision": 0.9, "recall": 0.8})
    label = OBJECTIVES["flow"].label
    assert f"| {label} | 10 | DDIM | 1.200 ± 0.200 | 0.500 ± 0.000 | 0.750 ± 0.000 |" in text
    assert f"| {label} | Heun | 1.300 |" in text
    assert "| real images held out | | | 0.270 | 0.900 | 0.800 |" in text
