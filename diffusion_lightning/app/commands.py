"""The words of `predict` and `edit` that a page's controls ask for, and what a model's controls are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import known, samplers
from ..cli import drawing

PROGRAM = "diffusion-lightning"
# Of a shown command, with letters of its other words: a second request's goes elsewhere. The page's own lie elsewhere.
FOLDERS = {"predict": "samples", "edit": "edited"}
MOST = 64  # samples of one draw: one batch of `predict`
PROMPT = 2000  # characters
SAMPLERS = [
    name
    for name, kind in sorted(known.classes("samplers").items())
    if issubclass(kind, samplers.Sampler) and kind is not samplers.Sampler
]


@dataclass(frozen=True)
class Facts:
    """What a model can be asked for.

    Attributes:
        name: of the checkpoint, as the page calls it.
        path: of its file.
        shape: (C, H, W) of an image.
        sampler: the class and arguments of the sampler that it takes if none is given; None if it has none.
        steps: of that sampler, 1 … T; 0 without one.
        T: largest number of steps; 0 without a sampler.
        labels: the classes' names, or their numbers as text; empty if it takes none.
        captions: whether it takes a prompt.
        guided: whether classifier-free guidance is possible.
        edits: whether pictures can be edited, from noise of any level.
        inverts: whether its sampler can be run backwards, for an interpolation.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    sampler: dict[str, Any] | None = None
    steps: int = 0
    T: int = 0
    labels: tuple[str, ...] = ()
    captions: bool = False
    guided: bool = False
    edits: bool = False
    inverts: bool = False

    @property
    def sampler_name(self) -> str | None:
        """The class of its sampler."""
        return None if self.sampler is None else str(self.sampler["class_path"]).rpartition(".")[2]


@dataclass(frozen=True)
class Form:
    """What the page's controls say; `y` is a class's number, None for each in turn; guidance of 1 is none."""

    n: int = 16
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guidance: float = 1.0
    y: int | None = None
    prompt: str = ""
    negative: str = ""


@dataclass(frozen=True)
class Places:
    """Where it is computed, and which modules of the user's are trusted: the same in all words of a page."""

    device: torch.device
    trust: tuple[str, ...] = ()
    others: bool = field(default_factory=lambda: torch.accelerator.is_available())

    def of_trainer(self) -> list[str]:
        """The words for a trainer; none if there is but the CPU."""
        if self.device.type == "cpu":
            return ["--trainer.accelerator", "cpu"] if self.others else []
        kind = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        which = [] if self.device.type == "mps" else ["--trainer.devices", f"[{self.device.index or 0}]"]
        return ["--trainer.accelerator", kind, *which]

    def of_device(self) -> list[str]:
        """The words of a command with `--device`; none if there is but the CPU."""
        return ["--device", str(self.device)] if self.others else []

    def of_trust(self) -> list[str]:
        """The words of `--trust`."""
        return ["--trust", *self.trust] if self.trust else []


def facts(name: str, path: str, found: drawing.Opened, trust: tuple[str, ...]) -> Facts:
    """What an opened checkpoint's model can be asked for."""
    model, conditioner = found.model, found.model.conditioner
    sampler, steps, T, edits, inverts = None, 0, 0, False, False
    if (part := drawing.own_sampler(found.record, model, trust)) is not None:
        sampler = part.spec()
        T = int(model.schedule.T)
        made = part.make()
        steps, inverts = len(made.times(model.schedule)) - 1, made.deterministic
        edits = bool(getattr(model, "has_bound", False)) and model.drawn_by() is not None
    labels: tuple[str, ...] = ()
    captions = guided = False
    if conditioner.conditional:
        if "labels" in conditioner.takes:
            labels = tuple(model.class_names or map(str, range(_classes(conditioner))))
        captions = "captions" in conditioner.takes
        guided = sampler is not None and _has_null(conditioner)
    shape = tuple(model.shape)
    return Facts(name, path, shape, sampler, steps, T, labels, captions, guided, edits, inverts)


def predicting(asked: Form, of: Facts, places: Places) -> list[str]:
    """The words of `predict` for a form, of which a model takes what it can.

    Raises:
        ValueError: if the form holds what no word can carry.
    """
    check(asked)
    words = ["predict", "--ckpt_path", of.path, *places.of_trust(), "--n", str(asked.n)]
    return _into_own_folder([*words, *conditions(asked, of), *places.of_trainer()])


def editing(
    action: str,
    pictures: Sequence[Path],
    options: Mapping[str, object],
    asked: Form,
    of: Facts,
    places: Places,
) -> list[str]:
    """The words of `edit` for a form.

    Args:
        action: of `edit`.
        pictures: its files.
        options: of the action, by their names.
        asked: the sampler, the condition and the seed.
        of: the model's.
        places: the page's.

    Raises:
        ValueError: if the form holds what no word can carry.
    """
    check(asked)
    words = ["edit", action, *map(str, pictures)]
    for name, value in options.items():
        words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--ckpt_path", of.path, *places.of_trust()]
    return _into_own_folder([*words, *conditions(asked, of), *places.of_device()])


