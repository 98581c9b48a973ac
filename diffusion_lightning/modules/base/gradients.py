"""The gradients of a step as they come into the optimizer: their norm, and the clip."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ...distributed.fsdp import whole


def clip(
    optimizer: Optimizer,
    limit: float | None,
    algorithm: str | None,
    measure: bool,
    scaler: torch.amp.GradScaler | None,
    of: Iterable[Tensor] | None = None,
) -> Tensor | None:
    """Clips the gradients of the optimizer's parameters.

    Args:
        optimizer: whose gradients; a collective call if they are sharded.
        limit: of the norm, or of each value; None or 0 for no clip.
        algorithm: "value"; anything else clips by norm.
        measure: whether to return the norm even if the clip needs none.
        scaler: fp16's, whose scaling some optimizers undo in their own step only.
        of: some of its parameters, such as those of one of two networks; None is all.

    Returns:
        The L2 norm before the clip, a number on the gradients' device, or None if it was not needed.
    """
    parameters = list(of) if of is not None else [p for group in optimizer.param_groups for p in group["params"]]
    by_norm = limit and algorithm != "value"
    norm = None
    if measure or by_norm:
        norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if limit and by_norm and norm is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    elif limit:
        clip_grad_value_(parameters, limit)
    if norm is not None and scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        norm = norm / scaler.scale(torch.ones_like(norm))
    return norm
