"""The layout of a published checkpoint: which of its tensors is which of ours, and its shape there; both ways.

A layout is a list of pairs, each of one of our tensors and the one or several of theirs that hold the same numbers:

    theirs, stacked along the first dimension  →  (heads, 3, …) rows put in the order (3, heads, …)  →  our shape

No number is computed, so weights go there and back unchanged.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
PACKAGE = __name__.partition(".")[0]


class Pair(NamedTuple):
    """One of our tensors and what holds its numbers there.

    Args:
        ours: its name in the network, or in the conditioner.
        theirs: names, several if they are stacked: our queries, keys and values are one tensor.
        ndim: dimensions of theirs, if they are fewer than ours (a 1×1 convolution as a linear map).
        heads: the number of heads, if theirs have the rows of queries, keys and values head by head.
        sizes: rows of each of theirs, if they differ.
    """

    ours: str
    theirs: tuple[str, ...]
    ndim: int | None = None
    heads: int | None = None
    sizes: tuple[int, ...] | None = None

    def read(self, weights: Weights, shape: torch.Size) -> Tensor:
        """Our tensor of this shape."""
        x = torch.cat([weights[name] for name in self.theirs])
        if self.heads:
            x = x.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return x.reshape(shape)

    def write(self, x: Tensor) -> dict[str, Tensor]:
        """Their tensors."""
        if self.heads:
            x = x.unflatten(0, (3, self.heads, -1)).transpose(0, 1).flatten(0, 2)
        if self.ndim is not None:
            x = x.reshape(*x.shape[: self.ndim], *(1,) * (self.ndim - x.ndim))
        parts = x.split(list(self.sizes)) if self.sizes else x.chunk(len(self.theirs))
        return {name: part.contiguous() for name, part in zip(self.theirs, parts, strict=True)}


class Layout(ABC):
    """How one project stores a network's weights."""

    name: str
    network: type[nn.Module]  # ours
    labels: str  # their table of the classes' embeddings, which here is the conditioner's

    def stores(self, network: nn.Module) -> bool:
        """Whether it is a layout of such a network."""
        return isinstance(network, self.network)

    @abstractmethod
    def pairs(self, network: Any) -> Iterator[Pair]:
        """One for each parameter of the network."""

    def derived(self, network: Any) -> Weights:
        """Tensors of theirs that hold no weights of ours: recomputed, and not read."""
        return {}

    def read(self, network: nn.Module, weights: Weights) -> dict[str, Tensor]:
        """Our `state_dict` of what they stored.

        Raises:
            ValueError: if a tensor is missing, left over or of another size, or a parameter has no place there.
        """
        shapes = {name: p.shape for name, p in network.named_parameters()}
        found, left = {}, set(weights) - set(self.derived(network))
        for pair in self._all_pairs(network):
            for name in pair.theirs:
                if name not in weights:
                    raise ValueError(
                        f"the {self.name} checkpoint has no {name}, which would be the network's {pair.ours}: describe "
                        "the network that it was trained with"
                    )
            there, here = sum(weights[name].numel() for name in pair.theirs), shapes[pair.ours].numel()
            if there != here:
                raise ValueError(
                    f"the {self.name} checkpoint's {pair.theirs[0]} has shape {list(weights[pair.theirs[0]].shape)}, "
                    f"but the network's {pair.ours} has {list(shapes[pair.ours])}: describe the network that it was "
                    "trained with"
                )
            found[pair.ours] = pair.read(weights, shapes[pair.ours])
            left -= set(pair.theirs)
        if left:
            raise ValueError(
                f"the {self.name} checkpoint has {sorted(left)[0]}, for which the network has no place: describe the "
                "network that it was trained with"
            )
        return found

    def _all_pairs(self, network: nn.Module) -> list[Pair]:
        pairs = list(self.pairs(network))
        lost = {name for name, _ in network.named_parameters()} - {pair.ours for pair in pairs}
        if lost:
            raise ValueError(
                f"the network's {min(lost)} has no place in a checkpoint of {self.name}: use a network without it, or "
                "this package's own checkpoints"
            )
        return pairs

    def write(self, network: nn.Module, weights: Weights) -> dict[str, Tensor]:
        """Their `state_dict` of ours.

        Raises:
            ValueError: if it has no place for a parameter.
        """
        written = {name: x.clone() for name, x in self.derived(network).items()}
        for pair in self._all_pairs(network):
            written.update(pair.write(weights[pair.ours]))
        return written


def parts(ours: str, theirs: str, ndim: int | None = None, heads: int | None = None) -> Iterator[Pair]:
    """The pairs of a weight and its bias."""
    yield Pair(f"{ours}.weight", (f"{theirs}.weight",), ndim, heads)
    yield Pair(f"{ours}.bias", (f"{theirs}.bias",), None, heads)


def joined(pairs: Iterable[Pair], part: str, ours: str, sizes: Sequence[int]) -> Iterator[Pair]:
    """The pairs, those of every `….part` as one of ours: its rows are theirs in order, in these numbers."""
    together: dict[str, list[str]] = {}
    for pair in pairs:
        owner, _, kind = pair.ours.rpartition(".")
        if owner.endswith(f".{part}"):
            together.setdefault(kind, []).extend(pair.theirs)
        else:
            yield pair
    for kind, theirs in together.items():
        yield Pair(f"{ours}.{kind}", tuple(theirs), sizes=tuple(sizes))


def described_model(shape: list[int], parts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A `Diffusion` of such objects, each a class of this package and its arguments, as a configuration has it."""
    objects = {key: {"class_path": f"{PACKAGE}.{name}", "init_args": values} for key, (name, values) in parts.items()}
    return {"class_path": f"{PACKAGE}.modules.Diffusion", "init_args": {"shape": shape, **objects}}