def _into_own_folder(words: list[str]) -> list[str]:
    letters = hashlib.blake2b("\0".join(words).encode(errors="surrogatepass"), digest_size=2).hexdigest()
    return [*words, "--out", f"{FOLDERS[words[0]]}_{letters}"]


def inverting(asked: Form, of: Facts) -> Form:
    """The form without a sampler that adds noise of its own, which has no way back: `edit` then takes the model's."""
    own = asked.sampler in (None, of.sampler_name)
    if of.inverts if own else known.classes("samplers")[str(asked.sampler)]().deterministic:
        return asked
    return replace(asked, sampler=None, steps=None)


def translated(asked: Form, own: Facts, of: Facts) -> Form:
    """A form of one checkpoint's controls for another one.

    That keeps its own sampler if the first does, takes no more steps than it has, and its class of the same name.

    Raises:
        ValueError: if it has no class of this name.
    """
    if (asked.sampler, asked.steps) == (own.sampler_name, own.steps):
        asked = replace(asked, sampler=None, steps=None)
    elif asked.steps and of.T:
        asked = replace(asked, steps=min(asked.steps, of.T))
    if asked.y is None or not of.labels or not 0 <= asked.y < len(own.labels):
        return asked
    if (name := own.labels[asked.y]) not in of.labels:
        raise ValueError(f"{of.name} has no class {name}, but {own.name} has: choose another, or each in turn")
    return replace(asked, y=of.labels.index(name))


def conditions(asked: Form, of: Facts) -> list[str]:
    """The words of a form that `predict` and `edit` share: seed, condition, sampler, guidance."""
    words = ["--seed", str(asked.seed)]
    if of.labels and asked.y is not None:
        words += ["--y", str(asked.y)]
    if of.captions and asked.prompt.strip():
        words += [f"--prompt={asked.prompt}"]
        if asked.negative.strip():
            words += [f"--negative_prompt={asked.negative}"]
    if of.guided and asked.guidance != 1:
        words += ["--guidance", f"{asked.guidance:g}"]
    return [*words, *_sampler(asked, of)]


def check(asked: Form) -> None:
    """Raise ValueError if a form holds what the controls of the page do not allow, or no word can carry."""
    if not 1 <= asked.n <= MOST:
        raise ValueError(f"{asked.n} samples are asked for, but a page draws 1 to {MOST}: run the command for more")
    for name, text in (("prompt", asked.prompt), ("negative prompt", asked.negative)):
        if len(text) > PROMPT:
            raise ValueError(f"the {name} has {len(text)} characters, but a page takes {PROMPT}: shorten it")
        if text.strip().lower() in ("null", "~") or text.startswith("~/"):
            raise ValueError(f"the {name} is {text}, which has another meaning in a command: write other words")


def _sampler(asked: Form, of: Facts) -> list[str]:
    """The words of a sampler; none if it is the run's own."""
    if of.sampler is None or asked.sampler is None:
        return []
    same = asked.sampler == of.sampler_name
    if same and asked.steps in (None, of.steps):
        return []
    if not same and asked.sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler {asked.sampler}: choose one of {', '.join(SAMPLERS)}")
    words = ["--sampler", str(of.sampler["class_path"]) if same and not _ours(of) else asked.sampler]
    if asked.steps is not None:
        words += ["--sampler.steps", str(asked.steps)]
    arguments = dict(of.sampler.get("init_args") or {})
    if not same:  # what any sampler of this model needs, such as no clipping of latents
        arguments = {key: arguments[key] for key in ("clip",) if key in arguments}
    arguments.pop("steps", None)
    kind = known.classes("samplers").get(asked.sampler)
    usual = {} if kind is None else {key: x.default for key, x in known.parameters(kind).items()}
    for key, value in arguments.items():
        if key not in usual or usual[key] != value:
            words.append(f"--sampler.{key}={_text(value)}")
    return words


def _text(value: Any) -> str:
    """An argument as a word says it: a class without arguments by its name."""
    if isinstance(value, dict) and not value.get("init_args") and "class_path" in value:
        path = str(value["class_path"])
        return path.rpartition(".")[2] if path.startswith(f"{__package__.partition('.')[0]}.") else path
    return value if isinstance(value, str) else json.dumps(value)


def _ours(of: Facts) -> bool:
    return of.sampler_name in SAMPLERS


def _classes(conditioner: Any) -> int:
    """How many classes a conditioner has, or one of its members."""
    for part in conditioner.modules():
        if isinstance(count := getattr(part, "classes", None), int):
            return count
    return 0


def _has_null(conditioner: Any) -> bool:
    try:
        conditioner.null(1)
    except ValueError:
        return False
    return True
