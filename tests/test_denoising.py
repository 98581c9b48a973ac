"""What a network's output means, and the one formula of the reverse variance."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import (
    EDM,
    X0,
    Denoiser,
    Epsilon,
    Flow,
    Parameterization,
    Velocity,
    log_variance,
)
from diffusion_lightning.samplers import DDIM, Trailing
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, RectifiedFlow, Schedule, ZeroTerminalSNR

from .conftest import of_length, tiny_unet

F64 = torch.float64


class Recorder(nn.Module):
    """Returns what it is told to, and keeps what it was fed."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        self.fed, self.seen = t, x_t
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
    snr, tau = schedule.snr(t), schedule.tau(t)
    variance, of_data = 1 / snr, EDM().sigma_data ** 2
    by_name = {Epsilon: snr, X0: torch.ones_like(snr), Velocity: snr + 1, Flow: tau**-2,
               EDM: (variance + of_data) / (variance * of_data)}  # fmt: skip
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


# Flow and EDM, held against their papers in float64

EVERY = [Linear(), Cosine(), RectifiedFlow(), LogSigma(), ZeroTerminalSNR(Linear())]


@pytest.mark.parametrize("make", Parameterization.__subclasses__())
@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_x_0_and_eps_come_back_from_x_t_and_the_target(make: type[Parameterization], schedule: Schedule) -> None:
    """To 1e-10, at all times at which x_t and the output tell both apart."""
    parameterization, t = make(), torch.arange(1, schedule.T + 1)
    known = (schedule.tau(t) > 1e-3) & (parameterization.determinant(schedule, t).abs() > 1e-3)
    t = t[known]
    x_0, eps = torch.randn(2, len(t), 1, 2, 2, dtype=F64)
    target = parameterization.target(schedule, x_0, eps, t)
    found = parameterization.prediction(schedule, target, schedule.q_sample(x_0, t, eps), t)
    torch.testing.assert_close(found.x_0, x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.eps, eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_a_flow_network_sees_the_straight_path(schedule: Schedule) -> None:
    t = torch.arange(1, schedule.T + 1)
    x_0, eps = torch.randn(2, schedule.T, 1, 2, 2, dtype=F64)
    network = Recorder(torch.zeros(schedule.T, 1, 2, 2, dtype=F64))
    Denoiser(network, schedule, Flow())(schedule.q_sample(x_0, t, eps), t)
    tau = schedule.tau(t).view(-1, 1, 1, 1)
    torch.testing.assert_close(network.seen, (1 - tau) * x_0 + tau * eps, rtol=1e-10, atol=1e-10)
    assert torch.equal(network.fed, tau.flatten().float())
    torch.testing.assert_close(Flow().target(schedule, x_0, eps, t), eps - x_0, rtol=1e-12, atol=1e-12)
    Denoiser(network, schedule, Flow(), rescale_timesteps=True)(x_0, t)
    assert torch.equal(network.fed, (1000 * tau.flatten()).float())


def test_the_straight_path_at_its_middle() -> None:
    assert RectifiedFlow(1000).alpha_bar[500].item() == pytest.approx(0.5, rel=1e-14)
    tau = RectifiedFlow(8).tau(torch.arange(9))
    torch.testing.assert_close(tau, torch.arange(9, dtype=F64) / 8, rtol=1e-14, atol=0)


def test_eulers_steps_of_a_flow_are_those_of_ddim() -> None:
    """Z ← z + (τ' - τ)·v over evenly spaced τ, for a velocity that depends on place and time."""

    class Field(nn.Module):
        def forward(self, z: Tensor, tau: Tensor, c: Tensor | None = None) -> Tensor:
            return torch.sin(3 * z) + tau.to(z).view(-1, 1, 1, 1)

    schedule, field = RectifiedFlow(1000), Field()
    x_T = torch.randn(4, 1, 2, 2, dtype=F64)
    found = DDIM(20, clip=None, spacing=Trailing())(Denoiser(field, schedule, Flow()), schedule, x_T)
    z = x_T
    for k in range(20, 0, -1):
        z = z - field(z, torch.full((4,), k / 20)) / 20
    torch.testing.assert_close(found, z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.9])
