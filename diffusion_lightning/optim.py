"""Learning-rate schedules that PyTorch lacks or cannot build from a config; all others are PyTorch's own.

Not to be confused with `schedules`, the noise's.
"""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR


class LinearWarmup(LRScheduler):
    """lr_k = lr·min(1, k/steps) in optimizer step k = 0, 1, …: from 0, then constant.

    The first step moves no weight, though the optimizer's averages see its gradient.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239; the warm-up of its
    released code, over 5,000 steps.

    Args:
        optimizer: its learning rates are what is reached.
        steps: length of the way up, at least 1.

    Raises:
        ValueError: if steps < 1.
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"the warm-up has {steps} steps, which is no way up: give at least 1, or no lr_scheduler")
        self.steps = steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the coming optimizer step."""
        return [rate * min(1.0, self.last_epoch / self.steps) for rate in self.base_lrs]


class Sawtooth(LRScheduler):
    """lr_k = lr·(1 - (k mod steps)/steps) in optimizer step k = 0, 1, …: down to nearly 0, and anew.

    Paper: Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512,
    appendix B: the rate of each of its stages.

    Args:
        optimizer: its learning rates are the highest.
        steps: length of a tooth, at least 1: those of a stage.

    Raises:
        ValueError: if steps < 1.
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"the rate falls over {steps} steps, which is no way down: give at least 1")
        self.steps = steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the coming optimizer step."""
        return [rate * (1 - self.last_epoch % self.steps / self.steps) for rate in self.base_lrs]


class CosineDecay(LRScheduler):
    """lr_k = lr·(end + (1 - end)·(1 + cos(π·min(1, k/steps)))/2) in optimizer step k = 0, 1, …: down, then constant.

    Paper: SGDR: stochastic gradient descent with warm restarts. Loshchilov, Hutter, 2016, arXiv 1608.03983, equation 5,
    without a restart; PyTorch's `CosineAnnealingLR` rises again after its steps.

    Args:
        optimizer: its learning rates are the highest.
        steps: length of the way down, at least 1.
        end: the last rate as a part of the first, in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, steps: int, end: float = 0.0) -> None:
        if steps < 1 or not 0 <= end <= 1:
            raise ValueError(
                f"the rate falls over {steps} steps to {end} of what it is: give at least 1 step and an end in [0, 1]"
            )
        self.steps, self.end = steps, end
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the coming optimizer step."""
        down = (1 + math.cos(math.pi * min(1.0, self.last_epoch / self.steps))) / 2
        return [rate * (self.end + (1 - self.end) * down) for rate in self.base_lrs]


class OneCycle(OneCycleLR):
    """Up to the optimizer's learning rate over the first part of the run, then down to nearly zero, both by cosines.

    Paper: Super-convergence: very fast training of neural networks using large learning rates. Smith, Topin, 2017,
    arXiv 1708.07120; without its cycle of the momentum.

    Args:
        optimizer: its learning rates are the highest.
        total_steps: optimizer steps of the run; a config may leave it out, and it is `trainer.max_steps`.
        pct_start: fraction of the steps on the way up, in [0, 1].
        div_factor: the highest rate over the first one, above 0.
        final_div_factor: the first rate over the last one, above 0.

    Raises:
        ValueError: if the number of steps is not known or below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if total_steps is None or total_steps < 1:
            raise ValueError(
                f"total_steps is {total_steps}, but OneCycle comes down at the end of the run: give trainer.max_steps, "
                "or the schedule's total_steps"
            )
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        while pct_start == 1 or pct_start * total_steps == 1:  # a way of no length, by which PyTorch divides
            pct_start = math.nextafter(pct_start, 0)
        super().__init__(
            optimizer, rates, total_steps, pct_start=pct_start, cycle_momentum=False, div_factor=div_factor,
            final_div_factor=final_div_factor,
        )  # fmt: skip
