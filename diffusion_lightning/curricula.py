"""Which two noise levels of one image a consistency function is compared at, and how they draw near as it learns.

    L = w·d(f(x_t, t), f(x_r, r)),    r < t with the same x_0 and ε,    w = 1/(σ_t - σ_r)

Far apart, the target is the image itself (r = 0), and training is that of a denoiser; near each other, the error that
adds up from noise to image vanishes. Levels are times of the schedule; σ_t = √(1 - ᾱ_t)/√ᾱ_t.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .objectives import LogNormal
from .random import Draw
from .schedules import Schedule


class Curriculum(nn.Module, ABC):
    """Draws t and r for each example of a step."""

    @abstractmethod
    def prepare(self, schedule: Schedule) -> None:
        """Make the tables that depend on the schedule; called once, first.

        Raises:
            ValueError: if two levels that are to be compared are one time of the schedule.
        """

    @abstractmethod
    def forward(self, schedule: Schedule, draw: Draw, step: int | None) -> tuple[Tensor, Tensor]:
        """(B,) times t in 1 … T and r in 0 … t - 1, at an optimizer step from 0 on; None is the curriculum's end."""


class ECT(Curriculum):
    """σ_r = σ_t·(1 - (1 + k·sigmoid(-b·σ_t))/q^(stage + 1)), at least 0; ln σ_t ~ N(mean, std²).

    In the first stage r is 0 for the smaller σ_t, and the network trains as a denoiser there; each further stage
    divides the distance by q.

    Paper: Consistency models made easy. Geng, Pokle, Luo, Lin, Kolter, 2024, arXiv 2406.14548, section 3.2.

    Args:
        q: above 1: by which the distance shrinks from stage to stage.
        stages: how many there are; the last goes on to the run's end.
        stage_steps: optimizer steps of each; the released code has 8 of 25,000.
        k: how much farther apart the levels are at small σ, at least 0.
        b: where in σ this begins, above 0.
        mean: of ln σ.
        std: of ln σ, above 0.
        stratified: see `LogNormal`.
    """

    log_sigma: Tensor

    def __init__(
        self,
        q: float = 2.0,
        stages: int = 8,
        stage_steps: int = 25_000,
        k: float = 8.0,
        b: float = 1.0,
        mean: float = -1.1,
        std: float = 2.0,
        stratified: bool = False,
    ) -> None:
        super().__init__()
        if not 1 < q < math.inf or min(stages, stage_steps) < 1 or not 0 <= k < math.inf or not 0 < b < math.inf:
            raise ValueError(
                f"q is {q}, stages {stages}, stage_steps {stage_steps}, k {k} and b {b}, but two levels draw near from "
                "stage to stage: give q > 1, stages and stage_steps ≥ 1, k ≥ 0 and b > 0"
            )
        self.q, self.stages, self.stage_steps, self.k, self.b = q, stages, stage_steps, k, b
        self.times = LogNormal(mean, std, stratified)

    def prepare(self, schedule: Schedule) -> None:
        self.times.prepare(schedule)
        check_fine(schedule, -math.log1p(-(self.q**-self.stages)), f"the last of {self.stages} stages of q = {self.q}")

    def forward(self, schedule: Schedule, draw: Draw, step: int | None) -> tuple[Tensor, Tensor]:
        t = self.times(schedule, draw, len(draw.sample)).t
        stage = self.stages - 1 if step is None else min(step // self.stage_steps, self.stages - 1)
        sigma = schedule.log_sigma(t).exp()
        return t, self.earlier(schedule, t, sigma * self.ratio(sigma, stage))

    def ratio(self, sigma: Tensor, stage: int) -> Tensor:
        """σ_r/σ_t at levels σ_t, in [0, 1)."""
        return (1 - (1 + self.k * torch.sigmoid(-self.b * sigma)) / self.q ** (stage + 1)).clamp(min=0)

    def earlier(self, schedule: Schedule, t: Tensor, sigma: Tensor) -> Tensor:
        """(B,) the times before t whose ln σ are nearest to those of levels σ; 0 where σ is below the schedule's."""
        between = self.times.between
        r = 1 + torch.searchsorted(between, sigma.log().to(between.device))
        low = schedule.log_sigma(torch.ones_like(t)).exp()
        return torch.where(sigma < low, 0, torch.minimum(r, t - 1))


class ICT(Curriculum):
    """Neighbours of N levels, evenly spaced in σ^(1/7); N - 1 doubles from s_0 to s_1 in equal parts of the steps.

    The chance of levels i, i + 1 is the part of N(mean, std²) that lies between them in ln σ.

    Paper: Improved techniques for training consistency models. Song, Dhariwal, 2023, arXiv 2310.14189, table 1.

    Args:
        s_0: the first intervals, at least 2.
        s_1: the last, at least s_0.
        steps: optimizer steps over which they grow: the paper's run of 400,000.
        mean: of ln σ.
        std: of ln σ, above 0.
        rho: ρ, above 0.
    """

    def __init__(
        self,
        s_0: int = 10,
        s_1: int = 1280,
        steps: int = 400_000,
        mean: float = -1.1,
        std: float = 2.0,
        rho: float = 7.0,
    ) -> None:
        super().__init__()
        if not 2 <= s_0 <= s_1 or steps < 1 or not 0 < std < math.inf or not rho > 0:
            raise ValueError(
                f"s_0 is {s_0}, s_1 {s_1}, steps {steps}, std {std} and rho {rho}, but the intervals grow from one to "
                "the other: give 2 ≤ s_0 ≤ s_1, steps ≥ 1, and std and rho above 0"
            )
        self.steps = steps
        self.s_0, self.s_1, self.mean, self.std, self.rho = s_0, s_1, mean, std, rho

    def prepare(self, schedule: Schedule) -> None:
        levels = self.levels(schedule, self.s_1 + 1)
        if (levels[1:] <= levels[:-1]).any():
            raise ValueError(
                f"the schedule has T = {schedule.T}, but two of {self.s_1 + 1} levels that are compared are one of its "
                "times: give LogSigma a larger T, of 16,000 or more, or a smaller s_1"
            )

    def count(self, step: int) -> int:
        """N at an optimizer step."""
        part = max(1, self.steps // (int(math.log2(self.s_1 // self.s_0)) + 1))
        return min(self.s_0 * 2 ** min(step // part, 60), self.s_1) + 1

    def levels(self, schedule: Schedule, n: int) -> Tensor:
        """(n,) rising times, nearest in ln σ to n levels evenly spaced in σ^(1/ρ)."""
        log_sigma = schedule.log_sigma(torch.arange(1, schedule.T + 1))
        low, high = (math.exp(float(log_sigma[at]) / self.rho) for at in (0, -1))
        wanted = self.rho * torch.linspace(low, high, n, dtype=torch.float64).log()
        return 1 + torch.searchsorted((log_sigma[1:] + log_sigma[:-1]) / 2, wanted)

    def forward(self, schedule: Schedule, draw: Draw, step: int | None) -> tuple[Tensor, Tensor]:
        levels = self.levels(schedule, self.count(self.steps if step is None else step)).to(draw.sample.device)
        edge = torch.special.ndtr((schedule.log_sigma(levels) - self.mean) / self.std)
        reach = (edge[1:] - edge[:-1]).cumsum(0)
        u = draw.fractions("t").to(reach.device)
        at = torch.searchsorted(reach, u * reach[-1], right=True).clamp(max=len(reach) - 1)
        return levels[at + 1], levels[at]


def check_fine(schedule: Schedule, step: float, what: str) -> None:
    """Raise ValueError if a distance in ln σ that is asked for is less than that of two times of the schedule."""
    log_sigma = schedule.log_sigma(torch.arange(1, schedule.T + 1))
    own = float((log_sigma[1:] - log_sigma[:-1]).max())
    if not own <= step:
        raise ValueError(
            f"{what} compares levels {100 * math.expm1(step):.2g}% of σ apart, but the schedule's times are up to "
            f"{100 * math.expm1(min(own, 50)):.2g}% apart: give LogSigma with a larger T, of 16,000 or more, or fewer "
            "stages"
        )
