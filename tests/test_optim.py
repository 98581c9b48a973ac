"""The learning-rate schedules: their formulas, their resumption, their refusals."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from diffusion_lightning.optim import CosineDecay, LinearWarmup, OneCycle, Sawtooth


def optimizer() -> torch.optim.Adam:
    """Of two groups at different rates."""
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    return torch.optim.Adam([{"params": [a], "lr": 2e-4}, {"params": [b], "lr": 1e-2}])


def rates(made: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[list[float]]:
    """The learning rates of the coming steps."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in made.param_groups])
        made.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_rises_from_zero_and_stays(steps: int) -> None:
    ours, theirs = optimizer(), optimizer()
    found = rates(ours, LinearWarmup(ours, steps), 15)
    assert found == rates(theirs, LambdaLR(theirs, lambda k: min(1.0, k / steps)), 15)
    assert found[0] == [0.0, 0.0]
    assert found[steps:] == [[2e-4, 1e-2]] * (15 - steps)


def test_goes_on_where_it_was() -> None:
    made = optimizer()
    whole = rates(made, LinearWarmup(made, 10), 12)
    first = optimizer()
    schedule = LinearWarmup(first, 10)
    rates(first, schedule, 4)
    again = optimizer()
    resumed = LinearWarmup(again, 10)
    resumed.load_state_dict(schedule.state_dict())
    again.load_state_dict(first.state_dict())
    assert rates(again, resumed, 8) == whole[4:]


def test_no_way_up_is_refused() -> None:
    with pytest.raises(ValueError, match="the warm-up has 0 steps"):
        LinearWarmup(optimizer(), 0)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_sawtooth_falls_and_begins_anew(steps: int) -> None:
    ours, theirs = optimizer(), optimizer()
    found = rates(ours, Sawtooth(ours, steps), 9)
    assert found == rates(theirs, LambdaLR(theirs, lambda k: 1 - k % steps / steps), 9)
    assert found[0] == found[2 * steps] == [2e-4, 1e-2]


@pytest.mark.parametrize(("steps", "end"), [(5, 0.25), (1, 0.0), (8, 1.0)])
def test_a_cosine_falls_and_stays(steps: int, end: float) -> None:
    """As PyTorch's while that falls; it would rise again."""
    ours, theirs = optimizer(), optimizer()
    found = rates(ours, CosineDecay(ours, steps, end), 12)
    for group in range(2):
        rate = theirs.param_groups[group]["lr"]
        alone = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        wanted = rates(alone, CosineAnnealingLR(alone, steps, rate * end), steps + 1)
        assert [pair[group] for pair in found[: steps + 1]] == pytest.approx([own for (own,) in wanted], abs=1e-12)
        assert [pair[group] for pair in found[steps:]] == pytest.approx([rate * end] * (12 - steps), abs=1e-12)


@pytest.mark.parametrize(("steps", "end"), [(0, 0.0), (3, -0.1), (3, 1.5)])
def test_a_cosine_to_nowhere_is_refused(steps: int, end: float) -> None:
    with pytest.raises(ValueError, match=f"falls over {steps} steps to {end} of"):
        CosineDecay(optimizer(), steps, end)


def test_a_tooth_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="the rate falls over 0 steps"):
        Sawtooth(optimizer(), 0)


@pytest.mark.parametrize(("steps", "pct_start"), [(10, 0.3), (40, 0.05)])
def test_one_cycle_is_pytorchs_up_to_the_optimizers_own_rates(steps: int, pct_start: float) -> None:
    ours, theirs = optimizer(), optimizer()
    theirs_schedule = OneCycleLR(theirs, [2e-4, 1e-2], steps, pct_start=pct_start, cycle_momentum=False)
    found = rates(ours, OneCycle(ours, steps, pct_start=pct_start), steps)
    assert found == rates(theirs, theirs_schedule, steps)
    assert max(rate for rate, _ in found) == pytest.approx(2e-4)
    assert found[-1][1] < 1e-6


@pytest.mark.parametrize("pct_start", [0.0, 0.05, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 40])
def test_one_cycle_has_a_rate_for_each_step_of_a_run_however_short(steps: int, pct_start: float) -> None:
    """PyTorch divides by the length of a way up of one step, 5% of 20, and of a way down of none."""
    made = optimizer()
    found = rates(made, OneCycle(made, steps, pct_start=pct_start), steps)
    assert all(0 <= rate <= 1e-2 * (1 + 1e-9) for pair in found for rate in pair)


@pytest.mark.parametrize("steps", [None, 0])
def test_one_cycle_without_an_end_is_refused(steps: int | None) -> None:
    with pytest.raises(ValueError, match=f"total_steps is {steps}, but OneCycle comes down at the end"):
        OneCycle(optimizer(), steps)
