"""What a peer is asked to do."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Task(NamedTuple):
    """What is trained on, and how: the same for all.

    `precision` is "float32" or "bfloat16", the latter by autocast; `steps` how many optimizer steps there will be, and
    `turn` how many of them are taken at once when sides take turns.
    """

    shape: tuple[int, int, int]
    batch: int
    precision: str
    device: str
    steps: int
    flip: bool
    turn: int = 1


class Peer(ABC):
    """One project's loop."""

    name: str
    network: nn.Module

    @abstractmethod
    def step(self) -> None:
        """One optimizer step of its loop, everything that its loop does in one included."""

    @abstractmethod
    def sample(self, n: int, steps: int) -> Tensor:
        """Images (n, C, H, W) as bytes, of its averaged weights, by its ancestral sampler."""
