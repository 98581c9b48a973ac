"""The order of the images: a function of (seed, optimizer step), the same on any number of devices."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ... import random

Indices = tuple[int, Tensor]


class Order(DistributedSampler):
    """One rank's batches of indices, as pairs (epoch, indices).

    Shuffled, it is one endless stream of global batches, of which number k is trained in optimizer step k: what an
    iteration yields is the rest of the epoch that the run is in. So the step is the whole place in the data, a run
    that is resumed in mid-epoch repeats and skips nothing, and it may go on with another number of devices.

    A `DistributedSampler`, from which Lightning sees that the set is sharded over ranks already.

    Args:
        n: size of the set.
        batch_size: images a batch, per device.
        rank: this device's number.
        world: number of devices.
        accumulate: batches a device takes in one optimizer step.
        seed: of the shuffling; None keeps the set's order, and its last, smaller batches.
        step: returns the number of optimizer steps done.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int,
        world: int,
        accumulate: int = 1,
        seed: int | None = None,
        step: Callable[[], int] = int,
    ) -> None:
        self.n, self.batch_size, self.rank, self.world = n, batch_size, rank, world
        self.shuffle_seed, self.step = seed, step
        self.whole = batch_size * world * accumulate
        self.used = n - n % self.whole if seed is not None else n

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the epoch follows from the step."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(range(self.rank * self.batch_size, self.used, self.batch_size * self.world))

    def __iter__(self) -> Iterator[Indices]:
        if self.shuffle_seed is None:
            yield from self._cut(0, torch.arange(self.n), 0)
            return
        epoch, done = divmod(self.step(), self.used // self.whole)
        yield from self._cut(epoch, self._shuffled(epoch), done * self.whole)

    def index(self, step: int, sample: int) -> int:
        """Which image is number `sample` of the global batch of optimizer step `step`."""
        epoch, done = divmod(step, self.used // self.whole)
        return int(self._shuffled(epoch)[done * self.whole + sample])

    def _shuffled(self, epoch: int) -> Tensor:
        assert self.shuffle_seed is not None
        return random.permutation(self.n, self.shuffle_seed, "order", epoch)

    def _cut(self, epoch: int, indices: Tensor, start: int) -> Iterator[Indices]:
        for first in range(start + self.rank * self.batch_size, self.used, self.batch_size * self.world):
            yield epoch, indices[first : min(first + self.batch_size, self.used)]


def even(n: int, batch_size: int, world: int) -> int:
    """Images a batch, at most `batch_size`, so that each of `world` ranks has some in an evaluation of n ≥ `world`."""
    size = min(batch_size, -(-n // world))
    return size if (world - 1) * size < n else n // world


class Loader(DataLoader):
    """Resumable: its place is the optimizer step, which the checkpoint holds already."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        pass
