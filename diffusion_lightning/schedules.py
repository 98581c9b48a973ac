"""How fast the signal fades: ᾱ_t for t = 0 … T, and all that follows from it alone.

    q(x_t | x_0) = N(√ᾱ_t·x_0, (1 - ᾱ_t)·I)

Paper time: t runs 1 … T, and t = 0 is clean (`alpha_bar[0] == 1`). Between any two times s < t the chain is Gaussian
too, with α_{t|s} = ᾱ_t/ᾱ_s and β_{t|s} = 1 - α_{t|s}; a step of a sampler goes from t to s, whatever lies between.

Tables are float64 whatever the run's precision; what they give is cast, at the end, to the type of the images. What
is worked out for a tensor of times lies on its device; for a single time, an int, it lies on the CPU, where a number
can multiply images of any device: so a sampler's arithmetic of coefficients neither waits for a GPU nor starts kernels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NO_SIGNAL = 20.0  # the ln σ that is taken where no signal is left and it is infinite


class Schedule(nn.Module):
    """A falling ᾱ, from 1 at t = 0 towards 0 at t = T. Subclasses compute it; the rest is the same for all.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equations 4, 6, 7.

    Args:
        alpha_bar: (T+1,) float64, `alpha_bar[0] == 1`, falling, not negative.

    Raises:
        ValueError: if alpha_bar is not such a table.
    """

    alpha_bar: Tensor

    def __init__(self, alpha_bar: Tensor) -> None:
        super().__init__()
        alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2:
            raise ValueError(
                f"alpha_bar has shape {tuple(alpha_bar.shape)}, but a schedule of T ≥ 1 steps needs T+1 entries: "
                "give one for each t = 0 … T"
            )
        if alpha_bar[0] != 1:
            raise ValueError(f"alpha_bar[0] is {alpha_bar[0]:.6g}, but t = 0 is clean: let the table start with 1")
        fall = alpha_bar[1:] < alpha_bar[:-1]
        if not fall.all():
            t = int(fall.logical_not().nonzero()[0, 0]) + 1
            raise ValueError(
                f"alpha_bar must fall at every step, but alpha_bar[{t}] = {alpha_bar[t]:.6g} is not below "
                f"alpha_bar[{t - 1}] = {alpha_bar[t - 1]:.6g}: change the schedule's arguments so that every beta "
                "is above 0 (or take a smaller T, where alpha_bar has reached 0)"
            )
        if alpha_bar[-1] < 0:
            t = int((alpha_bar < 0).nonzero()[0, 0])
            raise ValueError(
                f"alpha_bar is the share of the signal left and cannot be negative, but alpha_bar[{t}] = "
                f"{alpha_bar[t]:.6g}: keep every beta at or below 1"
            )
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self._on_cpu = alpha_bar

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.alpha_bar) - 1

    def snr(self, t: int | Tensor) -> Tensor:
        """The signal-to-noise ratio ᾱ_t/(1 - ᾱ_t), float64, of the shape of t; ∞ at t = 0."""
        alpha_bar = self._at(t)
        return alpha_bar / (1 - alpha_bar)

    def log_sigma(self, t: int | Tensor) -> Tensor:
        """Ln σ_t, with σ_t = √(1 - ᾱ_t)/√ᾱ_t the noise over the signal; float64, -∞ at t = 0, ∞ where ᾱ_t = 0."""
        alpha_bar = self._at(t)
        return (torch.log1p(-alpha_bar) - alpha_bar.log()) / 2

    def tau(self, t: int | Tensor) -> Tensor:
        """τ_t = √(1 - ᾱ_t)/(√ᾱ_t + √(1 - ᾱ_t)) = σ_t/(1 + σ_t), the time of a straight path; float64, in [0, 1]."""
        signal, noise = self.alpha_sigma(t)
        return noise / (signal + noise)

    def alpha_sigma(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), float64, of the shape of t."""
        alpha_bar = self._at(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def scales(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t) to multiply x (B, *): (B, 1 …) of its type on its device, or numbers for an int."""
        signal, noise = self.alpha_sigma(t)
        return expand_like(signal, x), expand_like(noise, x)

    def q_sample(self, x_0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε (equation 4): shapes (B, *), (B,) or an int in 0 … T, (B, *)."""
        signal, noise = self.scales(t, x_0)
        return signal * x_0 + noise * eps

    def beta(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        """β_{t|s} = 1 - ᾱ_t/ᾱ_s, the variance that the steps from s to t > s add; float64, of the shape of t."""
        return -torch.expm1(self._at(t).log() - self._at(s).log())

    def signal_lost(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        """(ᾱ_s - ᾱ_t)/(1 - ᾱ_t) = 1 - β̃_{t|s}/β_{t|s}; float64, of the shape of t."""
        return (self._at(s) - self._at(t)) / (1 - self._at(t))

    def posterior_variance(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        """β̃_{t|s} = (1 - ᾱ_s)/(1 - ᾱ_t)·β_{t|s}, the variance of q(x_s | x_t, x_0); float64, 0 at s = 0."""
        return (1 - self._at(s)) / (1 - self._at(t)) * self.beta(t, s)

    def posterior(self, x_0: Tensor, x_t: Tensor, t: int | Tensor, s: int | Tensor) -> tuple[Tensor, Tensor]:
        """q(x_s | x_t, x_0) for s < t, equations 6 and 7 with any two times in the place of t and t - 1.

        mean = √ᾱ_s·β_{t|s}/(1 - ᾱ_t)·x_0 + √α_{t|s}·(1 - ᾱ_s)/(1 - ᾱ_t)·x_t, variance β̃_{t|s}.

        Returns:
            The mean (B, *), and the variance in a shape that broadcasts against it, a float64 number for ints.
        """
        at_t, at_s = self._at(t), self._at(s)
        of_x_t = (at_t / at_s).sqrt() * (1 - at_s) / (1 - at_t)
        mean = expand_like(self.posterior_x0_coef(t, s), x_t) * x_0 + expand_like(of_x_t, x_t) * x_t
        return mean, expand_like(self.posterior_variance(t, s), x_t)

    def posterior_x0_coef(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        """√ᾱ_s·β_{t|s}/(1 - ᾱ_t), the coefficient of x_0 in the posterior's mean; float64, of the shape of t."""
        return self._at(s).sqrt() * self.beta(t, s) / (1 - self._at(t))

    def _at(self, t: int | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            table = self._on_cpu if t.device.type == "cpu" else self.alpha_bar
            return table[t.to(table.device)]
        if not 0 <= t <= self.T:
            raise ValueError(f"t = {t} is not among the schedule's times 0 … {self.T}: give one of these")
        return self._on_cpu[t]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Schedule":
        """Moves the table with the module, but never casts it: bf16 would make ᾱ = 1 for the first ten t.

        It stays on the CPU if the device has no float64.
        """
        device = fn(torch.empty(0)).device
        self.alpha_bar = self._on_cpu.to("cpu" if device.type == "mps" else device)
        return self


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A float64 coefficient (B,) in x's type and on its device, ready to broadcast against x (B, *).

    A number () stays as it is: multiplied with x it gives x's type, and a number on the CPU multiplies on any device.
    """
    return coefficient.to(x).view(-1, *(1,) * (x.ndim - 1)) if coefficient.ndim else coefficient


def _from_betas(beta: Tensor) -> Tensor:
    """ᾱ_t = Π_{i ≤ t} (1 - β_i), with ᾱ_0 = 1."""
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])


def _check_betas(beta_1: float, beta_T: float) -> None:
    for name, beta in (("beta_1", beta_1), ("beta_T", beta_T)):
        if not 0 < beta < 1:
            raise ValueError(
                f"{name} is {beta}, but it is the share of variance that a step replaces, and alpha_bar must fall "
                "and stay positive: give a number between 0 and 1"
            )


def _whole(T: Any) -> int:
    if T != int(T) or T < 1:
        raise ValueError(f"T is {T}, but a schedule has at least one step: give a whole number T ≥ 1")
    return int(T)


class Linear(Schedule):
    """β_t rises evenly from β_1 to β_T; ᾱ_t = Π (1 - β_i).

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, section 4.

    Args:
        T: number of steps, at least 1.
        beta_1: the first step's variance, in (0, 1).
        beta_T: the last step's variance, in (0, 1).
    """

    def __init__(self, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> None:
        T = _whole(T)
        _check_betas(beta_1, beta_T)
        super().__init__(_from_betas(torch.linspace(beta_1, beta_T, T, dtype=torch.float64)))


class Cosine(Schedule):
    """ᾱ_t = f(t)/f(0) with f(t) = cos²((t/T + s)/(1 + s)·π/2), each β_t held at or below 0.999.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 17.

    Args:
        T: number of steps, at least 1.
        s: offset that keeps the first steps from being too small, at least 0.
    """

    def __init__(self, T: int = 1000, s: float = 0.008) -> None:
        T = _whole(T)
        if s < 0:
            raise ValueError(f"s is {s}, but the cosine's offset lengthens the curve: give s ≥ 0")
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
        super().__init__(_from_betas((1 - f[1:] / f[:-1]).clamp(max=0.999)))


class Sigmoid(Schedule):
    """ᾱ_t = (σ(v_1) - σ(v_t))/(σ(v_1) - σ(v_0)) with v_t from start to end over τ: σ the logistic function.

    At least 1e-9 is left at t = T, so that x_0 can be had from ε.

    Paper: On the importance of noise scheduling for diffusion models. Chen, 2023, arXiv 2301.10972, algorithm 1.

    Args:
        T: number of steps, at least 1.
        start: where on the logistic curve t = 0 lies.
        end: where t = T lies, above start.
        tau: temperature τ, above 0: the larger, the straighter the curve.
    """

    def __init__(self, T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> None:
        T = _whole(T)
        if not start < end:
            raise ValueError(f"start is {start} and end is {end}, but the curve must fall: give start < end")
        if tau <= 0:
            raise ValueError(f"tau is {tau}, but a temperature is above 0: give tau > 0")
        v = torch.sigmoid(torch.linspace(start, end, T + 1, dtype=torch.float64) / tau)
        super().__init__(((v[-1] - v) / (v[-1] - v[0])).clamp(min=1e-9))


class ScaledLinear(Schedule):
    """√β_t rises evenly from √β_1 to √β_T: the schedule of latent diffusion and Stable Diffusion.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752, its
    released code.

    Args:
        T: number of steps, at least 1.
        beta_1: the first step's variance, in (0, 1).
        beta_T: the last step's variance, in (0, 1).
    """

    def __init__(self, T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> None:
        T = _whole(T)
        _check_betas(beta_1, beta_T)
        super().__init__(_from_betas(torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2))


class RectifiedFlow(Schedule):
    """The straight path z_τ = (1 - τ)·x_0 + τ·ε at τ = t/T, scaled to x_t: ᾱ_t = (1 - τ)²/((1 - τ)² + τ²).

    At T no signal is left, so the network must predict `Flow`, `X0`, `Velocity` or `EDM`.

    Paper: Flow straight and fast: learning to generate and transfer data with rectified flow. Liu, Gong, Liu, 2022,
    arXiv 2209.03003, equation 1.

    Args:
        T: number of steps, at least 1.
    """

    def __init__(self, T: int = 1000) -> None:
        T = _whole(T)
        tau = torch.arange(T + 1, dtype=torch.float64) / T
        super().__init__((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2))


class LogSigma(Schedule):
    """σ_t rises from σ_min to σ_max by equal factors, t = 1 … T: ᾱ_t = 1/(1 + σ_t²).

    With T = 1000 and EDM's range a step is 1.07% of σ.

    Paper: Elucidating the design space of diffusion-based generative models. Karras, Aittala, Aila, Laine, 2022,
    arXiv 2206.00364, table 1, for the range.

    Args:
        T: number of steps, at least 1; a single one is at sigma_max.
        sigma_min: σ_1, above 0.
        sigma_max: σ_T, above sigma_min.
    """

    def __init__(self, T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        T = _whole(T)
        if not 0 < sigma_min < sigma_max < float("inf"):
            raise ValueError(
                f"sigma_min is {sigma_min} and sigma_max {sigma_max}, but σ rises from one to the other: give "
                "0 < sigma_min < sigma_max"
            )
        low, high = math.log(sigma_min), math.log(sigma_max)
        sigma = torch.linspace(high, low, T, dtype=torch.float64).flip(0).exp()
        super().__init__(torch.cat([torch.ones(1, dtype=torch.float64), 1 / (1 + sigma**2)]))


class Betas(Schedule):
    """Any β_1 … β_T, such as those of a published checkpoint: ᾱ_t = Π (1 - β_i).

    Args:
        betas: β_1 … β_T, each above 0 and at most 1.
    """

    def __init__(self, betas: Sequence[float]) -> None:
        super().__init__(_from_betas(torch.tensor(betas, dtype=torch.float64)))


class ZeroTerminalSNR(Schedule):
    """Another schedule, stretched so that nothing of x_0 is left at T: ᾱ_T = 0, and ᾱ_1 as it was.

    √ᾱ_t ← (√ᾱ_t - √ᾱ_T)·√ᾱ_1/(√ᾱ_1 - √ᾱ_T)

    At T, ε determines nothing of x_0, so the network must predict `X0` or `Velocity`.

    Paper: Common diffusion noise schedules and sample steps are flawed. Lin et al., 2023, arXiv 2305.08891,
    algorithm 1.

    Args:
        schedule: the one to stretch, of at least two steps.
    """

    def __init__(self, schedule: Schedule) -> None:
        if schedule.T < 2:
            raise ValueError(
                f"the schedule has T = {schedule.T}, but its first step is to stay and its last to lose all signal: "
                "give one of T ≥ 2"
            )
        root = schedule.alpha_bar.sqrt()
        stretched = (root - root[-1]) * root[1] / (root[1] - root[-1])
        super().__init__(torch.cat([root[:1], stretched[1:]]).square())


class Shifted(Schedule):
    """Another schedule with its SNR divided by shift²: ᾱ_t ← ᾱ_t/(ᾱ_t + shift²·(1 - ᾱ_t)), σ_t ← shift·σ_t.

    More noise at each time, as larger images need: on `RectifiedFlow` it is τ ← shift·τ/(1 + (shift - 1)·τ).

    Papers: Simple diffusion: end-to-end diffusion for high resolution images. Hoogeboom, Heek, Salimans, 2023, arXiv
    2301.11093, section 3.1; Scaling rectified flow transformers for high-resolution image synthesis. Esser et al.,
    2024, arXiv 2403.03206, equation 23.

    Args:
        schedule: the one to shift.
        shift: above 0; 1 leaves it as it is, and images of twice the width want twice as much.
    """

    def __init__(self, schedule: Schedule, shift: float) -> None:
        if not 0 < shift < float("inf"):
            raise ValueError(f"shift is {shift}, but it is a factor of σ: give a number above 0")
        signal = schedule.alpha_bar
        super().__init__(signal / (signal + shift**2 * (1 - signal)))
