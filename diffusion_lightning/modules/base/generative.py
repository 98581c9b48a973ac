"""The interface of a module that makes images, whatever its training objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ... import known, random
from ...conditioning.base import Asked, Conditioner
from ...distributed import internals
from ...guidance import Guided
from ...samplers import Sampler
from . import checks

HELD_OUT = {"fit": "val", "validate": "val", "test": "test"}  # whose captions samples have for which none is asked


class Generative(LightningModule, ABC):
    """A LightningModule that makes images: callbacks, `predict` and `load` use no more of it than this.

    Its `training_step` and `validation_step` may return a dict with `losses` (B,) and `t` (B,), each example's loss and
    time in 1 … T, if it has such times: then `T` is their number.
    """

    called = "Diffusion"  # in an error message, of what is needed
    shape: tuple[int, ...]  # (C, H, W) of one image
    conditioner: Conditioner
    T: int | None = None
    levels = 256  # values of a pixel, unless the data have others
    uses_y = True  # whether it learns from what the data say of an image; else nothing warns that it is left unused
    adapters: Any = None  # of a loaded model, `merging.Adapters` that its weights hold already
    class_names: list[str] | None = None  # of class 0, 1, …, if the data have names of them
    places: ClassVar[dict[str, str]] = {}  # where the weights of an argument lie, if not under its own name
    drawn = True  # whether its samples are what it is for
    has_bound = False  # whether it is a denoiser at all times: of a bound on the likelihood, and of edits

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    @abstractmethod
    def draw(self, seeds: Tensor, y: Tensor, sampler: Callable[..., Tensor] | None, guidance: Guided) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], each a function of its seed (B,) and condition y (B, …), in eval mode."""

    @torch.no_grad()
    def generate(
        self,
        n: int,
        sampler: Callable[..., Tensor] | None = None,
        y: Asked | None = None,
        guidance: Guided = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
    ) -> Tensor:
        """Samples number `first` … `first + n - 1` of a seed, (n, C, H, W) in [-1, 1], without dropout.

        In float32, or in float64 if the network's weights are; the network itself computes in the type of its weights.
        Sample number i depends on the seed and on i alone: bitwise at the same batch size, else to rounding.

        Args:
            n: how many.
            sampler: the reverse loop, a `Sampler` or what is called as one, if the module has one; None is its own.
            y: the samples' condition, or one for each of the n: a class by its number, or by its name among
                `class_names`, or a caption; None is the conditioner's choice by the samples' numbers: each class in
                turn, or the captions of held-out images.
            guidance: the scale of `ClassifierFree`, or a `Guidance`; None is none.
            seed: of all the noise, x_T included.
            first: the first sample's number.
            batch_size: work in blocks of numbers aligned to it, each made whole and cut to the samples requested;
                None makes the n samples in one batch.

        Raises:
            ValueError: if y is given to a model without condition, is not of n samples or no class of the model, if
                guidance is not possible, or if there is no such seed, or are no such samples.
        """
        random.check_seed(seed)
        checks.check_guidance(guidance, self)
        labels = self.labels(guidance)
        given = checks.requested(n, first, y, labels, self.class_names)
        whole = [(first, n)]
        if batch_size is not None:
            whole = [(a - a % batch_size, batch_size) for a, _ in random.blocks(first, n, batch_size)]
        made, training = [], [module for module in self.modules() if module.training]
        self.eval()
        try:
            for start, size in whole:
                number = torch.arange(start, start + size, device=self.device)
                if given is None:
                    of_block = labels.default(number)
                else:  # what fills the block beside the requested samples has any condition
                    of_block = given.to(self.device)[(number - first).clamp(0, n - 1)]
                made.append(self.draw(random.seeds(seed, "sample", number), of_block, sampler, guidance))
        finally:
            for module in training:
                module.training = True
        before = first - whole[0][0]
        return torch.cat(made)[before : before + n]

    def decoded(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of what a sampler's loop goes through; pixels are images already."""
        return x.clamp(-1, 1)

    def encoded(self, images: Tensor) -> Tensor:
        """What a sampler's loop goes through, of images (B, C, H, W) in [-1, 1]: the inverse of `decoded`."""
        return images

    def captions(self, first: int, n: int, guidance: Guided = None) -> list[str] | None:
        """The captions of samples number `first` … `first + n - 1` for which none is asked; None if they have none."""
        of = self.labels(guidance)
        return of.texts(of.default(torch.arange(first, first + n, device=self.device)))

    def labels(self, guidance: Guided) -> Conditioner:
        """Whose conditions samples have: the model's own, or its guidance's if the model has none."""
        own = None if self.conditioner.conditional else getattr(guidance, "conditioner", None)
        return own or self.conditioner

    @abstractmethod
    def check(self, sampler: Sampler | None, guidance: Guided = None) -> None:
        """Raise ValueError if images cannot be made with this sampler and guidance."""

    def own_sampler(self) -> Any:
        """The sampler that is taken if none is given."""
        return None

    def drawn_by(self) -> tuple[type[Sampler], dict[str, Any]] | None:
        """The class of the sampler that `predict` takes if none is given, and its arguments; None if it has none."""
        return None

    @abstractmethod
    def angles(self, sampler: Sampler) -> dict[int, float]:
        """The angle φ of noise and signal, tan φ = √(1 - ᾱ_t)/√ᾱ_t, at each time that a sampler visits, rising from 0.

        Raises:
            ValueError: if the module has no way from noise to image.
        """

    @abstractmethod
    def operations(self) -> int:
        """Floating-point operations of what is trained on one image, forward: two a multiplication and addition."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps behind the weights: of this training, or of the checkpoint they came from.

        This is where an evaluation's values, pictures and tables lie on the loggers' x-axis.
        """
        return self.global_step if self.fits else self._steps

    @property
    def fits(self) -> bool:
        """Whether a trainer is training it now."""
        return internals.has_trainer(self) and self.trainer.state.fn == TrainerFn.FITTING

    @property
    def logs(self) -> bool:
        """Whether what this training step logs is written, so that no other step pays for it."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Take the pixel levels, class names and captions of the data; raise ValueError if their images do not fit."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self.levels = getattr(data, "levels", self.levels)
        self.class_names = getattr(data, "class_names", None) or self.class_names
        checks.check_data(data, self.shape, self.conditioner, self.uses_y)
        if "captions" in self.conditioner.takes and getattr(data, "captions", None) is not None:
            if stage == "fit":
                self.conditioner.learn(data.captions_of("train"))
            if stage in HELD_OUT:
                self.conditioner.hold_out(data.conditions_of(HELD_OUT[stage]))

    def log_mean(self, name: str, losses: Tensor) -> None:
        """Logs the mean over all examples of an evaluation, on whatever number of devices."""
        # As a float: the devices' numbers are averaged, and Lightning rounds the average of whole numbers down.
        self.log(name, losses.mean(), on_epoch=True, sync_dist=True, batch_size=float(len(losses)))  # type: ignore[arg-type]

    def log_step(self) -> None:
        """Logs the steps done under Lightning's own name of the x-axis, after an evaluation."""
        self.log("step", float(self.steps_done), rank_zero_only=True)

    def on_train_end(self) -> None:
        self._steps = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._steps = checkpoint["global_step"]
        known.rename_weights(self, checkpoint.get("state_dict", {}))

    def predict_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Generate; a batch of `predict` holds the arguments of `generate`."""
        return self.generate(**batch)


def generative(module: LightningModule, asks: object) -> Generative:
    """Return the module, typed as one that makes images.

    Args:
        module: of a run.
        asks: the object that needs it, such as a callback.

    Raises:
        ValueError: if it makes none.
    """
    if not isinstance(module, Generative):
        raise ValueError(
            f"{type(asks).__name__} needs a module that makes images, but {type(module).__name__} makes none: leave "
            f"{type(asks).__name__} out, or derive the module from diffusion_lightning.modules.Generative"
        )
    return module
