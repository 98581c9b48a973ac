"""Captions: the texts of a set's images, checked before training."""

import re
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 10_000  # characters of a caption
# A byte 0 is left by other encodings, half of a surrogate pair by broken escapes; tokenizers fail at both.
NO_TEXT = re.compile("[\0\ud800-\udfff]")
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def one_of(value: Any) -> Any:
    """The caption of an image: a text as it is, the first of a list of them; None if the list is empty."""
    return next(iter(value), None) if isinstance(value, list | tuple) else value


def check_captions(values: Sequence[Any], name: Callable[[int], str], where: str) -> list[str]:
    """The captions (N,) without space around them, with line breaks of one character.

    Args:
        values: the texts; None for an image that has none.
        name: what image number i is called in a message.
        where: what the set is called.

    Raises:
        ValueError: if one is missing, empty, longer than 10,000 characters, or no text.
    """
    texts = [_text(value, i, name) for i, value in enumerate(values)]
    for missing, what in ((None, "no caption"), ("", "an empty caption")):
        if count := texts.count(missing):
            raise ValueError(
                f"{count} of {len(texts)} images of {where} have {what}, the first of them {name(texts.index(missing))}"
                ": write a text for each, remove these images, or leave captions out"
            )
    return texts  # type: ignore[return-value]  # none is None


def _text(value: Any, i: int, name: Callable[[int], str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"the caption of {name(i)} is {type(value).__name__}, but a caption is text: give it as that")
    text = value.replace("\r\n", "\n").strip()
    if len(text) > LONGEST:
        raise ValueError(
            f"the caption of {name(i)} has {len(text):,} characters, but a caption has at most {LONGEST:,}: shorten it"
        )
    if NO_TEXT.search(text):
        raise ValueError(f"the caption of {name(i)} holds a character that no text has: save it as UTF-8")
    return text


def sided(captions: Sequence[str]) -> int:
    """How many of the captions say left or right, which a mirrored image makes wrong."""
    return sum(SIDES.search(caption) is not None for caption in captions)