def test_edm_is_that_of_its_paper(sigma_data: float) -> None:
    """Karras et al., equations 7 and 8 and table 1, at 20 σ: what is fed, D(x; σ), the target, the loss and λ."""
    schedule = LogSigma(20)
    t = torch.arange(1, 21)
    sigma = (torch.linspace(0.0, 1.0, 20, dtype=F64) * (torch.tensor(80.0 / 0.002).double().log())).exp() * 0.002
    torch.testing.assert_close(schedule.log_sigma(t), sigma.log(), rtol=1e-10, atol=1e-10)
    sigma, s_d = sigma.view(-1, 1, 1, 1), sigma_data
    y, n, output = torch.randn(3, 20, 1, 2, 2, dtype=F64)
    x = y + sigma * n
    total = sigma**2 + s_d**2
    c_skip, c_out, c_in = s_d**2 / total, sigma * s_d / total.sqrt(), 1 / total.sqrt()
    weight = total / (sigma * s_d) ** 2
    network, parameterization = Recorder(output), EDM(s_d)
    denoiser = Denoiser(network, schedule, parameterization)
    found = denoiser(schedule.q_sample(y, t, n), t)
    torch.testing.assert_close(network.seen, c_in * x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network.fed, (sigma.log() / 4).flatten().float())
    denoised = c_skip * x + c_out * output
    torch.testing.assert_close(found.x_0, denoised, rtol=1e-9, atol=1e-10)
    target = parameterization.target(schedule, y, n, t)
    torch.testing.assert_close(target, (y - c_skip * x) / c_out, rtol=1e-9, atol=1e-9)
    scale = parameterization.x0_error_scale(schedule, t).view(-1, 1, 1, 1)
    torch.testing.assert_close(scale, weight, rtol=1e-10, atol=0)
    torch.testing.assert_close((target - output) ** 2, weight * (denoised - y) ** 2, rtol=1e-8, atol=1e-8)


def test_edm_by_hand() -> None:
    """σ = σ_d = 1/2: ᾱ = 0.8, a = √2, b = -1/√2, the input times 1.58114, fed -0.1732868."""
    schedule, edm, t = Schedule(torch.tensor([1.0, 0.8], dtype=F64)), EDM(0.5), torch.tensor([1])
    a, b = edm.coefficients(schedule, t)
    assert (a.item(), b.item()) == pytest.approx((2**0.5, -(0.5**0.5)), rel=1e-12)
    assert edm.input_scale(schedule, t).item() == pytest.approx(1.58114, abs=5e-6)
    assert edm.time(schedule, t).item() == pytest.approx(-0.1732868, abs=5e-8)


def test_edm_on_data_of_unit_deviation_is_minus_v() -> None:
    schedule, t = Cosine(), torch.arange(1, 1001)
    x_0, eps = torch.randn(2, 1000, 1, 1, 1, dtype=F64)
    target = EDM(1.0).target(schedule, x_0, eps, t)
    torch.testing.assert_close(target, -Velocity().target(schedule, x_0, eps, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.as_tensor(EDM(1.0).input_scale(schedule, t)).round(decimals=12), torch.ones(1000).double())


@pytest.mark.parametrize("schedule", [RectifiedFlow(20), ZeroTerminalSNR(Linear(20))], ids=lambda x: type(x).__name__)
def test_a_network_of_edm_is_fed_a_finite_time_where_no_signal_is_left(schedule: Schedule) -> None:
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([20, 19])
    denoiser = Denoiser(tiny_unet().eval(), schedule, EDM())
    assert torch.isfinite(denoiser(x_t, t).output).all()
    fed = EDM().time(schedule, torch.arange(1, 21))
    assert torch.equal(fed, fed.sort().values)


def test_edms_time_is_no_index() -> None:
    with pytest.raises(ValueError, match="rescale_timesteps is true, but EDM feeds"):
        Denoiser(Recorder(torch.zeros(1)), Linear(), EDM(), rescale_timesteps=True)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan")])
def test_a_deviation_that_is_none_is_refused(sigma_data: float) -> None:
    with pytest.raises(ValueError, match="sigma_data is"):
        EDM(sigma_data)
