"""Which times are trained, and the weight of each.

    L = E_t [ w(t)·‖target - output‖² ],    L_simple: t uniform on 1 … T and w = 1

A time drawn with probability p_t has the weight 1/(T·p_t), so that the expected loss stays that of uniform times.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .denoising import Flow, Parameterization
from .random import Draw
from .schedules import Schedule


class Weighting(ABC):
    """The weight of each example's squared error."""

    trains_mean = True  # whether it trains the mean at all

    @abstractmethod
    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """(B,) float64 factors of ‖target - output‖² at times t (B,).

        Papers weigh the error of x_0 or of ε; `parameterization.x0_error_scale` turns one into the other.
        """


class Simple(Weighting):
    """w = 1, whatever the network outputs.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, equation 14.
    """

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones_like(schedule.snr(t))


class ZeroWeight(Weighting):
    """w = 0: without the squared error, L_vlb alone trains the network, its mean too.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, section 3.3.
    """

    trains_mean = False

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.zeros_like(schedule.snr(t))


class MinSNR(Weighting):
    """w = min(SNR, γ) for the error of x_0, min(1, γ/SNR) for that of ε, min(SNR, γ)/(SNR + 1) for that of v.

    Paper: Efficient diffusion training via min-SNR weighting strategy. Hang et al., 2023, arXiv 2303.09556, 3.4.

    Args:
        gamma: γ, above 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma is {gamma}, but it bounds the weight from above: give gamma > 0")
        self.gamma = gamma

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return schedule.snr(t).clamp(max=self.gamma) / parameterization.x0_error_scale(schedule, t)


class P2(Weighting):
    """w = 1/(k + SNR)^γ for the error of ε: small at low noise, which hides only details that no eye sees.

    Paper: Perception prioritized training of diffusion models. Choi et al., 2022, arXiv 2204.00227, equation 8.

    Args:
        gamma: γ, at least 0; 0 is `Simple` for a network that predicts ε.
        k: above 0.
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0) -> None:
        if gamma < 0 or k <= 0:
            raise ValueError(f"gamma is {gamma} and k is {k}, but weights fall with the SNR: give gamma ≥ 0 and k > 0")
        self.gamma, self.k = gamma, k

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        snr = schedule.snr(t)
        return snr / (self.k + snr) ** self.gamma / parameterization.x0_error_scale(schedule, t)


class TruncatedSNR(Weighting):
    """w = max(SNR, 1) for the error of x_0: that of ε where there is more signal than noise, and of x_0 elsewhere.

    Paper: Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512,
    equation 9.
    """

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return schedule.snr(t).clamp(min=1.0) / parameterization.x0_error_scale(schedule, t)


