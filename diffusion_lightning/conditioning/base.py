"""What a network is given beside x_t and the time, and the interface of what makes it of the data's conditions.

What the data give, classes or captions, becomes raw conditions y: one tensor whose first dimension is the samples',
whatever it means, such as classes (B,) or padded token ids (B, L). So all that handles samples, dropout, blocks and
guidance, takes rows of y and needs to know no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..random import Draw

# One condition for all samples, or one for each; of several conditions a dict of these.
Asked = int | str | Sequence[int | str] | Tensor | Mapping[str, int | str | Sequence[int | str] | Tensor]
# The keys under which conditions may stand in a batch that is a dict, the first that it has.
LABEL = ("label", "labels", "y", "class", "classes", "target", "targets")
TEXT = ("caption", "captions", "text", "texts", "prompt", "prompts")
SHOWN = 10  # names of classes in a sentence


class Condition(NamedTuple):
    """The embedding of a condition: a vector added to that of the time, and tokens that are attended to.

    `vector` is (B, width), `tokens` (B, L, token_width), `mask` (B, L) is true where a token is real, which one of each
    row is; None if there are none, and for the mask if all tokens are real.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """The same with each of its tensors changed."""
        return Condition(*(None if x is None else change(x) for x in self))

    def real(self) -> Tensor:
        """The mask of its tokens (B, L), spelled out."""
        assert self.tokens is not None
        return self.mask if self.mask is not None else self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)

    def padded(self, length: int) -> "Condition":
        """The same with so many tokens, those at the end not real."""
        assert self.tokens is not None
        more = length - self.tokens.shape[1]
        if more == 0:
            return self
        return self._replace(tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.real(), (0, more)))


Embedded = Condition | Tensor | None  # a tensor (B, width) is a vector alone


def whole(c: Embedded) -> Condition:
    """The same as a `Condition`."""
    return c if isinstance(c, Condition) else Condition(c)


def simplest(c: Embedded) -> Embedded:
    """The vector alone if there is nothing else, as a network takes it that knows no tokens; None for nothing."""
    return c.vector if isinstance(c, Condition) and c.tokens is None else c


