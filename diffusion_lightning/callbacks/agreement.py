"""Ends a run of several ranks if they do not train one and the same model."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from .base import check_same

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


class Agreement(Callback):
    """Compares the ranks' place in the training at its start, and their weights before every checkpoint.

    DDP adds up gradients, so that equal weights stay equal, to the last bit, as long as every rank does the same with
    them. The sum of a parameter's bits, as whole numbers, is compared; a parameter in shards (FSDP2), of which each
    rank has another, is not. A checkpoint of ranks that differ is not written, and the earlier ones stay.

    Raises:
        ValueError: on every rank, names the first parameter that differs.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        place = {"optimizer step": trainer.global_step, "batches an epoch": trainer.num_training_batches}
        check_same(
            "places in the training", place, "start all ranks from the same checkpoint, on sets of the same size"
        )

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.world_size > 1:
            check_same(
                "weights",
                bit_sums(module),
                f"this checkpoint of step {trainer.global_step} is not written, the earlier ones stay; look for what "
                "changes weights on one rank alone, a callback, a device that fails or other versions of the packages, "
                "and go on by --ckpt_path last",
            )


def bit_sums(module: torch.nn.Module) -> dict[str, int]:
    """The sum of each parameter's bits, of those that are whole on this rank."""
    whole = {name: p.detach() for name, p in module.named_parameters() if not isinstance(p, DTensor)}
    sums = [_bits(p).sum(dtype=torch.int64) for p in whole.values()]
    return dict(zip(whole, torch.stack(sums).tolist(), strict=True)) if sums else {}


def _bits(x: Tensor) -> Tensor:
    return x.view(WHOLE[x.element_size()])
