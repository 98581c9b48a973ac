"""What holds for every sampler, whatever the schedule and whatever the network predicts."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import Denoiser, Parameterization
from diffusion_lightning.samplers import DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Schedule

from ..conftest import gaussian, of_length
from ..support.solvers import F64

SAMPLERS: dict[str, Sampler] = {
    **{make.__name__: make(steps=10, clip=None) for make in Sampler.__subclasses__()},
    "DPMSolver, order 3": DPMSolver(10, 3, clip=None),
    "Heun, tau": Heun(10, clip=None, variable="tau"),
    "Heun, churn": Heun(10, clip=None, churn=4),
}


class Exact(nn.Module):
    """What a perfect network outputs for data N(0.3, 0.5²), from what it is fed alone."""

    def __init__(self, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.schedule, self.parameterization = schedule, parameterization
        self.times = parameterization.time(schedule, torch.arange(1, schedule.T + 1))

    def forward(self, scaled: Tensor, time: Tensor, c: Tensor | None = None) -> Tensor:
        t = int((self.times == time[0]).nonzero()[0, 0]) + 1
        x_t = scaled / self.parameterization.input_scale(self.schedule, t)
        found = gaussian(self.schedule, 0.5, 0.3)(x_t, t)
        return self.parameterization.target(self.schedule, found.x_0, found.eps, t)


@pytest.mark.parametrize("make", Schedule.__subclasses__(), ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_make_the_same_of_every_parameterization_on_every_schedule(name: str, make: type[Schedule]) -> None:
    """The same x_0 as from the exact prediction; a pair that leaves x_0 undetermined is refused by the denoiser."""
    schedule, sampler = of_length(make, 100), SAMPLERS[name]
    x_T = torch.randn(4, 1, 2, 2, dtype=F64)
    wanted = sampler(gaussian(schedule, 0.5, 0.3), schedule, x_T)
    assert wanted.isfinite().all()
    assert wanted.abs().max() < 4
    ran = 0
    for parameterization in Parameterization.__subclasses__():
        given = parameterization()
        if (given.determinant(schedule, torch.arange(1, 101)) == 0).any():
            continue
        found = sampler(Denoiser(Exact(schedule, given), schedule, given), schedule, x_T)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7, msg=parameterization.__name__)
        ran += 1
    assert ran >= len(Parameterization.__subclasses__()) - 1
