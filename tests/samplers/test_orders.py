"""The solvers' order of accuracy, on EDM's grid with all its steps taken."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from diffusion_lightning.samplers import DDIM, DPMSolver, Heun, Sampler

from ..support.solvers import gaussian_errors, mixture_errors

SOLVERS = [(DDIM(None), 1), (DPMSolver(None, order=1), 1), (DPMSolver(None), 2), (Heun(None), 2)]


FACTS = {
    "DDIM": (7.70e-2, 3.90e-2, 1.96e-2, 9.84e-3),
    "DPMSolver": (3.12e-2, 6.55e-3, 1.48e-3, 3.51e-4),
    "Heun": (2.76e-2, 6.11e-3, 1.44e-3, 3.46e-4),
}


@pytest.mark.parametrize(("sampler", "order"), SOLVERS)
@pytest.mark.parametrize("errors", [gaussian_errors, mixture_errors])
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    sampler: Sampler, order: int, errors: Callable[[Sampler, Sequence[int]], list[float]]
) -> None:
    found = errors(sampler, (36, 72, 144, 288))
    for coarse, fine in pairwise(found):
        assert coarse / fine == pytest.approx(2**order, rel=0.15), found


@pytest.mark.parametrize(("sampler", "order"), [(DPMSolver(None, 3), 3), (Heun(None, variable="tau"), 2)])
@pytest.mark.parametrize("errors", [gaussian_errors, mixture_errors])
def test_the_order_of_those_whose_errors_are_near_the_last_steps(
    sampler: Sampler, order: int, errors: Callable[[Sampler, Sequence[int], float], list[float]]
) -> None:
    """From σ_min to 0 each is of first order, 4e-6 off at σ_min = 0.002; so it is a tenth of that here."""
    found = errors(sampler, (72, 144, 288), 2e-4)
    for coarse, fine in pairwise(found):
        assert coarse / fine == pytest.approx(2**order, rel=0.15), found


@pytest.mark.parametrize("sampler", [DDIM(None), DPMSolver(None), Heun(None)])
def test_known_errors_of_the_solvers(sampler: Sampler) -> None:
    found = gaussian_errors(sampler, (18, 36, 72, 144))
    assert found == pytest.approx(FACTS[type(sampler).__name__], rel=5e-3)
