"""Captions as conditions: tokens, and a small transformer over them that is trained along with the network.

A caption is cut into tokens: whole words, the most frequent ones of the training captions, or bytes. Row numbers of the
tokens' table, all captions padded to one length, are the raw conditions (B, length):

    [token, token, …, END, PAD, …, PAD],    the null condition [NULL, PAD, …, PAD]

so that a condition has at least one real token, and attention is never over nothing. The vocabulary is a part of the
weights, so that a checkpoint needs nothing beside it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Condition
from .captions import COUNTED, Captions, warn_cut

PAD, NULL, END, UNKNOWN, FIRST = range(5)  # rows of the table; words or bytes begin at FIRST
WORD = re.compile(r"\w+|[^\w\s]")  # a word, or a mark of punctuation
LONGEST = 32  # bytes of a word; what is longer is cut


class TextEncoder(Captions):
    """A small transformer over the tokens of a caption: tokens to attend to, and their mean as a vector.

    Layers are attention and an MLP of 4·width, each after a normalisation, over tokens with learned places. Padding is
    attended by no token, here or in the network.

    Args:
        words: rows for whole words, in lower case, the most frequent ones of the training captions; others are one
            unknown word. None cuts captions into the bytes of their UTF-8 instead.
        length: tokens of a caption, its end among them; longer ones are cut.
        width: features of a token; None asks the network for its `token_width`.
        layers: how many.
        heads: of each attention.
        dropout: fraction of training captions replaced by the null condition, in [0, 1).
        vector: also add the tokens' mean to the time's embedding, if the network states its `condition_width`.
    """

    padding = PAD
    vocabulary: Tensor

    def __init__(
        self,
        words: int | None = 512,
        length: int = 32,
        width: int | None = None,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        vector: bool = True,
    ) -> None:
        sizes = {"length": length, "layers": layers + 1, "heads": heads, "words": words or 1, "width": width or 1}
        if min(sizes.values()) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"words = {words}, length = {length}, width = {width}, layers = {layers}, heads = {heads} and dropout "
                f"= {dropout} describe no encoder: give whole numbers from 1 on, and dropout in [0, 1)"
            )
        super().__init__(length, dropout)
        self.words, self.layers, self.heads, self.vector = words, layers, heads, vector
        self.ids_known = FIRST + (256 if words is None else words)
        # Words as bytes of UTF-8, a row each, so that the vocabulary is a tensor like all that a checkpoint holds.
        self.register_buffer("vocabulary", torch.zeros(words or 0, LONGEST, dtype=torch.uint8))
        self.examples[:, 0] = NULL
        self._rows: dict[str, int] | None = None  # of the words, once the vocabulary has been read
        self.proj: nn.Linear | None = None
        if width is not None:
            self._make(width)

    # What is made for a network

    def join(self, network: nn.Module) -> None:
        """Makes tokens and vector as wide as the network takes them; a width that was given stays.

        Raises:
            ValueError: if the network takes no tokens.
        """
        if "table" not in self._modules:
            width = getattr(network, "token_width", None)
            if width is None:
                raise ValueError(
                    f"TextEncoder gives tokens, and {type(network).__name__} states no token_width to attend to them: "
                    "give the network a token_width, or take another network"
                )
            self._make(width)
        vector = getattr(network, "condition_width", None) if self.vector else None
        if vector is not None and self.proj is None:
            self.proj = nn.Linear(self.places.shape[1], vector)

    def _make(self, width: int) -> None:
        if width % self.heads:
            raise ValueError(
                f"the tokens' {width} features cannot be split among {self.heads} heads: give heads that divide them"
            )
        self.table = nn.Embedding(self.ids_known, width)
        self.places = nn.Parameter(torch.empty(self.length, width))
        for weight in (self.table.weight, self.places):
            nn.init.normal_(weight, std=0.02)
        self.blocks = nn.ModuleList([Layer(width, self.heads) for _ in range(self.layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, y: Tensor) -> Condition:
        """Tokens (B, length, width), their mask, and the vector, of token ids (B, length)."""
        mask = y != PAD  # (B, length)
        x = self.table(y) + self.places
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.proj is None:
            return Condition(None, x, mask)
        real = mask[:, :, None].to(x)
        return Condition(self.proj((x * real).sum(1) / real.sum(1)), x, mask)

    # Captions to token ids and back

    def _pieces(self, caption: str) -> Sequence[Any]:
        """Its words, or its bytes."""
        return caption.encode() if self.words is None else WORD.findall(caption.lower())

    def ids(self, caption: str) -> list[int]:
        pieces = self._pieces(caption)
        if self.words is None:
            ids = [FIRST + byte for byte in pieces]
        else:
            known = self._known
            ids = [known.get(_short(word), UNKNOWN) for word in pieces]
        return [*ids[: self.length - 1], END]

    def nothing(self) -> list[int]:
        return [NULL]

    @property
    def _known(self) -> dict[str, int]:
        """The row of each word."""
        if self._rows is None:
            words = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self.vocabulary.cpu().numpy()]
            self._rows = {word: FIRST + k for k, word in enumerate(words) if word}
        return self._rows

    def texts(self, y: Tensor) -> list[str]:
        """The captions again, words joined by spaces; "" is the null condition."""
        return [self._text(row) for row in y.tolist()]

    def _text(self, row: list[int]) -> str:
        tokens = [k for k in row if k >= UNKNOWN]
        if self.words is None:
            return bytes(k - FIRST for k in tokens if k >= FIRST).decode(errors="replace")
        names = {k: word for word, k in self._known.items()}
        return re.sub(r" ([.,;:!?)])", r"\1", " ".join(names.get(k, "*") for k in tokens))

    # The data

    def learn(self, captions: Sequence[str]) -> None:
        """Fill the vocabulary, unless it is, with the most frequent words, in the order of their letters.

        Warns if captions are cut.

        Raises:
            ValueError: if the captions have no words.
        """
        warn_cut((len(self._pieces(caption)) + 1 for caption in captions[:COUNTED]), self.length)
        if self.words is None or self._known:
            return
        count = Counter(_short(word) for caption in captions for word in WORD.findall(caption.lower()))
        if not count:
            raise ValueError("the training captions hold no word: give captions, or leave the conditioner out")
        frequent = sorted(count, key=lambda word: (-count[word], word))[: self.words]
        for row, word in zip(self.vocabulary, sorted(frequent), strict=False):
            letters = torch.tensor(list(word.encode()), dtype=torch.uint8)
            row[: len(letters)] = letters.to(row.device)
        self._rows = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._rows = None  # the words are now the checkpoint's


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), over tokens (B, L, width); masked ones are attended by none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp1, self.mlp2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])  # (B, heads, L, width/heads)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


def _short(word: str) -> str:
    """A word of at most `LONGEST` bytes of UTF-8."""
    return word.encode()[:LONGEST].decode(errors="ignore")
