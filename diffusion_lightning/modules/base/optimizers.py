"""The optimizer of a module in training, and its learning rate, checked before the first step."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from . import checks, gradients, lora


def configured(module: Any, made: Optimizer | None = None) -> Any:
    """Build `module.optimizer` and `module.lr_scheduler` in the form of Lightning's `configure_optimizers`.

    Args:
        module: in training.
        made: its optimizer, already built of groups of parameters; None builds it of all parameters.

    Raises:
        ValueError: if the gradients cannot be clipped as requested, the rate's schedule ends before the run, or there
            are adapters and nothing that they adapt.
    """
    optimizer = made or module.optimizer(lora.trained(module))
    checks.check_optimizer(optimizer, module.trainer)
    if module.lr_scheduler is None:
        return optimizer
    scheduler = module.lr_scheduler(optimizer)
    checks.check_rate(getattr(scheduler, "total_steps", None), module.trainer.max_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_resumed(module: Any, checkpoint: dict[str, Any]) -> None:
    """Raise ValueError if the schedule of the rate that a resumed run goes on with ends before the run does."""
    if module.lr_scheduler is not None:
        for scheduler in checkpoint.get("lr_schedulers", []):
            checks.check_rate(scheduler.get("total_steps"), module.trainer.max_steps)


def clipped(
    module: Any,
    optimizer: Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
    apart: Mapping[str, Iterable[Tensor]] | None = None,
) -> None:
    """Clips as Lightning does; logs the step's learning rate and the gradients' norm before the clip.

    Once an optimizer step, also if batches are accumulated. Lightning's own clip refuses a fused optimizer in bf16 too,
    although nothing is scaled there. Networks that are trained side by side are clipped `apart`, each by its own norm,
    logged as `train/grad_norm` with its name behind.
    """
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    sides: Mapping[str, Iterable[Tensor] | None] = apart or {"": None}
    for name, parameters in sides.items():
        norm = gradients.clip(optimizer, gradient_clip_val, gradient_clip_algorithm, module.logs, scaler, parameters)
        if module.logs and norm is not None:
            module.log(f"train/grad_norm{name}", norm, rank_zero_only=True)
    if module.logs:
        module.log("train/lr", optimizer.param_groups[0]["lr"], rank_zero_only=True)
