"""What a network's output means, and the one formula of the reverse variance."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import X0, Denoiser, Epsilon, Parameterization, Velocity, log_variance
from diffusion_lightning.schedules import Cosine, Linear, Schedule, ZeroTerminalSNR

from .conftest import of_length

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


def test_predictions_written_out() -> None:
    """One example, by the formulas of the papers: ᾱ = 0.64, x_0 = 0.5, ε = -1, hence x_t = -0.2 and v = -1.1."""
    schedule = Schedule(torch.tensor([1.0, 0.64], dtype=F64))
    x_0, eps, x_t = (torch.full((1, 1, 1, 1), v, dtype=F64) for v in (0.5, -1.0, -0.2))
    parameterizations: list[tuple[Parameterization, float]] = [(Epsilon(), -1.0), (X0(), 0.5), (Velocity(), -1.1)]
    for parameterization, output in parameterizations:
        assert parameterization.target(schedule, x_0, eps, 1).item() == pytest.approx(output, rel=1e-14)
        found = parameterization.prediction(schedule, torch.full_like(x_t, output), x_t, 1)
        assert found.x_0.item() == pytest.approx(0.5, rel=1e-14)
        assert found.eps.item() == pytest.approx(-1, rel=1e-14)


@pytest.mark.parametrize("make", Parameterization.__subclasses__())
def test_the_errors_of_all_outputs_are_those_of_x_0_through_one_factor(make: type[Parameterization]) -> None:
    schedule, parameterization = Cosine(T=50), make()
    t = torch.arange(1, 50)
    x_t, output, wrong = torch.randn(3, 49, 1, 1, 1, dtype=F64)
    right = parameterization.prediction(schedule, output, x_t, t)
    other = parameterization.prediction(schedule, wrong, x_t, t)
    expected = (output - wrong).square() / (right.x_0 - other.x_0).square()
    torch.testing.assert_close(parameterization.x0_error_scale(schedule, t), expected.flatten(), rtol=1e-8, atol=0)
    snr = schedule.snr(t)
    by_name = {Epsilon: snr, X0: torch.ones_like(snr), Velocity: snr + 1}
    torch.testing.assert_close(parameterization.x0_error_scale(schedule, t), by_name[make], rtol=1e-10, atol=0)


def test_noise_alone_says_nothing_where_no_signal_is_left() -> None:
    network, schedule = Recorder(torch.zeros(1)), ZeroTerminalSNR(Linear())
    with pytest.raises(ValueError, match=r"alpha_bar\[1000\] = 0 of the signal, and Epsilon .* predict Velocity or X0"):
        Denoiser(network, schedule, Epsilon())
    x_T, output = torch.randn(2, 3, 1, 2, 2)
    for parameterization, sign in ((X0(), 1), (Velocity(), -1)):
        found = Denoiser(Recorder(output), schedule, parameterization)(x_T, 1000)
        torch.testing.assert_close(found.eps, x_T)
        torch.testing.assert_close(found.x_0, sign * output)


def test_twice_the_channels_predict_the_variance() -> None:
    x_t = torch.randn(2, 3, 4, 4)
    output, v = torch.randn(2, 3, 4, 4), torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = Denoiser(Recorder(torch.cat([output, v], 1)), Linear(), Epsilon())(x_t, 7)
    assert torch.equal(found.eps, output)
    assert found.var_mix is not None
    assert torch.equal(found.var_mix, (v + 1) / 2)


def test_the_network_is_fed_the_index_from_zero() -> None:
    network = Recorder(torch.zeros(3, 1, 2, 2))
    denoiser = Denoiser(network, Linear(), Epsilon())
    denoiser(torch.zeros(3, 1, 2, 2), torch.tensor([1, 500, 1000]))
    assert network.fed.tolist() == [0, 499, 999]
    denoiser(torch.zeros(3, 1, 2, 2), 1000)
    assert network.fed.tolist() == [999] * 3


@pytest.mark.parametrize("t", [0, 1001])
def test_times_without_noise_are_refused(t: int) -> None:
    denoiser = Denoiser(Recorder(torch.zeros(1)), Linear(), Epsilon())
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


def test_the_variance_of_many_times_at_once_is_that_of_each() -> None:
    for schedule in (Linear(), Linear(T=1)):
        t = torch.arange(1, schedule.T + 1)
        for m in (0.0, 0.3, 1.0):
            each = torch.stack([log_variance(schedule, int(k), int(k) - 1, m) for k in t])
            assert torch.equal(log_variance(schedule, t, t - 1, m), each)
    mix = torch.rand(2, 3, 4, 4)
    found = log_variance(Linear(), torch.tensor([1, 500]), torch.tensor([0, 499]), mix)
    assert found.shape == mix.shape
    expected = log_variance(Linear(), 500, 499, mix[1, 2, 3, 3].item())
    assert found[1, 2, 3, 3].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("make", Schedule.__subclasses__(), ids=lambda make: make.__name__)
def test_a_predicted_log_variance_has_the_gradient_of_float64(make: type[Schedule], T: int) -> None:
    """That with respect to m is log β - log β̃, which is 1e-7 and less near T: of every step, and of the first."""
    schedule = of_length(make, T)
    t = torch.arange(1, T + 1)
    m = torch.full((T, 1), 0.5, requires_grad=True)
    found = torch.autograd.grad(log_variance(schedule, t, t - 1, m).sum(), m)[0][:, 0].double()
    alpha_bar = schedule.alpha_bar
    expected = torch.log1p(-alpha_bar[t]) - torch.log1p(-alpha_bar[t - 1])  # to the last digit however small ᾱ is
    expected[0] = schedule.beta(1, 0).log() - schedule.posterior_variance(2, 1).log()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-36)