def cast(c: Embedded, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Embedded:
    """A condition with its numbers in a type, on a device; None leaves it. Whole numbers and the mask keep theirs."""
    if c is None:
        return None

    def to(x: Tensor) -> Tensor:
        return x.to(device or x.device, dtype if dtype and x.is_floating_point() else x.dtype)

    return c.each(to) if isinstance(c, Condition) else to(c)


def rows(c: Embedded, n: int) -> Embedded:
    """The condition (1, …) of one sample as that of n."""
    if c is None:
        return None

    def repeated(x: Tensor) -> Tensor:
        return x.expand(n, *x.shape[1:])

    return c.each(repeated) if isinstance(c, Condition) else repeated(c)


def joined(one: Embedded, other: Embedded) -> Embedded:
    """The conditions of two batches as that of one; the shorter tokens are padded.

    Raises:
        ValueError: if one of them has tokens or a vector, and the other has none.
    """
    one, other = whole(one), whole(other)
    if [x is None for x in one[:2]] != [x is None for x in other[:2]]:
        raise ValueError("one of two conditions has tokens or a vector, and the other has none: give both the same")
    vector = None if one.vector is None else torch.cat([one.vector, other.vector])  # type: ignore[list-item]
    if one.tokens is None or other.tokens is None:
        return vector
    longest = max(one.tokens.shape[1], other.tokens.shape[1])
    pair = [c.padded(longest) for c in (one, other)]
    mask = None if all(c.mask is None for c in pair) else torch.cat([c.real() for c in pair])
    return Condition(vector, torch.cat([c.tokens for c in pair]), mask)  # type: ignore[misc]


def value(given: Mapping, keys: Sequence[str]) -> Any:
    """The value of the first of these keys that a dict has, in any case of letters; None if it has none."""
    own = {str(key).lower(): key for key in given}
    return next((given[own[key]] for key in keys if key in own), None)


class Conditioner(nn.Module, ABC):
    """Embed raw conditions y as c; give the null condition, and how often training drops y for it."""

    dropout = 0.0
    conditional = True  # whether the network takes a condition
    takes: tuple[str, ...] = ("labels",)  # what the data are to give, in words
    keys: tuple[str, ...] = LABEL  # where it stands in a batch that is a dict; none takes the whole dict

    def join(self, network: nn.Module) -> None:
        """Takes over what it was not given from the network that it serves, before anything else is called."""

    @abstractmethod
    def forward(self, y: Tensor) -> Embedded:
        """The embedding of raw conditions (B, …): (B, width), or a `Condition`; None if the network is given none."""

    def raw(self, asked: Any, n: int, names: Sequence[str] | None = None) -> Tensor:
        """The raw conditions (n, …) of n samples, of what a user or a data set gives for them.

        Args:
            asked: one for all samples, or one for each; a class is given by its number or its name.
            n: how many samples.
            names: those of class 0, 1, …; None if they have none.

        Raises:
            ValueError: if it is no condition of this kind.
        """
        return classes(asked, n, names)

    def of_batch(self, y: Any) -> Any:
        """The raw conditions of what a batch gives: itself, unless it has to be made a tensor, as captions have."""
        return y

    def texts(self, y: Tensor) -> list[str] | None:
        """What raw conditions (B, …) say in words, for a picture's caption; None if they have none."""
        return None

    def check(self, y: Tensor) -> None:
        """Raise ValueError if one of these is not a condition of this model; the message names it."""

    def check_training(self, y: Tensor) -> None:
        """Raise ValueError if a training set of these conditions (N,) teaches nothing about them."""

    def learn(self, captions: Sequence[str]) -> None:
        """Looks at the captions of a training set, once, before training."""

    def hold_out(self, given: Any) -> None:
        """Takes what the data give for held-out images as the conditions of samples for which the user gives none."""

    @abstractmethod
    def default(self, number: Tensor) -> Tensor:
        """The raw conditions (B, …) of samples of these numbers (B,), for which the user gives none."""

    def dropped(self, y: Tensor, draw: Draw) -> Tensor:
        """The conditions of a draw's samples, a fraction `dropout` of them replaced by the null condition."""
        if not self.dropout:
            return y
        return torch.where(_column(draw.fractions("label dropout").to(y.device) < self.dropout, y), self.null(1), y)

    def null(self, n: int) -> Tensor:
        """The null condition (n, …), on the device of the conditioner's weights.

        Raises:
            ValueError: if there is none, or training never gives it.
        """
        raise ValueError(f"guidance needs the null condition, but {type(self).__name__} has none: leave guidance out")


class Unconditional(Conditioner):
    """c = None: the network sees the image and the time alone."""

    conditional = False

    def forward(self, y: Tensor) -> None:
        return None

    def default(self, number: Tensor) -> Tensor:
        return torch.zeros_like(number)


def example(conditioner: Conditioner) -> Tensor:
    """The raw condition (1, …) of one sample, on the device of the conditioner's weights."""
    device = next((p.device for p in conditioner.parameters()), torch.device("cpu"))
    return conditioner.default(torch.zeros(1, dtype=torch.long, device=device))


def _column(chosen: Tensor, y: Tensor) -> Tensor:
    """(B,) seen as (B, 1, …), to choose among whole rows of y."""
    return chosen.view(-1, *(1,) * (y.ndim - 1))


def classes(y: Asked, n: int, names: Sequence[str] | None = None) -> Tensor:
    """(n,) classes of n samples: a class is given by its number, or by its name if the classes have names.

    Args:
        y: one for all samples, or one for each.
        n: how many samples.
        names: those of class 0, 1, …; None if they have none.

    Raises:
        ValueError: if there is no class of a name.
    """
    if isinstance(y, str):
        y = _number(y, names)
    elif isinstance(y, Sequence):
        y = [_number(one, names) if isinstance(one, str) else one for one in y]
    found = torch.as_tensor(y)
    if not found.is_floating_point() and found.dtype != torch.bool:
        found = found.long()
    return found if found.ndim else found.expand(n)


def _number(name: str, names: Sequence[str] | None) -> int:
    if not names:
        raise ValueError(f"y is {name}, but the model has no names of its classes: give the class by its number")
    if name in names:
        return list(names).index(name)
    folded = {other.casefold(): other for other in names}
    near = [folded[other] for other in get_close_matches(name.casefold(), folded)]
    known = ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
    raise ValueError(
        f"y is {name}, but the model has no class of this name"
        + (f" (did you mean {' or '.join(near)}?)" if near else "")
        + f": give one of {known}"
    )
