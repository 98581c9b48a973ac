"""What a module promises that trains a network against a discriminator, whatever their losses are."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ... import random
from ...distributed import fsdp
from ...guidance import Guided
from ...samplers import Sampler
from . import batches, checks, device, optimizers
from .generative import Generative


class TrainsPair(Generative):
    """A network and a discriminator under one loss: a step of one optimizer, of two groups of weights.

    The loss's gradient is the network's own for its weights and the discriminator's for its own. Images are made in one
    go, without a sampler.

    Args:
        optimizer: given the parameters as two groups, makes the optimizer of both networks.
        discriminator_rate: the discriminator's learning rate as a multiple of the optimizer's, above 0.
        lr_scheduler: given the optimizer, makes the schedule of the learning rate; None holds it constant.
        seed: the seed of all draws of the training.
    """

    makes: ClassVar[str]  # what it does in one go, in words: "a GAN makes an image"
    overflow: ClassVar[str]  # what float16 does not hold, in words
    keeps_rate = True  # a resumed run goes on with the checkpoint's schedule of the learning rate

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer],
        discriminator_rate: float,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 < discriminator_rate < float("inf"):
            raise ValueError(f"discriminator_rate is {discriminator_rate}, which is no rate: give a number above 0")
        self.optimizer, self.lr_scheduler, self.discriminator_rate = optimizer, lr_scheduler, discriminator_rate
        self.seed = random.check_seed(seed, "the model's seed")
        self.feed = batches.Feed()

    @abstractmethod
    def sides(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of the network, then the discriminator's, by what follows their gradient norm's name."""

    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """The networks, whose memory format is the device's."""

    # Evaluation, sharded over the devices

    @abstractmethod
    def validation_step(self, batch: Any, batch_idx: int, stage: str = "validation") -> Any:
        """Logs the losses of held-out images, of `validation` or `test`."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx, "test")

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log_step()

    def on_test_epoch_end(self) -> None:
        self.log_step()

    # The optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([{"params": parameters} for parameters in self.sides().values()])
        for group in optimizer.param_groups[1:]:
            group["lr"] = group["lr"] * self.discriminator_rate
        return optimizers.configured(self, optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        optimizers.clipped(self, optimizer, gradient_clip_val, gradient_clip_algorithm, self.sides())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore; a resumed run keeps the learning-rate schedule that it began with, unless `keeps_rate` is false."""
        super().on_load_checkpoint(checkpoint)
        if self.fits and self.keeps_rate:
            optimizers.check_resumed(self, checkpoint)

    # Images

    def check(self, sampler: Sampler | None, guidance: Guided = None) -> None:
        for name, given in (("sampler", sampler), ("guidance", guidance)):
            if given is not None:
                raise ValueError(f"a {name} is given, but {self.makes} in one go: leave {name} out")

    def angles(self, sampler: Sampler) -> dict[int, float]:
        raise ValueError(f"{self.makes} in one go, and has no times on the way: leave the chain out")

    # Before training starts

    def configure_callbacks(self) -> list:
        """Check the strategy: of Lightning's hooks the only one before the process group is set up.

        Raises:
            ValueError: if the strategy shards the parameters, or the precision is float16.
        """
        checks.check_strategy(self.trainer)
        if fsdp.shards(self.trainer):
            who = " ".join(self.makes.split()[:2])
            raise ValueError(
                f"the strategy shards the parameters, but {who} is trained whole: set trainer.strategy to ddp"
            )
        if str(self.trainer.precision).startswith("16"):
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}, but {self.overflow} number of float16: set it to "
                "bf16-mixed or 32-true"
            )
        return [self.feed]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for network in self.networks():
            device.prepare(network, self.trainer, False)
