"""What a denoiser is measured by in validation and `test`: its loss at uniform times, and the variational bound.

Both are sharded over the devices, and a round's draws are those of every other, so that rounds can be compared.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ...denoising import Denoiser
from ...first_stages import FirstStage
from ...likelihood import VLB
from ...objectives import Uniform
from ...random import Draw
from . import batches
from .bound import Bound
from .generative import Generative


class Evaluated(Generative):
    """A module that makes images by a denoiser, with its rounds of validation and test."""

    denoiser: Denoiser
    first_stage: FirstStage
    vlb: VLB
    seed: int
    feed: batches.Feed
    has_bound = True
    bound: Tensor  # (T,) after a test of pixels: the terms L_0 … L_{T-1} of the bound in bits/dim

    @abstractmethod
    def _losses(self, x_0: Tensor, t: Tensor, draw: Draw, y: Any = None) -> Tensor:
        """(B,) each example's loss at times t (B,) given its condition y."""

    def _evaluation_times(self, draw: Draw) -> Tensor:
        """(B,) the times at which examples are evaluated: uniform."""
        return Uniform()(self.denoiser.schedule, draw, len(draw.sample))[0]

    def _evaluated(self, batch: Any, batch_idx: int, stage: str) -> tuple[Tensor, Any, Tensor, Draw]:
        """x_0, y, t and the draw of a batch: the same in every round."""
        image, y = self.feed.take(self, batch, stage)
        sample = self.feed.numbers(self, stage, batch_idx, batches.size(batch))
        draw = Draw(self.seed, "evaluation", 0, sample)
        x_0 = self.first_stage.encode(image, draw)
        return x_0, y, self._evaluation_times(draw), draw

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x_0, y, t, draw = self._evaluated(batch, batch_idx, "validation")
        losses = self._losses(x_0, t, draw, y)
        self.log_mean("val/loss", losses)
        return {"losses": losses, "t": t, "sample": draw.sample}

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log_step()

    def on_test_start(self) -> None:
        measured = self.has_bound and not self.first_stage.latent
        self._bound = Bound(self.denoiser, self.vlb, self.levels) if measured else None

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x_0, y, t, draw = self._evaluated(batch, batch_idx, "test")
        self.log_mean("test/loss", self._losses(x_0, t, draw, y))
        if self._bound is not None:
            self._bound.add(x_0, self.conditioner(y), draw._replace(purpose="bound"))

    def on_test_epoch_end(self) -> None:
        self.log_step()
        if self._bound is not None:
            self.bound = self._bound.log(self)
