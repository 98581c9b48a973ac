"""From a network's output at (x_t, t, c) to `Prediction(x_0, eps)`, for every parameterisation.

    x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε,    output = a_t·x_0 + b_t·ε,    log σ² = m·log β_{t|s} + (1 - m)·log β̃_{t|s}

Two linear equations: (x_0, ε) gives the network's target, and (x_t, output) gives back x_0 and ε. The only place that
depends on what a network was trained to predict, and the only one that knows what it is fed: outside t runs 1 … T and
x_t has variance ᾱ_t·var(x_0) + 1 - ᾱ_t; inside it is the 0-based index t - 1 that published checkpoints expect, or the
flow's τ, or ln(σ)/4, and x_t is scaled as the parameterization says.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .conditioning.base import Embedded, cast, simplest
from .schedules import NO_SIGNAL, Schedule, expand_like


class Prediction(NamedTuple):
    """A denoiser's estimate at x_t: the clean image, the noise, and the weight m of the larger log-variance.

    All of x_t's shape (B, C, H, W); `var_mix`, nominally in [0, 1], is None if no variance is predicted. `output` is
    the network's raw output, in its own parameterisation: a loss compares it with the target.
    """

    x_0: Tensor
    eps: Tensor
    var_mix: Tensor | None = None
    output: Tensor | None = None


class Parameterization(ABC):
    """What the network is trained to output, as a linear function of x_0 and ε."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t of output = a_t·x_0 + b_t·ε, float64, of the shape of t."""

    def input_scale(self, schedule: Schedule, t: int | Tensor) -> float | Tensor:
        """What x_t is multiplied by before the network sees it: 1, or float64 of the shape of t."""
        return 1.0

    def time(self, schedule: Schedule, t: Tensor, rescaled: bool = False) -> Tensor:
        """(B,) the time that the network is fed at t (B,): the index t - 1, or 1000/T·(t - 1) if it is rescaled.

        Raises:
            ValueError: if this time cannot be rescaled.
        """
        return (t - 1).float() * (1000 / schedule.T) if rescaled else t - 1

    def target(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """What the network should output at x_t = q_sample(x_0, t, ε), (B, C, H, W)."""
        a, b = self.coefficients(schedule, t)
        return expand_like(a, x_0) * x_0 + expand_like(b, x_0) * eps

    def prediction(self, schedule: Schedule, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The network's output turned into x_0 and ε: x_0 = (b·x_t - √(1 - ᾱ)·o)/D, ε = (√ᾱ·o - a·x_t)/D."""
        signal, noise = schedule.alpha_sigma(t)
        a, b = self.coefficients(schedule, t)
        d = self.determinant(schedule, t)
        x_0 = expand_like(b / d, x_t) * x_t - expand_like(noise / d, x_t) * output
        return Prediction(x_0, expand_like(signal / d, x_t) * output - expand_like(a / d, x_t) * x_t)

    def determinant(self, schedule: Schedule, t: int | Tensor) -> Tensor:
        """D = √ᾱ_t·b_t - √(1 - ᾱ_t)·a_t, float64, of the shape of t; where it is 0, x_0 cannot be had."""
        signal, noise = schedule.alpha_sigma(t)
        a, b = self.coefficients(schedule, t)
        return signal * b - noise * a

    def x0_error_scale(self, schedule: Schedule, t: int | Tensor) -> Tensor:
        """D²/(1 - ᾱ_t): the squared error of the output as a multiple of x_0's, ‖Δo‖² = D²/(1 - ᾱ_t)·‖Δx_0‖².

        At a given x_t an error of x_0 is one of ε, √ᾱ·Δx_0 = -√(1 - ᾱ)·Δε; hence the SNR for ε, 1 for x_0 and
        SNR + 1 for v. Float64, of the shape of t.
        """
        return self.determinant(schedule, t).square() / schedule.alpha_sigma(t)[1].square()


class Epsilon(Parameterization):
    """The network outputs ε; x_0 = (x_t - √(1 - ᾱ_t)·ε)/√ᾱ_t.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equations 9, 11, 15.
    """

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, _ = schedule.alpha_sigma(t)
        return torch.zeros_like(signal), torch.ones_like(signal)


class X0(Parameterization):
    """The network outputs x_0; ε = (x_t - √ᾱ_t·x_0)/√(1 - ᾱ_t).

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, section 3.2.
    """

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, _ = schedule.alpha_sigma(t)
        return torch.ones_like(signal), torch.zeros_like(signal)


class Velocity(Parameterization):
    """The network outputs v = √ᾱ_t·ε - √(1 - ᾱ_t)·x_0; x_0 = √ᾱ_t·x_t - √(1 - ᾱ_t)·v.

    Paper: Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512,
    appendix D.
    """

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = schedule.alpha_sigma(t)
        return -noise, signal


class Flow(Parameterization):
    """The network outputs the velocity ε - x_0 of the straight path z_τ = (1 - τ)·x_0 + τ·ε, and is fed z_τ and τ.

    z_τ = x_t/(√ᾱ_t + √(1 - ᾱ_t)) and τ = √(1 - ᾱ_t)/(√ᾱ_t + √(1 - ᾱ_t)), on every schedule; x_0 = z_τ - τ·output.
    Rescaled times are 1000·τ.

    Papers: Flow matching for generative modeling. Lipman et al., 2022, arXiv 2210.02747; Flow straight and fast:
    learning to generate and transfer data with rectified flow. Liu, Gong, Liu, 2022, arXiv 2209.03003.
    """

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, _ = schedule.alpha_sigma(t)
        return -torch.ones_like(signal), torch.ones_like(signal)

    def input_scale(self, schedule: Schedule, t: int | Tensor) -> Tensor:
        signal, noise = schedule.alpha_sigma(t)
        return 1 / (signal + noise)

    def time(self, schedule: Schedule, t: Tensor, rescaled: bool = False) -> Tensor:
        """τ, float32 of the shape of t, of the table itself: so that a shifted schedule feeds the shifted time."""
        return (schedule.tau(t) * (1000 if rescaled else 1)).float()


class EDM(Parameterization):
    """The network outputs F = (x_0 - c_skip·x)/c_out, and is fed c_in·x and ln(σ)/4, with x = x_t/√ᾱ_t = x_0 + σ·ε.

    c_skip = σ_d²/(σ² + σ_d²), c_out = σ·σ_d/√(σ² + σ_d²), c_in = 1/√(σ² + σ_d²), σ = √(1 - ᾱ_t)/√ᾱ_t. With
    s = √(ᾱ_t·σ_d² + 1 - ᾱ_t), the standard deviation of x_t, F = √(1 - ᾱ_t)/(σ_d·s)·x_0 - σ_d·√ᾱ_t/s·ε: on data of
    σ_d = 1 it is -v of `Velocity`. Its squared error under `Simple` is EDM's λ(σ)·‖D - x_0‖². Where no signal is left
    and σ is infinite, the time is 5.

    Paper: Elucidating the design space of diffusion-based generative models. Karras, Aittala, Aila, Laine, 2022,
    arXiv 2206.00364, equations 7 and 8, table 1.

    Args:
        sigma_data: σ_d, the standard deviation of the data, above 0.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"sigma_data is {sigma_data}, but it is the data's standard deviation: give one above 0")
        self.sigma_data = sigma_data

    def _std(self, schedule: Schedule, t: int | Tensor) -> Tensor:
        """s, the standard deviation of x_t."""
        signal, noise = schedule.alpha_sigma(t)
        return torch.sqrt((signal * self.sigma_data) ** 2 + noise**2)

    def coefficients(self, schedule: Schedule, t: int | Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = schedule.alpha_sigma(t)
        s = self._std(schedule, t)
        return noise / (self.sigma_data * s), -self.sigma_data * signal / s

    def input_scale(self, schedule: Schedule, t: int | Tensor) -> Tensor:
        return 1 / self._std(schedule, t)

    def time(self, schedule: Schedule, t: Tensor, rescaled: bool = False) -> Tensor:
        if rescaled:
            raise ValueError("rescale_timesteps is true, but EDM feeds ln(σ)/4 and no index: set it to false")
        return (schedule.log_sigma(t).clamp(max=NO_SIGNAL) / 4).float()


class Denoiser(nn.Module):
    """A network, its schedule and its parameterisation: `denoiser(x_t, t, c) -> Prediction`.

    A network of twice the images' channels predicts the variance too: its second half is v = 2m - 1, in which m is
    the weight of the larger log-variance (IDDPM, arXiv 2102.09672, equation 15).

    Args:
        network: `forward(x_t, time, c) -> (B, C or 2C, H, W)`; time is the parameterization's, t - 1 for most; c is
            None, a vector (B, width) or, if there are tokens too, a `Condition`.
        schedule: ᾱ.
        parameterization: what the network outputs.
        rescale_timesteps: the time is 1000/T·(t - 1) instead, so that a network sees the same times whatever T
            (IDDPM's released code), or 1000·τ for `Flow`.

    Raises:
        ValueError: if x_0 cannot be recovered from the output at one of the schedule's times.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        rescale_timesteps: bool = False,
    ) -> None:
        super().__init__()
        determinant = parameterization.determinant(schedule, torch.arange(1, schedule.T + 1))
        if (determinant == 0).any():
            t = int((determinant == 0).nonzero()[0, 0]) + 1
            raise ValueError(
                f"the schedule leaves alpha_bar[{t}] = {schedule.alpha_bar[t]:.3g} of the signal, and "
                f"{type(parameterization).__name__} cannot give x_0 there: predict Velocity or X0, or take a schedule "
                "that keeps some signal at T"
            )
        parameterization.time(schedule, torch.ones(1, dtype=torch.long), rescale_timesteps)
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self.rescale_timesteps = rescale_timesteps

    @property
    def dtype(self) -> torch.dtype:
        """The type of x_t in a sampler: float32, or float64 if the network's weights are. It is never less."""
        return torch.promote_types(torch.float32, weights_dtype(self.network) or torch.float32)

    def _output(self, x_t: Tensor, t: int | Tensor, c: Embedded) -> tuple[Tensor, Tensor | None]:
        """The network's raw output, in x_t's type, and m if it predicts the variance."""
        if not isinstance(t, Tensor):
            if not 1 <= t <= self.schedule.T:
                raise ValueError(f"t = {t} is not among the times 1 … {self.schedule.T} that have noise: give one")
            t = torch.full((len(x_t),), t, device=x_t.device)
        time = self.parameterization.time(self.schedule, t, self.rescale_timesteps)
        scale = self.parameterization.input_scale(self.schedule, t)
        scaled = expand_like(scale, x_t) * x_t if isinstance(scale, Tensor) else x_t
        output = tensor_of(self.network(*self._cast(scaled, time, simplest(c)))).to(x_t.dtype)
        if output.shape[1] != 2 * x_t.shape[1]:
            return output, None
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2

    def _cast(self, x_t: Tensor, time: Tensor, c: Embedded) -> tuple[Tensor, Tensor, Embedded]:
        """x_t and c in the type of the network's weights; the time as it is: in bfloat16 many times are one."""
        dtype = weights_dtype(self.network)
        if dtype is None or torch.is_autocast_enabled(x_t.device.type):  # autocast chooses a type for each operation
            return x_t, time, c
        return x_t.to(dtype), time, cast(c, dtype)

    def forward(self, x_t: Tensor, t: int | Tensor, c: Embedded = None) -> Prediction:
        """x_0, ε and m at x_t (B, C, H, W), with t an int in 1 … T or a tensor (B,).

        The network computes in the type of its weights, whatever x_t's is.
        """
        output, var_mix = self._output(x_t, t, c)
        prediction = self.parameterization.prediction(self.schedule, output, x_t, t)
        return prediction._replace(var_mix=var_mix, output=output)


def weights_dtype(network: nn.Module) -> torch.dtype | None:
    """The type of a network's first parameter that is no whole number; None if it has no such parameter."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), None)


def tensor_of(answer: Any) -> Tensor:
    """A network's answer, or what is named `sample` in it: diffusers' networks return a record."""
    return answer if isinstance(answer, Tensor) else answer.sample


def log_variance(schedule: Schedule, t: int | Tensor, s: int | Tensor, m: float | Tensor) -> Tensor:
    """Log σ² = m·log β_{t|s} + (1 - m)·log β̃_{t|s}: the variance of a reverse step from t to s.

    m = 1 is DDPM's "fixed large", m = 0 its "fixed small", and a tensor what a network predicts. At s = 0, where
    β̃ = 0, log β̃ is that of the step before, from t + 1 to t (the last step draws no noise; a likelihood needs it).

    Returns:
        Float64 of the shape of t for a number m; m's type, in the shape of m (B, *), for a tensor.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 15.
    """
    small, gap = log_variances(schedule, t, s)
    if isinstance(m, Tensor):
        small, gap = expand_like(small, m), expand_like(gap, m)
    return small + m * gap


def log_variances(schedule: Schedule, t: int | Tensor, s: int | Tensor) -> tuple[Tensor, Tensor]:
    """Log β̃_{t|s}, and how far above it log β_{t|s} lies: -log((1 - ᾱ_s)/(1 - ᾱ_t)); float64, of the shape of t.

    Near T the two logarithms differ by 1e-7 and less, which no difference of float32 numbers shows, but which is the
    gradient of log σ² with respect to m: so it is worked out here, and cast afterwards.
    """
    device = next((time.device for time in (t, s) if isinstance(time, Tensor)), None)
    at, to = torch.broadcast_tensors(torch.as_tensor(t, device=device), torch.as_tensor(s, device=device))
    above, below = torch.where(to == 0, (at + 1).clamp(max=schedule.T), at), torch.where(to == 0, at, to)
    large = schedule.beta(at, to).log()
    # Where the first step is the last one too, there is no step before: the larger one is all there is.
    first = above == below
    small = torch.where(first, large, schedule.posterior_variance(above, below).log())
    between = -torch.log1p(-schedule.signal_lost(above, below))
    return small, torch.where(first, 0.0, torch.where(to == 0, large - small, between))
