"""A picture of samples after every validation, each rank making its share of them."""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ... import images, loading, random
from ...guidance import Guidance, prepare
from ...modules.base.generative import Generative, generative
from ...samplers import Sampler
from .folder import save_picture


class SamplePicture(Callback, ABC):
    """Saves `<folder>/step=<n>.png` in the run's folder after every validation and `test`, and logs it under `key`.

    Args:
        n: how many samples.
        sampler: the reverse loop; None is the model's own: `Ancestral()`, or a student's.
        seed: of the samples; the same noise each time, so that one watches them form.
        guidance: the scale of `ClassifierFree`, or a `Guidance`; None is none.
    """

    key: str
    folder: str
    columns: int | None = None  # None makes the picture near-square

    def __init__(self, n: int, sampler: Sampler | None, seed: int, guidance: Guidance | float | None = None) -> None:
        if n < 1:
            raise ValueError(f"a picture of {n} samples shows nothing: give n ≥ 1")
        random.check_numbers(0, n)
        self.n, self.guidance = n, guidance
        self.sampler: Any = sampler
        self.seed = random.check_seed(seed, f"{type(self).__name__}'s seed")

    @abstractmethod
    def make(self, module: Generative, n: int, first: int) -> Tensor:
        """Samples number `first` … `first + n - 1`, (n, C, H, W), or a row of images each, (n, columns, C, H, W)."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        prepare(self.guidance, loading.module)
        generative(module, self).check(self.sampler, self.guidance)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        module = generative(pl_module, self)
        share = -(-self.n // trainer.world_size)  # the same on every rank, so that none waits for another
        made = images.to_uint8(self.make(module, share, trainer.global_rank * share))
        if trainer.world_size > 1:
            of_all: Any = module.all_gather(made)
            made = of_all.flatten(0, 1)
        if trainer.is_global_zero:
            shown = made[: self.n].flatten(0, -4).cpu()
            captions = module.captions(0, self.n, self.guidance) if made.ndim == 4 else None
            sheet = images.grid(shown, columns=self.columns, captions=captions)
            step = module.steps_done
            save_picture(trainer, f"{self.folder}/step={step}.png", sheet, self.key, step, shown, captions)

    on_test_epoch_end = on_validation_epoch_end
