"""How fast training is, how much of the devices' arithmetic it uses, and how much memory."""

import sys
import warnings
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..modules.base import batches
from ..modules.base.generative import generative
from ..networks.base import matmuls
from .base import now


class Throughput(Callback):
    """Logs at every logging interval of training

    - `throughput/images_per_sec`, over all devices;
    - `throughput/mfu`, the model FLOPs utilisation 3·F·(images a second)/(P·devices), F being the network's
      operations on one image forward (a step is counted as three such passes) and P the peak of one device;
    - `throughput/memory_gib`, the most that was allocated on the first GPU, or held by the first process on a CPU.

    The time is the first process's, from step to step: the loading of images counts, validations and the writing of
    checkpoints do not, nor does the first step of a start, which warms up.

    If a CPU has no fast arithmetic for the run's reduced precision, it warns at the start.

    Paper: PaLM: scaling language modeling with pathways. Chowdhery et al., 2022, arXiv 2204.02311, appendix B.

    Args:
        peak: P in operations a second, above 0; None takes what the maker states for a known GPU in the run's
            precision, TF32 for float32 where convolutions may use it, and otherwise measures large matmuls of
            matrices when training starts, on a CPU in the type in which networks make them. (Lightning's table has
            H200 and H100 NVL at twice their dense peak, which holds for sparse matrices alone: give theirs.)
    """

    def __init__(self, peak: float | None = None) -> None:
        if peak is not None and peak <= 0:
            raise ValueError(f"peak is {peak}, but it is what a device can do in a second: give operations above 0")
        self.peak = peak

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._forward = generative(module, self).operations()  # of the whole network, which later may be sharded

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step, self._images = trainer.global_step, 0
        self._warm, self._since = False, 0.0
        self._interrupted = False
        if trainer.is_global_zero:
            dtype = _dtype(str(trainer.precision))
            self._peak = (self.peak or peak(module.device, dtype)) * trainer.world_size
            if module.device.type == "cpu" and dtype not in matmuls.FAST:
                rank_zero_warn(
                    f"this CPU has no fast arithmetic for {str(dtype).removeprefix('torch.')}, so that matmuls and "
                    "convolutions are made in float32 and rounded to it: "
                    "--trainer.precision 32-true trains at least as fast here"
                )

    # What is no training: the window in which it falls begins anew with the step after it

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._interrupted = True

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._interrupted = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._interrupted:
            self._begin(now(module.device))

    def _begin(self, moment: float) -> None:
        self._since, self._images, self._interrupted = moment, 0, False

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += batches.size(batch) * trainer.world_size
        if trainer.global_step == self._step or not trainer.is_global_zero:
            return
        self._step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._warm:
            self._warm = True
            self._begin(now(module.device))
        elif every and self._step % every == 0 and not self._interrupted:
            moment = now(module.device)
            rate = self._images / (moment - self._since)
            module.log("throughput/images_per_sec", rate, rank_zero_only=True)
            module.log("throughput/mfu", 3 * self._forward * rate / self._peak, rank_zero_only=True)
            if (memory := _memory(module.device)) is not None:
                module.log("throughput/memory_gib", memory / 2**30, rank_zero_only=True)
            self._begin(moment)


def _dtype(precision: str) -> torch.dtype:
    """The type of matmuls under Lightning's `trainer.precision`."""
    names = {"16": torch.float16, "32": torch.float32, "64": torch.float64}
    return names.get(precision.partition("-")[0], torch.bfloat16)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Peak operations a second of a device: as its maker states, or as measured with matmuls."""
    if device.type == "cpu" and dtype not in matmuls.FAST:
        dtype = torch.float32
    return _known_peak(device, dtype) or _measured_peak(device, dtype)


def _known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the maker states, None for a device that Lightning has no figure of."""
    if device.type != "cuda":
        return None
    kinds: list[torch.dtype | str] = [dtype]
    if dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        kinds.insert(0, "tfloat32")  # which convolutions use unasked, where the GPU has it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            if peak := get_available_flops(device, kind):
                return float(peak)
    return None


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some matmuls of square matrices within a third of a second, after one that is not timed."""
    side = 1024 if device.type == "cpu" else 4096
    matrix = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    torch.mm(matrix, matrix)
    best, end = 0.0, now(device) + 0.3
    while best == 0 or now(device) < end:
        since = now(device)
        torch.mm(matrix, matrix)
        best = max(best, 2 * side**3 / max(now(device) - since, 1e-9))
    return best


def _memory(device: torch.device) -> int | None:
    """Peak memory in bytes so far; None if the system does not measure it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
