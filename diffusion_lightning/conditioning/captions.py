"""What conditioners of texts have in common: padded token ids as raw conditions, and those that a checkpoint keeps."""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import TEXT, Conditioner

KEPT = 64  # captions of held-out images that a checkpoint keeps
COUNTED = 10_000  # captions of a training set that are looked at for their lengths


class Captions(Conditioner):
    """A conditioner of texts: raw conditions are token ids (B, length), padded at the end.

    Args:
        length: tokens of a caption; longer ones are cut.
        dropout: fraction of training captions replaced by the null condition, in [0, 1).
    """

    takes = ("captions",)
    keys = TEXT
    padding: int  # the id that is no token
    ids_known: int  # token ids are 0 … ids_known - 1
    examples: Tensor

    def __init__(self, length: int, dropout: float) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.register_buffer("examples", torch.full((KEPT, length), self.padding, dtype=torch.int32))
        self._held_out: Tensor | None = None

    @abstractmethod
    def ids(self, caption: str) -> list[int]:
        """The token ids of a caption, at least one and at most `length`."""

    @abstractmethod
    def nothing(self) -> list[int]:
        """The token ids of the null condition, at least one."""

    def rows(self, ids: Sequence[list[int]]) -> Tensor:
        """(n, length) int64: lists of token ids, padded."""
        found = torch.full((len(ids), self.length), self.padding, dtype=torch.long)
        for row, own in zip(found, ids, strict=True):
            row[: len(own)] = torch.tensor(own)
        return found

    def raw(self, asked: Any, n: int, names: Sequence[str] | None = None) -> Tensor:
        """Token ids (n, length) of one caption for all samples, or of one for each, or ids (n, length) as they are."""
        if isinstance(asked, Tensor):
            return asked
        captions = [asked] * n if isinstance(asked, str) else list(asked)
        if stray := next((x for x in captions if not isinstance(x, str)), None):
            raise ValueError(f"a caption is {stray!r}, a {type(stray).__name__}, but it is a text: give a string")
        return self.rows(list(map(self.ids, captions)))

    def of_batch(self, y: Any) -> Any:
        return y if isinstance(y, Tensor) else self.raw(y, len(y)).to(self.examples.device, non_blocking=True)

    def hold_out(self, given: Any) -> None:
        self._held_out = self.raw(given, len(given)).to(torch.int32)
        kept = self._held_out[:KEPT]
        self.examples.copy_(kept[torch.arange(KEPT) % len(kept)])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.examples.is_meta:
            self.check(self.examples.long())  # a file may say anything

    def default(self, number: Tensor) -> Tensor:
        """The captions of held-out images in turn; of a checkpoint the first 64 of its training's."""
        known = self.examples if self._held_out is None else self._held_out
        return known.to(number.device)[number % len(known)].long()

    def check(self, y: Tensor) -> None:
        if y.ndim != 2 or y.shape[1] != self.length or y.is_floating_point() or y.dtype == torch.bool:
            kind = str(y.dtype).removeprefix("torch.")
            raise ValueError(
                f"the conditions are {kind} of shape {list(y.shape)}, but {type(self).__name__} takes captions: let "
                f"the data give strings, or token ids of shape [B, {self.length}]"
            )
        if ((y < min(0, self.padding)) | (y >= self.ids_known)).any() or (y[:, 0] == self.padding).any():
            raise ValueError(
                f"a caption's token ids are {y.tolist()[0]} and the like, but they are below {self.ids_known:,}, and "
                f"{self.padding} for padding after them: give the captions as strings"
            )

    def null(self, n: int) -> Tensor:
        if self.dropout == 0:
            raise ValueError(
                "guidance needs the null condition, but the conditioner's dropout is 0, so that training "
                "never gave it: leave guidance out, or train with dropout above 0"
            )
        # Made where the weights are, so that a step copies nothing.
        found = torch.full((n, self.length), self.padding, device=self.examples.device)
        for k, token in enumerate(self.nothing()):
            found[:, k] = token
        return found


def warn_cut(lengths: Iterable[int], most: int) -> None:
    """Warns if training captions of these numbers of tokens are longer than a conditioner's `most`."""
    found = list(lengths)
    if cut := sum(n > most for n in found):
        warnings.warn(
            f"{cut} of {len(found)} training captions have more than {most} tokens and are cut: raise the "
            "conditioner's length to keep them whole",
            stacklevel=3,
        )
