"""What a network's output means, and the one formula of the reverse variance."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import Denoiser, Parameterization, log_variance
from diffusion_lightning.schedules import Cosine, Linear

F64 = torch.float64


class Recorder(nn.Module):
    """Returns what it is told to, and keeps what it was fed."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.fed = t
        return self.output


@pytest.mark.parametrize("make", Parameterization.__subclasses__())
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_the_target_is_undone_to_x_0_and_eps(make: type[Parameterization], schedule: Linear) -> None:
    """A network that outputs its target exactly gives back x_0 and ε, at every time at once."""
    T = schedule.T - 1  # at the cosine's T, ᾱ is 2e-9 and x_0 nearly gone
    t = torch.arange(1, T + 1)
    x_0, eps = torch.randn(T, 1, 2, 2, dtype=F64), torch.randn(T, 1, 2, 2, dtype=F64)
    x_t = schedule.q_sample(x_0, t, eps)
    parameterization = make()
    denoiser = Denoiser(Recorder(parameterization.target(schedule, x_0, eps, t)), schedule, parameterization)
    prediction = denoiser(x_t, t)
    torch.testing.assert_close(prediction.x_0, x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-9, atol=1e-9)
    assert prediction.var_mix is None


def test_the_network_is_fed_the_index_from_zero() -> None:
    network = Recorder(torch.zeros(3, 1, 2, 2))
    denoiser = Denoiser(network, Linear(), Parameterization.__subclasses__()[0]())
    denoiser(torch.zeros(3, 1, 2, 2), torch.tensor([1, 500, 1000]))
    assert network.fed.tolist() == [0, 499, 999]
    denoiser(torch.zeros(3, 1, 2, 2), 1000)
    assert network.fed.tolist() == [999] * 3


@pytest.mark.parametrize("t", [0, 1001])
def test_times_without_noise_are_refused(t: int) -> None:
    denoiser = Denoiser(Recorder(torch.zeros(1)), Linear(), Parameterization.__subclasses__()[0]())
    with pytest.raises(ValueError, match=f"t = {t} is not among the times 1 … 1000"):
        denoiser(torch.zeros(1, 1, 2, 2), t)


def test_the_ends_of_the_variance_formula() -> None:
    schedule = Linear()
    for t, s in [(2, 1), (501, 500), (700, 100)]:
        assert log_variance(schedule, t, s, 1.0).item() == pytest.approx(schedule.beta(t, s).log().item(), rel=1e-14)
        small = schedule.posterior_variance(t, s).log().item()
        assert log_variance(schedule, t, s, 0.0).item() == pytest.approx(small, rel=1e-14)


def test_constants_of_the_reverse_variance() -> None:
    """DDPM's clipped log β̃_1, and IDDPM's learned range at index 500 for v = -1, 0, 1, m = (v + 1)/2."""
    schedule = Linear()
    assert log_variance(schedule, 1, 0, 0.0).item() == pytest.approx(-9.81672513529567, rel=1e-10)
    for v, expected in ((-1, -4.60004974), (0, -4.59962092), (1, -4.59919209)):
        assert log_variance(schedule, 501, 500, (v + 1) / 2).item() == pytest.approx(expected, abs=5e-9)
