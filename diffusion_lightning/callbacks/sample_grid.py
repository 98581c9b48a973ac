"""A grid of samples after every validation: the same noise each time, so that one watches them form."""

from torch import Tensor

from ..guidance import Guidance
from ..modules.base.generative import Generative
from ..samplers import Sampler
from .base import SamplePicture


class SampleGrid(SamplePicture):
    """Saves `samples/step=<n>.png` in the run's folder and logs it as `samples`.

    Every rank makes its share of the samples.

    Args:
        n: how many samples.
        sampler: the reverse loop; None is the model's own: `Ancestral()`, or a student's.
        seed: of the samples.
        guidance: the scale of `ClassifierFree`, or a `Guidance`; None is none.
    """

    key = folder = "samples"

    def __init__(
        self, n: int = 64, sampler: Sampler | None = None, seed: int = 0, guidance: Guidance | float | None = None
    ) -> None:
        super().__init__(n, sampler, seed, guidance)

    def make(self, module: Generative, n: int, first: int) -> Tensor:
        return module.generate(n, self.sampler, guidance=self.guidance, seed=self.seed, first=first)
