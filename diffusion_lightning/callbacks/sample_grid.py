"""A picture of samples after every validation: the same noise each time, so that one watches them form."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from .. import images
from ..samplers import Ancestral, Sampler


class SampleGrid(Callback):
    """Saves `samples/step=<n>.png` in the run's folder and logs it as `samples`.

    Every rank makes its share of the samples.

    Args:
        n: how many samples.
        sampler: the reverse loop; None is `Ancestral()`.
        seed: of the samples.
    """

    def __init__(self, n: int = 64, sampler: Sampler | None = None, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"a grid of {n} samples is no picture: give n ≥ 1")
        self.n, self.sampler, self.seed = n, sampler or Ancestral(), seed
        self._restored = 0

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        self.sampler.times(module.schedule)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        self._restored = checkpoint["global_step"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        share = -(-self.n // trainer.world_size)
        samples = pl_module.generate(share, self.sampler, seed=self.seed, first=trainer.global_rank * share)
        if trainer.world_size > 1:
            samples = pl_module.all_gather(samples).flatten(0, 1)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step if trainer.state.fn == TrainerFn.FITTING else self._restored
        sheet = images.grid(images.to_uint8(samples[: self.n]).cpu())
        path = Path(trainer.default_root_dir) / "samples" / f"step={step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(sheet.squeeze(-1).numpy())
        picture.save(path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                # Lightning logs a validation's metrics at the step before the next: the picture belongs beside them.
                logger.log_image("samples", [picture], step=max(step - 1, 0), caption=[f"step {step}"])

    on_test_epoch_end = on_validation_epoch_end
