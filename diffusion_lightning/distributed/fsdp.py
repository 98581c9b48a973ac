"""Parameters in shards (FSDP2): every rank holds a shard of each, gathered when needed.

In training a block is gathered for its forward and its backward pass, which all processes run alike. An evaluation
calls the network a different number of times on each process, so it calls a whole copy, gathered once at its start.

Paper: PyTorch FSDP: experiences on scaling fully sharded data parallel. Zhao, Gu, Varma, and others, 2023,
arXiv 2304.11277, whose flat parameters FSDP2 replaces by a shard of each.
"""

import copy

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from . import internals


def blocks(network: nn.Module) -> list[nn.Module]:
    """The members of a network's lists of modules that have parameters: a DiT's blocks, those of a U-Net's levels."""
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return [block for members in lists for block in members if any(True for _ in block.parameters())]


def shards(trainer: Trainer) -> bool:
    """Whether the run's parameters are sharded."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def prepare(trainer: Trainer) -> None:
    """Before the process group is set up, shard over all devices; checkpoints are one file for any number of them."""
    internals.shard_over_all(trainer.strategy, trainer.num_nodes * trainer.num_devices)


class Sharded:
    """A part of a module, sharded in its place, and the whole copy of it that takes its place in evaluations.

    The copy is no submodule: parameters, optimizer and checkpoints see the shards alone.

    Args:
        owner: the module.
        name: its attribute that is sharded; the members of its lists of modules, such as a transformer's blocks, are
            gathered one at a time.
        mesh: the processes.
    """

    def __init__(self, owner: nn.Module, name: str, mesh: DeviceMesh) -> None:
        self.owner, self.name = owner, name
        self.part: nn.Module = getattr(owner, name)
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in self.part.parameters()}
        self._pattern = copy.deepcopy(self.part, empty)
        for parameter in self.part.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 cuts no channels-last weights
        for block in blocks(self.part):
            fully_shard(block, mesh=mesh)
        fully_shard(self.part, mesh=mesh)

    @torch.no_grad()
    def gather(self) -> None:
        """A collective call: the copy takes the part's place."""
        gathered = {name: whole(p.detach()) for name, p in self.part.named_parameters(remove_duplicate=False)}
        gathered |= {name: x.clone() for name, x in self.part.named_buffers()}
        found = copy.deepcopy(self._pattern)
        for path, module in found.named_modules():
            prefix = f"{path}." if path else ""
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                value = gathered[prefix + name].contiguous(memory_format=_layout(parameter))
                setattr(module, name, nn.Parameter(value, requires_grad=False))
            for name, _ in list(module.named_buffers(recurse=False)):
                setattr(module, name, gathered[prefix + name])
        # Found before the module's own parts, among which the shards stay.
        vars(self.owner)[self.name] = found.eval()

    def release(self) -> None:
        """The part takes its place again."""
        vars(self.owner).pop(self.name, None)


class WholeInEvaluations(Callback):
    """Run evaluations on whole weights, once other callbacks have swapped in those to evaluate."""

    def __init__(self) -> None:
        self.parts: list[Sharded] = []

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for part in self.parts:
            part.gather()

    def _release(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for part in self.parts:
            part.release()

    on_validation_start = on_test_start = on_predict_start = _gather
    on_validation_end = on_test_end = on_predict_end = _release


def _layout(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def shard(module: nn.Module, parts: list[tuple[nn.Module, str]], mesh: DeviceMesh) -> list[Sharded]:
    """Shards the parts of a module, each the attribute of an owner, in which all of its parameters lie.

    Raises:
        ValueError: if one lies elsewhere: its gradients would not be reduced.
    """
    found = [
        Sharded(owner, name, mesh) for owner, name in parts if any(True for _ in getattr(owner, name).parameters())
    ]
    for name, parameter in module.named_parameters():
        if not isinstance(parameter, DTensor):
            raise ValueError(
                f"ModelParallelStrategy shards the network and the conditioner, but the parameter {name} lies in "
                "neither: move it there, or set trainer.strategy to ddp"
            )
    return found


def whole(x: Tensor) -> Tensor:
    """A tensor from its shards, a collective call; any other as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """For a checkpoint: tensors as they are, and sharded ones whole, on the CPU of rank 0 alone.

    A collective call, which gathers one after another.
    """
    found = {}
    for name, x in tensors.items():
        if not isinstance(x, DTensor):
            found[name] = x
        elif (together := whole(x)) is not None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            found[name] = together.cpu()
    return found


def local(x: Tensor) -> Tensor:
    """The shard of this rank, sharing its memory; any other tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def like_shards(x: Tensor, of: Tensor) -> Tensor:
    """A copy of a tensor that every rank has whole, on the device of another one and sharded like it."""
    if isinstance(of, DTensor) and not isinstance(x, DTensor):
        return distribute_tensor(x.to(of.device), of.device_mesh, of.placements, src_data_rank=None).clone()
    return x.clone() if isinstance(x, DTensor) else x.to(of.device, copy=True)
