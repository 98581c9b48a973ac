"""The exponential moving average of the weights, with which a diffusion model is evaluated."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..distributed.fsdp import gathered, like_shards, local
from ..known import rename_weights

# Numbers that an update works on at a time on a CPU, so that what lies between its operations stays in a cache; on
# other devices 32 times as many, so that few kernels are started.
AT_ONCE = 2**20


class EMA(Callback):
    """θ̄ ← d·θ̄ + (1 - d)·θ after every optimizer step; validation, test and samples see θ̄, training never does.

    Of the parameters alone, on the module's device; buffers are not averaged. After k steps the initial weights still
    count d^k. A checkpoint holds both: θ as the module's weights, θ̄ as this callback's state. If the parameters are
    sharded, so is the average; a checkpoint holds it whole. d is logged as `ema/decay`.

    θ̄ is float32, and beside it lies what its rounding left out: with d = 0.9999 a step's (1 - d)·(θ - θ̄) is mostly
    below half a unit in θ̄'s last place, and would be lost, step after step.

    Paper: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, appendix B (d = 0.9999).

    Args:
        decay: d, in [0, 1).
        warmup: use min(d, (1 + k)/(10 + k)) at step k, so that early averages forget the initial weights.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"the EMA's decay is {decay}, but it is the fraction that is kept: give a number in [0, 1)"
            )
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self.compensation: dict[str, Tensor] = {}  # what is to be added to the average
        self.swapped = False
        self._prepared = False

    @torch.no_grad()
    def update(self, module: LightningModule) -> float:
        """Update the average once; return the decay used."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        parameters = dict(module.named_parameters())
        for names in self._groups():
            current = [local(parameters[name].detach()).float() for name in names]
            average, rest = ([local(kept[name]) for name in names] for kept in (self.average, self.compensation))
            # Kahan's sum of θ̄ + rest and the step (1 - d)·(θ - θ̄ - rest), which is rest on its way to θ - θ̄.
            apart = list(torch._foreach_sub(current, average))
            torch._foreach_lerp_(rest, apart, 1 - decay)
            torch._foreach_copy_(apart, average)
            torch._foreach_add_(average, rest)
            torch._foreach_sub_(apart, average)
            torch._foreach_add_(rest, apart)
        self.updates += 1
        return decay

    def _groups(self) -> Iterator[list[str]]:
        """The parameters' names, some at a time."""
        names, size = list[str](), 0
        for name, average in self.average.items():
            at_once = AT_ONCE * (1 if average.device.type == "cpu" else 32)
            if names and size + average.numel() > at_once:
                yield names
                names, size = [], 0
            names.append(name)
            size += average.numel()
        if names:
            yield names

    @torch.no_grad()
    def swap(self, module: LightningModule) -> None:
        """Swap the module's weights and the average; a second call undoes the first, bit for bit."""
        parameters = dict(module.named_parameters())
        for name, average in self.average.items():
            parameter, mean = local(parameters[name].detach()), local(average)
            kept = parameter.float().clone()
            parameter.copy_(mean)
            mean.copy_(kept)
        self.swapped = not self.swapped

    # After the module is on its device, and after a checkpoint was restored

    def _prepare(self, module: LightningModule) -> None:
        for kept in (self.average, self.compensation):
            rename_weights(module, kept)
        start = {name: p.detach().float() for name, p in module.named_parameters() if p.requires_grad}
        if self.average and self.average.keys() != start.keys():
            stray = sorted(self.average.keys() ^ start.keys())[0]
            raise ValueError(
                f"the checkpoint's EMA and the model differ in the parameter {stray}: "
                "resume with the model that the checkpoint was made with"
            )
        source = self.average or start
        self.average = {name: like_shards(source[name], of=p) for name, p in start.items()}
        # None in a fresh run, and in a checkpoint of an earlier version.
        rest = self.compensation or {name: torch.zeros_like(x) for name, x in source.items()}
        self.compensation = {name: like_shards(rest[name], of=p) for name, p in start.items()}
        self._prepared = True

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._prepared = False

    # Not in on_fit_start, which comes before a checkpoint is restored where the parameters are sharded.
    def on_sanity_check_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._prepare(module)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._prepared:
            self._prepare(module)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            decay = self.update(module)
            if self._step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                module.log("ema/decay", decay, rank_zero_only=True)

    # Evaluation on the average. Swapped in before any callback evaluates and out after all have: others evaluate in
    # the epoch hooks, which lie between these two, so the order of the callbacks does not matter.

    def _swap_in(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self.swapped:
            if not self._prepared:
                self._prepare(pl_module)
            self.swap(pl_module)

    def _swap_out(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.swapped:
            self.swap(pl_module)

    on_validation_start = on_test_start = on_predict_start = _swap_in
    on_validation_end = on_test_end = on_predict_end = _swap_out

    @torch.inference_mode()  # in which an evaluation has made the averages that it swapped in
    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._swap_out(trainer, module)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """A collective call if the parameters are sharded; then only rank 0 has the average."""
        kept = {"average": gathered(self.average), "compensation": gathered(self.compensation)}
        return {"updates": self.updates, **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        if type(self.updates) is not int or self.updates < 0:
            raise ValueError(
                f"the checkpoint's average had {self.updates} updates, which is no number of them: use another "
                "checkpoint"
            )
        self.average = {name: x.float() for name, x in state_dict["average"].items()}
        self.compensation = {name: x.float() for name, x in state_dict.get("compensation", {}).items()}

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Swap the two back in a checkpoint that is written during an evaluation."""
        if self.swapped:
            weights, state = checkpoint["state_dict"], checkpoint["callbacks"][self.state_key]
            average = {name: weights[name].float() for name in state["average"]}
            for name, raw in state["average"].items():
                weights[name] = raw.to(weights[name].dtype)
            state["average"] = average
