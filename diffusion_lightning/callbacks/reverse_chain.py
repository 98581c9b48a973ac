"""The way from noise to image after every validation: a few samples, each a strip of its x_t."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..guidance import Guidance
from ..modules.base.generative import Generative, generative
from ..samplers import Sampler
from ..samplers.spacing import even
from .base import SamplePicture


class ReverseChain(SamplePicture):
    """Saves `chains/step=<n>.png` in the run's folder and logs it as `reverse_chain`.

    A row is a sample, with noise at the left and the image at the right: x_T, those of the sampler's x_t at which the
    angle φ of noise and signal, tan φ = √(1 - ᾱ_t)/√ᾱ_t, is nearest to evenly spaced ones, and the x_0 that `generate`
    returns. Even steps of a sampler would show little but noise, or little but the image, of all schedules and
    spacings but one. Where the sampler visits fewer times than there are frames, all are shown.

    Papers: Denoising diffusion probabilistic models. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, figure 2;
    Progressive distillation for fast sampling of diffusion models. Salimans, Ho, 2022, arXiv 2202.00512, appendix D,
    for φ.

    Args:
        n: how many samples, at least 1.
        frames: images in a row, at least 2.
        sampler: the reverse loop; None is the model's own: `Ancestral()`, or a student's.
        seed: of the samples.
        guidance: the scale of `ClassifierFree`, or a `Guidance`; None is none.
    """

    key, folder = "reverse_chain", "chains"

    def __init__(
        self,
        n: int = 8,
        frames: int = 10,
        sampler: Sampler | None = None,
        seed: int = 0,
        guidance: Guidance | float | None = None,
    ) -> None:
        super().__init__(n, sampler, seed, guidance)
        if frames < 2:
            raise ValueError(f"a chain of {frames} frames has no way from noise to image: give frames ≥ 2")
        self.frames = frames

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        self._choose(generative(module, self))

    def _choose(self, module: Generative) -> Any:
        """The sampler, whose times are looked at anew: a student's has fewer after each stage."""
        sampler = self.sampler or module.own_sampler()
        self._shown = set(even(module.angles(sampler), self.frames))
        self.columns = len(self._shown)
        return sampler

    def make(self, module: Generative, n: int, first: int) -> Tensor:
        frames: list[Tensor] = []

        def watch(t: int, x_t: Tensor) -> None:
            if t in self._shown:
                frames.append(module.decoded(x_t))

        watched = partial(self._choose(module), watch=watch)
        module.generate(n, watched, guidance=self.guidance, seed=self.seed, first=first)
        return torch.stack(frames, 1)
