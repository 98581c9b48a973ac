"""A denoiser whose sampler needs half the steps, and half of those, down to one.

    repeat: x_0 ~ q(x_0);  t ~ Uniform(T/N, 2T/N, … T);  x_t;  two DDIM steps of the teacher: t → t - T/2N → t - T/N
            step on w·‖x̃_0 - x_θ(x_t, t)‖²,  x̃_0 the image with which one DDIM step from t lands where the two did
    after each stage the student is the teacher of the next, of N/2 steps

Every draw is a function of (seed, purpose, optimizer step, number of the sample in the global batch) alone, and the
stage is one of the optimizer step: a run that goes on within a stage or between two is the run that never stopped.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..conditioning import Conditioner
from ..conditioning.base import Embedded
from ..denoising import Parameterization, Velocity
from ..first_stages import FirstStage
from ..guidance import Denoise, Guided, at_scales, guided
from ..objectives import TruncatedSNR, Weighting
from ..random import Draw
from ..samplers import DDIM, Sampler
from ..schedules import Schedule, expand_like
from .base.batches import Step
from .base.scale_condition import ScaleCondition
from .base.taught import Taught

LEAST = 0.01  # of x_0's error that the output's is at t = T, both squared


def two_steps(
    denoise: Callable[..., Any], schedule: Schedule, x_t: Tensor, t: Tensor, half: int, c: Embedded = None
) -> Tensor:
    """x̃_0 (B, C, H, W): the image with which one DDIM step from t to t - 2·half lands where two steps of `half` do.

    With u = √ᾱ/√(1 - ᾱ), and x', x'' the images that are predicted at t and at t - half,
    x̃_0 = x'' + (u_{t - half} - u_t)/(u_{t - 2·half} - u_t)·(x' - x''): the paper's quotient of differences, in which
    x_t cancels. At t = 2·half, where the second step ends at an image, it is x''.

    Paper: Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512,
    appendix G, algorithm 2.

    Args:
        denoise: `denoise(x_t, t, c) -> Prediction`.
        schedule: that of the denoiser.
        x_t: (B, C, H, W).
        t: (B,) times, at least 2·half.
        half: length of each of the two steps.
        c: what the denoiser is given beside.
    """
    first = denoise(x_t, t, c)
    signal, noise = schedule.scales(t - half, x_t)
    second = denoise(signal * first.x_0 + noise * first.eps, t - half, c)
    start, middle, end = (schedule.snr(t - k * half).sqrt() for k in range(3))  # the last is ∞ where x_0 is reached
    return second.x_0 + expand_like((middle - start) / (end - start), x_t) * (first.x_0 - second.x_0)


class ProgressiveDistillation(Taught):
    """A student of N steps that learns where two steps of its teacher go; N is halved in each stage of a run.

    It starts from a trained model of the same network, schedule and parameterization (`fit --init_from`), which is the
    first teacher. The conditioner is the teacher's and is not trained. The teacher of the present stage is in each
    checkpoint, so nothing but the file is needed to go on, or to draw. Sampled by DDIM in as many steps as the student
    is made for, which is what it does by itself.

    Paper: Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512; On
    distillation of guided diffusion models. Meng et al., 2022, arXiv 2210.03142, for the guided teacher.

    Args:
        network: the student's, and the teacher's: see `Diffusion`.
        schedule: ᾱ_t, whose T is a multiple of twice the first student's steps.
        first: N, the steps of the first student; its teacher takes twice as many.
        last: the steps of the last student, which halving `first` leads to.
        stage_steps: optimizer steps of each stage.
        guidance: the scale, or the `Guidance`, of the first teacher; the students then need none. Of a range (low,
            high) of scales each example has one, and the students take it as a condition: they are drawn from with
            `guidance` in the range, which costs them nothing; without it, at low. None is none.
        shape: see `Diffusion`.
        parameterization: what the network outputs; None is `Velocity()`. ε is refused: at t = T it says little of x_0,
            whose squared error is 1/SNR of its own.
        rescale_timesteps: see `Diffusion`.
        first_stage: see `Diffusion`.
        conditioner: see `Diffusion`.
        weighting: w, the weight of each squared error; None is `TruncatedSNR()`.
        optimizer: given the parameters, makes the optimizer, which forgets its averages after each stage.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate, such as `optim.Sawtooth` over the
            steps of a stage; None holds it constant.
        seed: the seed of all draws of the training.
        compile: let torch.compile make code of both networks.

    Raises:
        ValueError: if the numbers of steps do not halve, or the schedule has no such times.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        first: int,
        last: int = 1,
        stage_steps: int = 50_000,
        guidance: tuple[float, float] | Guided = None,
        shape: Sequence[int] | None = None,
        parameterization: Parameterization | None = None,
        rescale_timesteps: bool = False,
        first_stage: FirstStage | None = None,
        conditioner: Conditioner | None = None,
        weighting: Weighting | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        parameterization = parameterization or Velocity()
        check_stages(schedule, first, last, stage_steps)
        if float(scale := parameterization.x0_error_scale(schedule, schedule.T)) < LEAST:
            raise ValueError(
                f"the student predicts {type(parameterization).__name__}, of which an error at t = T makes one of x_0 "
                f"that is {float(scale) ** -0.5:,.0f} times as large, and its first step is of x_0: train a teacher "
                "that predicts Velocity or X0"
            )
        super().__init__(
            network, schedule, shape, parameterization, rescale_timesteps, first_stage, conditioner, optimizer,
            lr_scheduler, seed, compile,
        )  # fmt: skip
        self.first, self.last, self.stage_steps = first, last, stage_steps
        self.guidance: Any = guidance
        self.weighting = weighting or TruncatedSNR()
        self.scale = ScaleCondition(guidance, self.conditioner) if isinstance(guidance, Sequence) else None
        self.teacher_scale = copy.deepcopy(self.scale)
        self.keep_teacher(network)
        if self.teacher_scale is not None:
            self.teacher_scale.requires_grad_(False)

    # Stages

    @property
    def stages(self) -> int:
        """How many there are."""
        return (self.first // self.last).bit_length()

    @property
    def stage(self) -> int:
        """The stage, from 0 on, of the step that is being trained, or of the last one behind the weights."""
        done = self.steps_done if self.training and self.fits else max(0, self.steps_done - 1)
        return min(done // self.stage_steps, self.stages - 1)

    @property
    def steps(self) -> int:
        """N, the steps of this stage's student."""
        return self.first >> self.stage

    def drawn_by(self) -> tuple[type[Sampler], dict[str, Any]]:
        """DDIM in as many steps as the student is made for."""
        return DDIM, {"steps": self.steps, "clip": None}

    def teach(self) -> None:
        super().teach()
        if self.scale is not None and self.teacher_scale is not None:
            self.teacher_scale.load_state_dict(self.scale.state_dict())

    def _guided(self, y: Tensor, guidance: Guided) -> tuple[Denoise, Embedded]:
        if self.scale is None:
            return super()._guided(y, guidance)
        return self.denoiser, self.scale(self.conditioner(y), self.scale.asked(guidance).expand(len(y)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Between two stages: the student becomes the teacher, and the optimizer starts anew."""
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0 and self.global_step % self.stage_steps == 0
        if begins and 0 < self.global_step < self.stages * self.stage_steps:
            self.teach()
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
            rank_zero_info(f"stage {self.stage + 1} of {self.stages}: a student of {self.steps} steps")

    # The loss

    def _times(self, step: Step) -> tuple[Tensor, Tensor]:
        t = self._evaluation_times(step.draw)
        return t, torch.ones_like(t, dtype=torch.float32)

    def _evaluation_times(self, draw: Draw) -> Tensor:
        return draw.integers("t", 1, self.steps + 1) * (self.schedule.T // self.steps)

    def _conditions(self, y: Any, draw: Draw) -> Any:
        return y if self.guidance is not None else super()._conditions(y, draw)

    def _losses(self, x_0: Tensor, t: Tensor, draw: Draw, y: Any = None) -> Tensor:
        schedule, parameterization, c = self.schedule, self.denoiser.parameterization, self.conditioner(y)
        x_t = schedule.q_sample(x_0, t, draw.normal("eps", x_0))
        scale = None if self.scale is None else self.scale.drawn(draw)
        with torch.no_grad():
            teacher, c_teacher = self._teacher(y, c, scale)
            x_0 = two_steps(teacher, schedule, x_t, t, schedule.T // (2 * self.steps), c_teacher)
        if self.scale is not None:
            c = self.scale(c, scale)
        signal, noise = schedule.scales(t, x_t)
        target = parameterization.target(schedule, x_0, (x_t - signal * x_0) / noise, t)
        output = self.denoiser(x_t, t, c).output
        assert output is not None
        error = (output - target).square().flatten(1).mean(1)
        return self.weighting(schedule, parameterization, t).to(error) * error

    def _teacher(self, y: Any, c: Embedded, scale: Tensor | None) -> tuple[Denoise, Embedded]:
        """The stage's teacher, guided if it does not know its guidance itself, and what it is given beside x_t."""
        teacher: Any = self.teacher
        if self.stage > 0:
            return teacher, c if self.teacher_scale is None else self.teacher_scale(c, scale)
        if scale is not None:
            return at_scales(teacher, self.conditioner, scale), c
        return guided(teacher, self.conditioner, y, self.guidance), c

    # Before training starts

    def on_fit_start(self) -> None:
        """Raise ValueError if there is no teacher, or more steps are to be trained than the stages have."""
        super().on_fit_start()
        if self.trainer.max_steps > (total := self.stages * self.stage_steps):
            raise ValueError(
                f"trainer.max_steps is {self.trainer.max_steps}, but {self.stages} stages of {self.stage_steps} steps "
                f"are {total}: set it to {total}"
            )


def check_stages(schedule: Schedule, first: int, last: int, stage_steps: int) -> None:
    """Raise ValueError unless `first` is `last` doubled some times, and the schedule has the times of 2·first steps."""
    ratio = first // last if 1 <= last <= first and first % last == 0 else 0
    if ratio == 0 or ratio & (ratio - 1):
        raise ValueError(
            f"first is {first} and last is {last}, but each student takes half the steps of the one before: let first "
            "be last times a power of two"
        )
    if schedule.T % (2 * first):
        raise ValueError(
            f"the schedule has T = {schedule.T}, but the teacher of a student of {first} steps takes {2 * first}, "
            f"evenly spaced: give a T that is a multiple of {2 * first}, such as 1024, or another first"
        )
    if stage_steps < 1:
        raise ValueError(f"stage_steps is {stage_steps}, but a stage has at least one optimizer step: give 1 or more")
