"""What `predict` is asked to draw: a class, a prompt, or prompts in turn by the samples' numbers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..conditioning import Conditioner
from ..conditioning.base import Asked, classes
from ..guidance import Guided
from ..modules import Generative

LARGEST = 100_000_000  # bytes of a file of prompts


@dataclass(frozen=True)
class Wanted:
    """The condition of each sample, by its number; `y` and `prompts` are None if none is asked for."""

    y: int | None
    prompts: list[str] | None
    conditioner: Conditioner

    def of(self, first: int, n: int) -> Asked | None:
        """What `generate` takes for samples number `first` … `first + n - 1`."""
        if self.prompts is None:
            return self.y
        texts = [self.prompts[i % len(self.prompts)] for i in range(first, first + n)]
        if "labels" not in self.conditioner.takes:
            return texts
        return {"caption": texts} if self.y is None else {"label": [self.y] * n, "caption": texts}

    @property
    def one(self) -> Asked | None:
        """What `generate` takes for all samples, of a class and one prompt; None if none is asked for."""
        if self.prompts is None:
            return self.y
        if "labels" not in self.conditioner.takes:
            return self.prompts[0]
        return {"caption": self.prompts[0], **({} if self.y is None else {"label": self.y})}

    def stated(self) -> dict[str, str]:
        """Its prompts, for the record of a file of all samples: the one, or a hash of several."""
        if self.prompts is None:
            return {}
        if len(self.prompts) == 1:
            return {"prompt": self.prompts[0]}
        return {"prompts": hashlib.blake2b("\n".join(self.prompts).encode()).hexdigest()[:32]}

    def prompt(self, number: int) -> str | None:
        """The prompt of a sample, or the held-out image's caption in its place; None for other conditions."""
        if self.prompts is not None:
            return self.prompts[number % len(self.prompts)]
        if self.y is not None:
            return None
        found = self.conditioner.texts(self.conditioner.default(torch.tensor([number])))
        return None if found is None else found[0]


def prompts(prompt: str | None, file: str | None) -> list[str] | None:
    """The prompts that the user gives, the one or those of a file; None if there are none.

    Raises:
        ValueError: if both are given, or the file holds none.
    """
    if prompt is not None and file is not None:
        raise ValueError(f"--prompt {prompt} and --prompts {file} are both given: leave one out")
    if file is not None:
        return _lines(file)
    if prompt is not None and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ValueError("--prompt holds bytes that are no text in UTF-8: give it in that encoding")
    return None if prompt is None else [prompt]


def wanted(model: Generative, guidance: Guided, y: int | str | None, texts: list[str] | None) -> Wanted:
    """What the user asks for, by class or by prompts.

    Raises:
        ValueError: if it is no condition of this model.
    """
    if model.shape[0] not in (1, 3):
        raise ValueError(
            f"the model draws {model.shape[0]} channels, but a picture has 1 or 3: call generate of the loaded model, "
            "which gives tensors, and decode them"
        )
    conditioner = model.labels(guidance)
    asked = {"labels": None if y is None else f"--y {y}", "captions": texts and f"the prompt {texts[0]}"}
    for kind, given in asked.items():
        if not given:
            continue
        if not conditioner.conditional:
            raise ValueError(f"{given} is given, but the model was trained without a condition: leave it out")
        if kind not in conditioner.takes:
            fix = "give --prompt or --prompts" if kind == "labels" else "give --y"
            raise ValueError(f"{given} is given, but the model takes {' and '.join(conditioner.takes)}: {fix}")
    number = None if y is None else int(classes(y, 1, model.class_names))
    found = Wanted(number, texts, conditioner)
    if (first := found.of(0, 1)) is not None:
        conditioner.check(conditioner.raw(first, 1))
    return found


def _lines(path: str) -> list[str]:
    """The prompts of a file, one a line; empty lines are left out.

    Raises:
        ValueError: if there are none, or it is no text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--prompts is {path}, which is no file: give one of prompts, one a line")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes, but prompts are {LARGEST:,} at most: divide it")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start}): save it as such") from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return found
