"""Learning-rate schedules that PyTorch cannot build from a config; all others are `torch.optim.lr_scheduler`'s.

Not to be confused with `schedules`, the noise's.
"""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


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
