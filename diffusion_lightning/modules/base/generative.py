"""What a module that makes images promises to all that looks at it from outside, whatever it was trained by."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ...conditioning import Asked
from ...samplers import Sampler


class Generative(LightningModule, ABC):
    """A LightningModule that makes images: callbacks, `predict` and `load` know no more of it than this.

    Its `training_step` and `validation_step` may return a dict with `losses` (B,) and `t` (B,), each example's loss and
    time in 1 … T, if it has such times: then `T` is their number.
    """

    shape: tuple[int, ...]  # (C, H, W) of one image
    T: int | None = None
    levels = 256  # values of a pixel, unless the data have others
    class_names: list[str] | None = None  # of class 0, 1, …, if the data have names of them

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    @abstractmethod
    def generate(
        self,
        n: int,
        sampler: Callable[..., Tensor] | None = None,
        y: Asked | None = None,
        guidance: float | Callable[[nn.Module], nn.Module] | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
    ) -> Tensor:
        """Samples number `first` … `first + n - 1` of a seed, (n, C, H, W) in [-1, 1].

        Sample number i depends on the seed and on i alone: bitwise at the same batch size, else to rounding.

        Args:
            n: how many.
            sampler: the reverse loop, a `Sampler` or what is called as one, if the module has one; None is its own.
            y: the samples' condition, or (n,) one for each; None is the module's choice by the samples' numbers.
            guidance: its scale, or what wraps the denoiser; None is none.
            seed: of all the noise.
            first: the first sample's number.
            batch_size: work in blocks of numbers aligned to it; None makes the n samples in one batch.
        """

    @abstractmethod
    def check(self, sampler: Sampler | None) -> None:
        """Raise ValueError if images cannot be made by this sampler."""

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
        """Optimizer steps that the weights have seen, in training or by the checkpoint they came from.

        This is where an evaluation's values, pictures and tables lie on the loggers' x-axis.
        """
        return self.global_step if self.fits else self._steps

    @property
    def fits(self) -> bool:
        """Whether a trainer trains it now."""
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def on_train_end(self) -> None:
        self._steps = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._steps = checkpoint["global_step"]

    def predict_step(self, batch: dict, batch_idx: int) -> Tensor:
        """A batch of `predict` is what to ask of `generate`."""
        return self.generate(**batch)


def generative(module: LightningModule, asks: object) -> Generative:
    """The module as what makes images.

    Args:
        module: of a run.
        asks: who needs one, such as a callback.

    Raises:
        ValueError: if it makes none.
    """
    if not isinstance(module, Generative):
        raise ValueError(
            f"{type(asks).__name__} needs a module that makes images, but {type(module).__name__} makes none: leave "
            f"{type(asks).__name__} out, or derive the module from diffusion_lightning.modules.Generative"
        )
    return module