class LossIn(Weighting):
    """The squared error of another output than the network's: w = min(e', 1/floor²)/e, e of the network's, e' of it.

    e = ‖Δoutput‖²/‖Δx_0‖² is `x0_error_scale`. A network that predicts x_0 and is trained by the flow's error has
    w = 1/max(τ, floor)².

    Paper: Back to basics: let denoising generative models denoise. Li, He, 2025, arXiv 2511.13720.

    Args:
        space: the output whose error counts; None is `Flow()`.
        floor: keeps the weight of nearly clean images finite, at least 0.
    """

    def __init__(self, space: Parameterization | None = None, floor: float = 0.0) -> None:
        if floor < 0:
            raise ValueError(f"floor is {floor}, but it bounds a time from below: give floor ≥ 0")
        self.space, self.floor = space or Flow(), floor

    def __call__(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        wanted = self.space.x0_error_scale(schedule, t)
        if self.floor > 0:
            wanted = wanted.clamp(max=self.floor**-2)
        return wanted / parameterization.x0_error_scale(schedule, t)


class Times(NamedTuple):
    """Drawn times (B,) int64 in 1 … T, and their importance weights 1/(T·p_t), (B,)."""

    t: Tensor
    importance: Tensor


class TimestepSampler(nn.Module, ABC):
    """Draws the time at which each example of a batch is trained.

    Its state is in buffers, hence in every checkpoint.
    """

    learns = False

    def prepare(self, schedule: Schedule) -> None:
        """Make the buffers that depend on the schedule; called once, first."""

    @abstractmethod
    def forward(self, schedule: Schedule, draw: Draw, total: int) -> Times:
        """Times for the samples of a draw (B,), which belong to a step's global batch of `total`."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from each example's time and loss, (total,) each, in the samples' order; the same on every device."""


class Uniform(TimestepSampler):
    """Each sample's own t, uniform on 1 … T.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, algorithm 1, line 3.
    """

    def forward(self, schedule: Schedule, draw: Draw, total: int) -> Times:
        t = draw.integers("t", 1, schedule.T + 1)
        return Times(t, torch.ones_like(t, dtype=torch.float32))


class Stratified(TimestepSampler):
    """One t from each of as many equal parts of 1 … T as the global batch has samples: t = ⌊T·(i + u_i)/B⌋ + 1.

    Uniform still, over all devices and accumulated batches, with less spread between the steps' losses.

    Paper: Variational diffusion models. Kingma, Salimans, Poole, Ho, 2021, arXiv 2107.00630, appendix I.1 (there with
    one u for all).
    """

    def forward(self, schedule: Schedule, draw: Draw, total: int) -> Times:
        u = draw.fractions("t")
        t = (schedule.T * ((draw.sample + u) / total)).long().clamp(max=schedule.T - 1) + 1
        return Times(t, torch.ones_like(u))


class LogNormal(TimestepSampler):
    """Ln σ ~ N(mean, std²), rounded to the nearest time of the schedule; equally, τ = σ/(1 + σ) is logit-normal.

    This density is part of the objective, so the loss is not divided by it (`importance` is 1): a validation loss is
    still of uniform times. EDM has (-1.2, 1.2), Stable Diffusion 3 (0, 1).

    Papers: Elucidating the design space of diffusion-based generative models. Karras, Aittala, Aila, Laine, 2022, arXiv
    2206.00364, table 1; Scaling rectified flow transformers for high-resolution image synthesis. Esser et al., 2024,
    arXiv 2403.03206, equation 19.

    Args:
        mean: of ln σ.
        std: of ln σ, above 0.
        stratified: each of a step's B draws comes from its own part of the density, of the mass 1/B.
    """

    between: Tensor  # (T - 1,) float64

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> None:
        super().__init__()
        if not 0 < std < float("inf") or not abs(mean) < float("inf"):
            raise ValueError(f"mean is {mean} and std is {std}, but ln σ has a mean and a spread: give std above 0")
        self.mean, self.std, self.stratified = mean, std, stratified

    def prepare(self, schedule: Schedule) -> None:
        # Half the way in ln σ from a time to the next; where no signal is left, nearest is the time before.
        # On the table's device: a checkpoint's module is first made without memory, where a time has no number.
        log_sigma = schedule.log_sigma(torch.arange(1, schedule.T + 1, device=schedule.alpha_bar.device))
        between = (log_sigma[1:] + log_sigma[:-1]) / 2
        self.register_buffer("between", between.cpu(), persistent=False)
        self._on_cpu = self.between

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogNormal":
        """Moves the bounds with the module, but never casts them, as a schedule its table."""
        device = fn(torch.empty(0)).device
        self.between = self._on_cpu.to("cpu" if device.type == "mps" else device)
        return self

    def forward(self, schedule: Schedule, draw: Draw, total: int) -> Times:
        u = draw.fractions("t").double()
        if self.stratified:
            u = (draw.sample + u) / total
        log_sigma = self.mean + self.std * torch.special.ndtri(u)
        t = 1 + torch.searchsorted(self.between, log_sigma.to(self.between.device))
        return Times(t, torch.ones_like(t, dtype=torch.float32))


class LossAware(TimestepSampler):
    """p_t ∝ √E[L_t²] over each time's last losses, so that every t contributes equally to the variance of the mean.

    Uniform until every time has its `history`; a fraction `uniform` of the draws stays so.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 18.

    Args:
        history: losses kept for each time, at least 1.
        uniform: the fraction of draws that stay uniform, in (0, 1].
    """

    losses: Tensor
    seen: Tensor
    learns = True

    def __init__(self, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"history is {history} and uniform is {uniform}, but each time needs a memory and a chance: give "
                "history ≥ 1 and uniform in (0, 1]"
            )
        self.history, self.uniform = history, uniform

    def prepare(self, schedule: Schedule) -> None:
        # Row 0 belongs to no time: what is not kept is written there, as 0.
        self.register_buffer("losses", torch.zeros(schedule.T + 1, self.history))
        self.register_buffer("seen", torch.zeros(schedule.T + 1, dtype=torch.long))

    def probability(self) -> Tensor:
        """p_t of t = 1 … T, (T,) float64."""
        spread = self.losses[1:].double().square().mean(1).sqrt()
        p = (1 - self.uniform) * spread / spread.sum().clamp(min=1e-300) + self.uniform / len(spread)
        known = (self.seen[1:] >= self.history).all() & (spread.sum() > 0)
        return torch.where(known, p, torch.full_like(p, 1 / len(p)))

    def forward(self, schedule: Schedule, draw: Draw, total: int) -> Times:
        p = self.probability()
        u = draw.fractions("t")
        reach = p.cumsum(0)
        index = torch.searchsorted(reach, u.to(reach.device) * reach[-1], right=True).clamp(max=schedule.T - 1)
        return Times(index + 1, 1 / (schedule.T * p[index]))

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        # A ring for each time; of more than fit in one batch, the last are kept. Nothing waits for the device.
        order = torch.argsort(t, stable=True)
        t, losses = t[order], losses[order]
        start, end = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        place = torch.arange(len(t), device=t.device)
        kept = end - place <= self.history
        column = (self.seen[t] + place - start) % self.history
        row, column = torch.where(kept, t, 0), torch.where(kept, column, 0)
        self.losses[row, column] = torch.where(kept, losses, 0).to(self.losses)
        self.seen.index_add_(0, t, torch.ones_like(t))
