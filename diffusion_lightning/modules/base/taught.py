"""A denoiser that is trained out of another one: what it starts from, and the copy of it that stays its teacher."""

import copy
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import records
from ...denoising import Denoiser, Epsilon, Parameterization
from ...distributed import fsdp
from ...likelihood import VLB
from ...samplers import Sampler
from ...schedules import Schedule
from . import compiling, optimizers
from .trains_denoiser import TrainsDenoiser


class Taught(TrainsDenoiser):
    """A module that starts from a trained model by `begin`, and may keep a copy of its network, the teacher.

    The teacher is in each checkpoint, so that nothing but the file is needed to go on. It shares the conditioner, which
    is then not trained.
    """

    has_bound = False
    vlb = VLB()
    teacher: Denoiser | None
    _begun = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.teacher = None

    def keep_teacher(self, network: nn.Module) -> None:
        """Makes a teacher of the network that the student has."""
        own = self.denoiser
        self.teacher = Denoiser(copy.deepcopy(network), own.schedule, own.parameterization, own.rescale_timesteps)
        self.teacher.requires_grad_(False)
        self.conditioner.requires_grad_(False)

    def begin(self, config: Any, path: str | Path) -> None:
        """Makes the weights that it has just got from a checkpoint those of the teacher too.

        Args:
            config: the checkpoint's; None if it has none.
            path: of the checkpoint.

        Raises:
            ValueError: if the checkpoint's model has another schedule or parameterization.
        """
        if config is not None:
            check_start(config["model"].get("init_args", {}), self.denoiser, path)
        self.teach()
        self._begun = True

    def teach(self) -> None:
        """Makes the student's weights the teacher's."""
        if self.teacher is not None:
            self.teacher.network.load_state_dict(self.denoiser.network.state_dict())

    def own_sampler(self) -> Sampler:
        """The sampler that the student is made for."""
        kind, arguments = self.drawn_by()
        return kind(**arguments)

    @abstractmethod
    def drawn_by(self) -> tuple[type[Sampler], dict[str, Any]]:
        """The class of this sampler, and its arguments."""

    def train(self, mode: bool = True) -> Any:
        """Sets the mode of the student; a teacher and the conditioner that it shares stay without dropout."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
            self.conditioner.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore; the teacher is among what is restored."""
        super().on_load_checkpoint(checkpoint)
        self._begun = True

    def configure_optimizers(self) -> Any:
        return optimizers.configured(self, self.optimizer([p for p in self.parameters() if p.requires_grad]))

    def configure_callbacks(self) -> list:
        if self.teacher is not None and fsdp.shards(self.trainer):
            raise ValueError(
                "the strategy shards the parameters, but a student and its teacher are held whole: set "
                "trainer.strategy to ddp"
            )
        return super().configure_callbacks()

    def configure_model(self) -> None:
        super().configure_model()
        if self.compiles and self.teacher is not None:
            compiling.compile_network(self.teacher.network, self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Raise ValueError if there should be a teacher, and this is neither its start nor a run that goes on."""
        super().on_fit_start()
        if self.teacher is not None and not self._begun:
            raise ValueError(
                f"{type(self).__name__} starts from its teacher, but this run starts from random weights: give the "
                "checkpoint of a trained model by --init_from, or in Python by diffusion_lightning.loading.start_from"
            )


def check_start(spec: Any, student: Denoiser, path: str | Path) -> None:
    """Raise ValueError if a checkpoint's model predicts something else than the student, or is fed other times.

    `EDM` and `Flow` feed the noise's level itself, so they may go on over another table of levels. Classes of the
    user's own are read where the student's are of the same modules.
    """
    given, own = spec.get("parameterization"), student.parameterization
    trust = {type(part).__module__ for part in (own, student.schedule) if not records.ours(type(part))}
    if not isinstance(spec.get("schedule"), dict | str):
        return  # of a module of another kind, or of the user's own
    theirs = Epsilon() if given is None else records.read(given, Parameterization, f"model in {path}", trust).make()
    if (type(theirs), vars(theirs)) != (type(own), vars(own)):
        raise ValueError(
            f"the model of {path} predicts {_named(theirs)}, but the student {_named(own)}: they start from the same "
            "weights, so give the student the parameterization of that model"
        )
    if type(own).time is not Parameterization.time:
        return
    schedule = records.read(spec["schedule"], Schedule, f"model.schedule in {path}", trust).make()
    if not torch.equal(schedule.alpha_bar.cpu(), student.schedule.alpha_bar.cpu()):
        raise ValueError(
            f"the model of {path} was trained on {_named(schedule)} with T = {schedule.T}, but the student's schedule "
            f"is {_named(student.schedule)} with T = {student.schedule.T}, or of other arguments: give the student the "
            "schedule of that model"
        )


def _named(of: Any) -> str:
    return type(of).__name__
