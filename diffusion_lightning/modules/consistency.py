"""A function f(x_t, t) that gives the same image all along a path from noise to data, and so in one call from noise.

    repeat: x_0 ~ q(x_0);  t and r < t of the curriculum;  ε ~ N(0, I);  x_t and x_r of the same x_0 and ε
            step on w·d(f_θ(x_t, t), sg f_θ(x_r, r)),  f(x, 0) = x,  w = 1/(σ_t - σ_r)

with the same dropout mask in both. Where a teacher is distilled, x_r is one step of its sampler from x_t instead.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import random, samplers
from ..conditioning import Conditioner
from ..conditioning.base import Embedded
from ..curricula import ECT, Curriculum
from ..denoising import EDM, Parameterization
from ..first_stages import FirstStage
from ..random import Draw
from ..schedules import Schedule, expand_like
from .base.batches import Step
from .base.taught import Taught


class Consistency(Taught):
    """A consistency function and its training: from scratch, from a diffusion model, or by distilling one.

    f(x_t, t) is x_0 as the denoiser predicts it, and x itself at t = 0: with `EDM` this is continuous, since its
    c_skip goes to 1 and c_out to 0 there. `fit --init_from` a diffusion model of the same network and parameterization
    tunes it (ECT); a teacher that is distilled must be given so.

    Papers: Consistency models. Song, Dhariwal, Chen, Sutskever, 2023, arXiv 2303.01469, algorithms 2 and 3;
    Improved techniques for training consistency models. Song, Dhariwal, 2023, arXiv 2310.14189; Consistency models
    made easy. Geng, Pokle, Luo, Lin, Kolter, 2024, arXiv 2406.14548.

    Args:
        network: see `Diffusion`.
        schedule: ᾱ_t: one of many times, such as `LogSigma(16000, 0.0002, 500)`.
        curriculum: how t and r are drawn; None is `ECT()`.
        huber: c of d(a, b) = √(‖a - b‖² + c²) - c; 0 is ‖a - b‖ (ECT), None is 0.00054·√N of N numbers (iCT).
        solver: None compares along the line of x_0 and ε; `heun` and `ddim` go from t to r by a step of the teacher,
            which is the model that the run starts from.
        shape: see `Diffusion`.
        parameterization: what the network outputs; None is `EDM()`.
        rescale_timesteps: see `Diffusion`.
        first_stage: see `Diffusion`.
        conditioner: see `Diffusion`.
        optimizer: given the parameters, makes the optimizer.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate; None holds it constant.
        seed: the seed of all draws of the training.
        compile: let torch.compile make code of the network.

    Raises:
        ValueError: if the schedule's times are farther apart than the levels that are compared.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        curriculum: Curriculum | None = None,
        huber: float | None = 0.0,
        solver: Literal["heun", "ddim"] | None = None,
        shape: Sequence[int] | None = None,
        parameterization: Parameterization | None = None,
        rescale_timesteps: bool = False,
        first_stage: FirstStage | None = None,
        conditioner: Conditioner | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.RAdam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        if huber is not None and not 0 <= huber < math.inf:
            raise ValueError(f"huber is {huber}, but it is a length: give 0 or more, or null for 0.00054·√N")
        if solver not in (None, "heun", "ddim"):
            raise ValueError(f"solver is {solver}, but a teacher's step is heun or ddim: give one, or null for none")
        super().__init__(
            network, schedule, shape, parameterization or EDM(), rescale_timesteps, first_stage, conditioner,
            optimizer, lr_scheduler, seed, compile,
        )  # fmt: skip
        self.curriculum, self.solver = curriculum or ECT(), solver
        self.curriculum.prepare(schedule)
        self.huber = 0.00054 * math.sqrt(math.prod(self.latent_shape)) if huber is None else huber
        if solver is not None:
            self.keep_teacher(network)

    def clean(self, x_t: Tensor, t: Tensor, c: Embedded = None) -> Tensor:
        """f(x_t, t), images or latents (B, C, H, W) at times t (B,) in 0 … T; at t = 0, x_t itself."""
        made = self.denoiser(x_t, t.clamp(min=1), c).x_0
        return torch.where((t == 0).view(-1, *(1,) * (x_t.ndim - 1)), x_t, made)

    def drawn_by(self) -> tuple[type[samplers.Sampler], dict[str, Any]]:
        """One call."""
        return samplers.Consistency, {"steps": 1, "clip": None if self.first_stage.latent else 1.0}

    # Training

    def _times(self, step: Step) -> tuple[Tensor, Tensor]:
        t, self._earlier = self.curriculum(self.schedule, step.draw, self.global_step)
        return t, torch.ones_like(t, dtype=torch.float32)

    def _evaluation_times(self, draw: Draw) -> Tensor:
        t, self._earlier = self.curriculum(self.schedule, draw, None)
        return t

    def _losses(self, x_0: Tensor, t: Tensor, draw: Draw, y: Any = None) -> Tensor:
        c, r, eps = self.conditioner(y), self._earlier, draw.normal("eps", x_0)
        x_t = self.schedule.q_sample(x_0, t, eps)
        masks = random.generator_state(x_0.device)
        made = self.clean(x_t, t, c)
        with torch.no_grad():
            x_r = self.schedule.q_sample(x_0, r, eps) if self.teacher is None else self._solved(x_t, t, r, c)
            random.set_generator_state(x_0.device, masks)
            target = self.clean(x_r, r, c)
        apart = torch.linalg.vector_norm((made - target).flatten(1), dim=1)
        if self.huber:
            apart = (apart.square() + self.huber**2).sqrt() - self.huber
        sigma_t, sigma_r = (self.schedule.log_sigma(time).exp() for time in (t, r))
        return apart / (sigma_t - sigma_r).to(apart)

    def _solved(self, x_t: Tensor, t: Tensor, r: Tensor, c: Embedded) -> Tensor:
        """x_r (B, C, H, W) of one step of the teacher from t to r."""
        assert self.teacher is not None
        first = self.teacher(x_t, t, c)
        signal, noise = self.schedule.scales(r, x_t)
        euler = signal * first.x_0 + noise * first.eps
        if self.solver == "ddim":
            return euler
        slope = self.teacher(euler, r.clamp(min=1), c).eps - first.eps
        sigma_t, sigma_r = (self.schedule.log_sigma(time).exp() for time in (t, r))
        change = torch.where(r == 0, 0.0, self.schedule.alpha_sigma(r)[0] * (sigma_r - sigma_t) / 2)
        return euler + expand_like(change, x_t) * slope
