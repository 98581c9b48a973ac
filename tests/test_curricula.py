"""Which levels are compared, against an independent computation; tables that are too coarse."""

import math
from typing import Any

import pytest
import torch
from scipy.special import erf

from diffusion_lightning.curricula import ECT, ICT, Curriculum
from diffusion_lightning.random import Draw
from diffusion_lightning.schedules import Cosine, LogSigma, Schedule

FINE = LogSigma(20_000, 2e-4, 500.0)


def drawn(n: int = 4096) -> Draw:
    return Draw(0, "training", 3, torch.arange(n))


@pytest.mark.parametrize("stage", [0, 1, 3, 7])
def test_ect_maps_levels_as_its_released_code_does(stage: int) -> None:
    """At 20 values, r/t = 1 - n(t)/q^(stage + 1) with n(t) = 1 + 8/(1 + e^t), at least 0."""
    curriculum = ECT()
    for k in range(20):
        sigma = 0.002 * (80 / 0.002) ** (k / 19)
        expected = max(0.0, 1 - (1 + 8 / (1 + math.exp(sigma))) / 2 ** (stage + 1))
        found = float(curriculum.ratio(torch.tensor(sigma, dtype=torch.float64), stage))
        assert found == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("step", "stage"), [(0, 0), (9, 0), (10, 1), (35, 3), (1000, 7), (None, 7)])
def test_ect_takes_the_nearest_times(step: int | None, stage: int) -> None:
    curriculum = ECT(stage_steps=10)
    curriculum.prepare(FINE)
    t, r = curriculum(FINE, drawn(), step)
    assert ((r >= 0) & (r < t) & (t <= FINE.T)).all()
    sigma_t, sigma_r = (FINE.log_sigma(x).exp() for x in (t, r))
    wanted = sigma_t * curriculum.ratio(sigma_t, stage)
    inside = wanted > 2e-4
    assert (r[~inside] == 0).all()
    half = math.log(500 / 2e-4) / (FINE.T - 1) / 2
    near = (sigma_r.log() - wanted.log())[inside & (r < t - 1)].abs()
    assert float(near.max()) <= half * (1 + 1e-9)
    log = sigma_t.log()
    assert float(log.mean()) == pytest.approx(-1.1, abs=0.1)
    assert float(log.std()) == pytest.approx(2.0, abs=0.1)


def test_ict_has_the_papers_levels_and_chances() -> None:
    curriculum = ICT(10, 1280, 800)
    assert [curriculum.count(step) for step in (0, 99, 100, 400, 799, 10_000)] == [11, 11, 21, 161, 1281, 1281]
    curriculum.prepare(FINE)
    n = curriculum.count(250)
    t, r = curriculum(FINE, drawn(200_000), 250)
    i = torch.linspace(2e-4 ** (1 / 7), 500 ** (1 / 7), n, dtype=torch.float64) ** 7
    above = torch.searchsorted(FINE.log_sigma(torch.arange(1, FINE.T + 1)), i.log())
    assert (curriculum.levels(FINE, n) - 1 - above).abs().max() <= 1
    reach = torch.as_tensor(erf(((i.log() + 1.1) / (math.sqrt(2) * 2)).numpy()))
    chance = reach.diff() / (reach[-1] - reach[0])
    levels = curriculum.levels(FINE, n)
    seen = torch.bincount(torch.searchsorted(levels, r), minlength=n - 1).double() / len(r)
    assert (levels[torch.searchsorted(levels, r) + 1] == t).all()
    torch.testing.assert_close(seen[: n - 1], chance, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("curriculum", "schedule", "said"),
    [
        (ECT(), LogSigma(1000), "compares levels 0.39% of σ apart, but the schedule's times are up to 1.1% apart"),
        (ECT(), Cosine(1000), "but the schedule's times are up to"),
        (ICT(), LogSigma(1000), "two of 1281 levels that are compared are one of its times"),
    ],
)
def test_a_table_that_is_too_coarse_is_refused(curriculum: Curriculum, schedule: Schedule, said: str) -> None:
    """In its last stage r would be t, and a loss of 0 would be divided by 0."""
    with pytest.raises(ValueError, match=said):
        curriculum.prepare(schedule)


@pytest.mark.parametrize("arguments", [{"q": 1.0}, {"stages": 0}, {"k": -1.0}, {"b": 0.0}, {"std": 0.0}])
def test_numbers_out_of_their_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is"):
        ECT(**arguments)
