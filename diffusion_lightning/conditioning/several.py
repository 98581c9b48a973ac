"""Several conditions at once, such as a class and a caption."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..random import Draw
from .base import Condition, Conditioner, Embedded, example, value, whole


class Several(Conditioner):
    """The sum of the vectors of several conditioners, and their tokens one after another.

    The data give a dict with a value for each, under one of the usual keys: `label`, `caption`, `text` and the like.
    Raw conditions (B, columns) are those of the conditioners side by side.

    Each conditioner's own dropout drops it alone, and that of this class drops all together: of independent draws alone
    the null condition of guidance, in which nothing is left, would be rare.

    Args:
        conditioners: two or more; those that give vectors give them of one width, and those that give tokens too.
        dropout: fraction of training examples in which all of them are replaced by their null conditions, in [0, 1);
            above 0 each of them needs a null condition, that is a dropout above 0.
    """

    keys = ()

    def __init__(self, conditioners: list[Conditioner], dropout: float = 0.1) -> None:
        super().__init__()
        if len(conditioners) < 2 or not 0 <= dropout < 1:
            raise ValueError(
                f"{len(conditioners)} conditioners with dropout {dropout} are not several: give two or more, and "
                "dropout in [0, 1)"
            )
        if without := next((x for x in conditioners if dropout and not x.dropout), None):
            raise ValueError(
                f"all conditions are dropped together in {dropout} of the examples, but {type(without).__name__} has "
                "dropout 0 and so no null condition: give it a dropout above 0, or Several a dropout of 0"
            )
        self.conditioners = nn.ModuleList(conditioners)
        self.dropout = dropout
        self.takes = tuple(dict.fromkeys(what for x in conditioners for what in x.takes))
        self._held_out: Tensor | None = None

    @property
    def _members(self) -> list[Any]:
        return list(self.conditioners)

    def join(self, network: nn.Module) -> None:
        for conditioner in self._members:
            conditioner.join(network)

    def forward(self, y: Tensor) -> Embedded:
        conditions = [whole(conditioner(part)) for conditioner, part in self._parts(y)]
        vectors = [c.vector for c in conditions if c.vector is not None]
        with_tokens = [c for c in conditions if c.tokens is not None]
        vector = torch.stack(vectors).sum(0) if vectors else None
        if not with_tokens:
            return vector
        tokens: list[Any] = [c.tokens for c in with_tokens]
        if all(c.mask is None for c in with_tokens):
            return Condition(vector, torch.cat(tokens, 1))
        return Condition(vector, torch.cat(tokens, 1), torch.cat([c.real() for c in with_tokens], 1))

    def _parts(self, y: Tensor) -> list[tuple[Any, Tensor]]:
        """Each conditioner with its own raw conditions, (B,) or (B, columns)."""
        cut = y.split([shape.numel() for shape in self._shapes], 1)
        triples = zip(self._members, cut, self._shapes, strict=True)
        return [(x, part.view(-1, *shape)) for x, part, shape in triples]

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        """Of one raw condition of each conditioner."""
        return [example(x).shape[1:] for x in self._members]

    def of_batch(self, y: Any) -> Any:
        if not isinstance(y, Mapping):
            return y
        found = [x.of_batch(_given(y, x)) for x in self._members]
        if len({len(part) for part in found}) > 1:
            counts = [f"{len(part)} {' and '.join(x.takes)}" for x, part in zip(self._members, found, strict=True)]
            raise ValueError(f"a batch holds {', '.join(counts)}: give one of each for each image")
        return _side_by_side(found)

    def raw(self, asked: Any, n: int, names: Sequence[str] | None = None) -> Tensor:
        """The raw conditions (n, columns) of a dict such as `{"label": 3, "caption": "a cat"}`.

        A number or name alone is the class, a text alone the caption if no conditioner takes classes; what is not given
        is the null condition.
        """
        if isinstance(asked, Tensor):
            return asked
        if not isinstance(asked, Mapping):
            asked = {"label" if "labels" in self.takes else "caption": asked}
        found = []
        for conditioner in self._members:
            own = value(asked, conditioner.keys)
            found.append(conditioner.null(n).cpu() if own is None else conditioner.raw(own, n, names))
        return _side_by_side(found)

    def texts(self, y: Tensor) -> list[str] | None:
        found = [x for x in (conditioner.texts(part) for conditioner, part in self._parts(y)) if x is not None]
        return [", ".join(of_one) for of_one in zip(*found, strict=True)] if found else None

    def check(self, y: Tensor) -> None:
        columns = sum(shape.numel() for shape in self._shapes)
        if not isinstance(y, Tensor) or list(y.shape[1:]) != [columns]:
            found = f"of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ValueError(
                f"the conditions are {found}, but Several takes a dict of them: let the data give "
                f"{' and '.join(self.takes)} under keys such as label and caption"
            )
        for conditioner, part in self._parts(y):
            conditioner.check(part)

    def learn(self, captions: Sequence[str]) -> None:
        for conditioner in self._members:
            if "captions" in conditioner.takes:
                conditioner.learn(captions)

    def hold_out(self, given: Any) -> None:
        self._held_out = self.of_batch(given).cpu()
        for conditioner in self._members:
            if (own := value(given, conditioner.keys)) is not None:
                conditioner.hold_out(own)

    def default(self, number: Tensor) -> Tensor:
        """The conditions of held-out images in turn; of a checkpoint what each conditioner has."""
        if self._held_out is not None:
            return self._held_out.to(number.device)[number % len(self._held_out)]
        return _side_by_side([conditioner.default(number) for conditioner in self._members])

    def dropped(self, y: Tensor, draw: Draw) -> Tensor:
        parts = []
        for k, (conditioner, part) in enumerate(self._parts(y)):
            parts.append(conditioner.dropped(part, draw._replace(purpose=f"{draw.purpose}: condition {k}")))
        return super().dropped(_side_by_side(parts), draw)

    def null(self, n: int) -> Tensor:
        return _side_by_side([conditioner.null(n) for conditioner in self._members])


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(B,) and (B, columns) in one (B, all columns)."""
    return torch.cat([part.view(len(part), -1) for part in parts], 1)


def _given(y: Mapping, conditioner: Any) -> Any:
    own = value(y, conditioner.keys)
    if own is None:
        raise ValueError(
            f"a batch holds the conditions {', '.join(map(str, y))}, but {type(conditioner).__name__} takes "
            f"{' and '.join(conditioner.takes)}: name them {' or '.join(conditioner.keys[:3])}"
        )
    return own
