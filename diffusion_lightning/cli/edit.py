"""`diffusion-lightning edit ACTION`: pictures changed, or explained, with a checkpoint's model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import edits, files, images, records
from ..callbacks.progress import of_steps
from . import devices, drawing, edited, pictures
from .commands import COMMANDS
from .edited import Result
from .errors import meant
from .options import ACTIONS
from .parser import Parser


class Given(NamedTuple):
    """What an action takes: its pictures by name, and its options with their defaults; `...` has none."""

    pictures: tuple[str, ...]
    options: dict[str, Any]


TAKES = {
    "interpolate": Given(("a", "b"), {"frames": 8}),
    "inpaint": Given(("image",), {"mask": ..., "n": 4, "resample": 10}),
    "vary": Given(("image",), {"strength": ..., "n": 4}),
    "invert": Given(("image",), {}),
    "denoise": Given(("image",), {"sigma": ...}),
    "film": Given((), {"n": 16, "frames": 48}),
}
OPTIONS: dict[str, tuple[type, str]] = {
    "mask": (str, "a picture: white is drawn anew, black is kept"),
    "strength": (float, "how much of the picture is given up, from 0, none, to 1, all"),
    "sigma": (float, "the deviation of the picture's noise, in pixels of [-1, 1]"),
    "n": (int, "how many samples"),
    "frames": (int, "images from one picture to the other, or of the film"),
    "resample": (int, "how often each step is taken, there and back"),
}


def main(words: list[str]) -> None:
    """Changes pictures with a checkpoint's model, or explains how it makes them."""
    action = words[1] if words[1:] and not words[1].startswith("-") else None
    if action is None and not {"-h", "--help"} & set(words):
        raise ValueError(f"no action is given: give one of {', '.join(ACTIONS)} first; edit --help says what they do")
    if action is not None and action not in ACTIONS:
        raise ValueError(f"there is no edit {action}{meant(action, ACTIONS)}: give one of {', '.join(ACTIONS)}")
    for word in words[1:]:
        if word.startswith("-") and Path(word).suffix.lower() in images.SUFFIXES and "=" not in word:
            raise ValueError(f"{word} begins as an option does: name the picture ./{word}, or --out=./{word}")
    parser = make_parser(action)
    config = parser.parse_args(words[1:] if action is None else words[2:])  # of no action it prints the help
    assert action is not None
    edited.check_name(config.out, action)
    asked = request(action, parser, config)
    given, made = asked.given, asked.made
    for said in asked.said:
        print(said)
    out = edited.Out(config.out, made, extra="x_T" if action == "invert" else None)
    if out.there(asked.count):
        print(f"{config.out} holds this already")
        return
    if action == "film":
        images.check_film(config.out, *images.grid_size(given["n"], asked.edit.model.shape))
    with of_steps(f"edit {action}", asked.edit.calls(action, **given)) as bar:

        def watch(t: int, x_t: Tensor) -> None:
            bar.update()

        asked.edit.watch = watch
        result = asked.make()
    out.write(result)
    for line in (*result.said, f"wrote {config.out}"):
        print(line)


@dataclass(frozen=True)
class Request:
    """What a command's parsed words ask for, read and checked; `made` states it in plain data."""

    action: str
    edit: edits.Edits
    images: list[Tensor]
    given: dict[str, Any]
    made: dict[str, Any]
    said: list[str]

    @property
    def count(self) -> int:
        """How many images it makes; of a film's frames there may be fewer."""
        return _count(self.action, self.given)

    def make(self) -> Result:
        """Makes them."""
        return CALLS[self.action](self.edit, *self.images, **self.given)


def request(action: str, parser: Parser, config: Any, open_: Callable[..., drawing.Opened] = drawing.opened) -> Request:
    """What the parsed words of an action ask for: what is wrong is said before any image is made.

    Args:
        action: one of `TAKES`.
        parser: it made the configuration.
        config: of the action's words.
        open_: reads a checkpoint; see `drawing.read`.

    Raises:
        ValueError: if a picture, the checkpoint or a number is none for the action.
    """
    given = {name: getattr(config, name) for name in TAKES[action].options}
    check_numbers(given)
    device = devices.chosen(config.device)
    drawn = drawing.read(parser, config, None if config.prompt is None else [config.prompt], open_)
    if config.sampler is None:
        drawn = _inverted(action, drawn)
    drawn.model.to(device)
    edit = edits.Edits(drawn.model, drawn.sampler, drawn.asked.one, drawn.guidance, config.seed)
    edit.check(action)
    paths = [getattr(config, name) for name in TAKES[action].pictures]
    read = [pictures.picture(path, drawn.model.shape) for path in paths]
    if "mask" in given:
        paths.append(given.pop("mask"))
        read.append(pictures.mask(paths[-1], drawn.model.shape, paths[0]))
        edits.check_known(read[-1][0], drawn.model.shape[1:])
    named = [
        {"name": Path(path).name, "digest": files.digest(path), "done": said.partition(": ")[2]}
        for path, (_, said) in zip(paths, read, strict=True)
    ]
    made = {"action": action, **drawn.made, **drawn.asked.stated(), **given}
    made |= {"shape": list(drawn.model.shape), "pictures": named}
    return Request(action, edit, [image for image, _ in read], given, made, [said for _, said in read])


def check_numbers(given: dict[str, Any]) -> None:
    """Raise ValueError if an option's number is out of its range."""
    for name, least in (("n", 1), ("resample", 1), ("frames", 2)):
        if (value := given.get(name, least)) < least:
            raise ValueError(f"--{name} is {value}, but there are at least {least}: give {least} or more")
    if not 0 <= (value := given.get("strength", 0)) <= 1:
        raise ValueError(f"--strength is {value}, but it runs from 0, the picture itself, to 1, a new one: give 0 … 1")
    if not 0 <= (value := given.get("sigma", 0)) < float("inf"):
        raise ValueError(f"--sigma is {value}, but it is the deviation of noise: give a number of at least 0")


def make_parser(action: str | None) -> Parser:
    """The parser of an action's words; of none, that of all options."""
    name = "edit" if action is None else f"edit {action}"
    parser = Parser(prog=f"diffusion-lightning {name}", description=COMMANDS["edit"].does)
    takes = TAKES[action] if action else Given((), dict.fromkeys(OPTIONS))
    for picture in takes.pictures:
        parser.add_argument(picture, type=str, help="a picture, of any kind that Pillow reads")
    for option, default in takes.options.items():
        kind, does = OPTIONS[option]
        more: Any = {"required": True} if default is ... else {"default": default}
        parser.add_argument(f"--{option}", type=kind if default is not None else kind | None, help=does, **more)
    drawing.add_options(parser)
    parser.add_argument("--out", type=str, required=True, help="one picture of all, a film, or a folder of pictures")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, …; cuda where there is one")
    return parser


def _inverted(action: str, drawn: drawing.Drawing) -> drawing.Drawing:
    """With the model's own sampler where nobody named one, and the run's cannot be taken backwards."""
    own = drawn.model.drawn_by()
    if action not in ("interpolate", "invert") or own is None or drawn.sampler.deterministic:
        return drawn
    part = records.Part(*own)
    return replace(drawn, sampler=part.make(), made={**drawn.made, "sampler": part.spec()})


def _count(action: str, given: dict[str, Any]) -> int:
    """How many images an action makes; of a film's frames there may be fewer."""
    return {"interpolate": given.get("frames", 0), "invert": 2, "denoise": 1, "film": 1}.get(action, given.get("n", 1))


def _interpolate(edit: edits.Edits, a: Tensor, b: Tensor, frames: int) -> Result:
    made = edit.interpolate(a, b, frames).cpu()
    errors = {"a": edits.rms(made[0], a), "b": edits.rms(made[-1], b)}
    names = ["A again", *(f"{k}/{frames - 1}" for k in range(1, frames - 1)), "B again"]
    said = f"made again, A is {errors['a']:.2f} grey levels off and B {errors['b']:.2f} (root mean square)"
    return Result(made, list(zip(names, made, strict=True)), min(frames, 8), {"rms_grey_levels": errors}, [said])


def _inpaint(edit: edits.Edits, image: Tensor, known: Tensor, n: int, resample: int) -> Result:
    made = edit.inpaint(image, known, n, resample).cpu()
    off = (images.to_uint8(made).int() - images.to_uint8(image).int()).abs() * known.int()
    shown = [("picture", image), ("hole", torch.where(known.bool(), image, torch.zeros_like(image)))]
    shown += [(f"sample {i}", x) for i, x in enumerate(made)]
    said = f"the largest change of a pixel that is kept is {int(off.max())} grey levels"
    return Result(made, shown, min(len(shown), 6), {"known_grey_levels": int(off.max())}, [said])


def _vary(edit: edits.Edits, image: Tensor, strength: float, n: int) -> Result:
    made = edit.vary(image, strength, n).cpu()
    times = edit.times(strength)
    changes = [edits.rms(x, image) for x in made]
    shown = [("picture", image), *((f"sample {i}", x) for i, x in enumerate(made))]
    said = (
        f"from t = {times[0]} of {edit.model.T} on, {len(times) - 1} steps; the samples are "
        f"{sum(changes) / n:.1f} grey levels off the picture (root mean square, their mean)"
    )
    facts = {"t": times[0], "steps": len(times) - 1, "rms_grey_levels": changes}
    return Result(made, shown, min(len(shown), 6), facts, [said])


def _invert(edit: edits.Edits, image: Tensor) -> Result:
    x_T, again = (x.cpu() for x in edit.invert(image))
    error = edits.rms(again, image)
    noise = as_picture(x_T, image)
    said = [
        f"made again from its noise, the picture is {error:.2f} grey levels off (root mean square)",
        f"the noise has mean {float(x_T.mean()):.3f} and standard deviation {float(x_T.std(correction=0)):.3f}",
    ]
    shown = [("picture", image), ("its noise", noise), ("made again", again)]
    arrays = {"x_T": x_T, "image": image}
    return Result(torch.stack([noise, again]), shown, 3, {"rms_grey_levels": error}, said, arrays)


def _denoise(edit: edits.Edits, image: Tensor, sigma: float) -> Result:
    made = edit.denoise(image, sigma).cpu()
    t, level = edit.time(sigma)
    change = edits.rms(made, image)
    said = f"taken at t = {t} of {edit.model.T}, where sigma is {level:.4g}; it changes the picture by "
    said += f"{change:.1f} grey levels (root mean square)"
    facts = {"t": t, "sigma_t": level, "rms_grey_levels": change}
    return Result(made[None], [("picture", image), ("denoised", made)], 2, facts, [said])


def _film(edit: edits.Edits, n: int, frames: int) -> Result:
    made = [frame.cpu() for frame in edit.film(n, frames)]
    said = f"{len(made)} frames from noise to image, the last held longer"
    return Result(made[-1], [], 0, {"frames": len(made)}, [said], film=made)


CALLS: dict[str, Callable[..., Result]] = {
    "interpolate": _interpolate, "inpaint": _inpaint, "vary": _vary, "invert": _invert, "denoise": _denoise,
    "film": _film,
}  # fmt: skip


def as_picture(x_T: Tensor, image: Tensor) -> Tensor:
    """Noise (C', H', W') as an image in [-1, 1] of another's shape (C, H, W): x_T/3, so that three deviations are seen.

    Of latents, whose channels are no colours, it is their sum in its own deviation, each number a square.
    """
    if len(x_T) != len(image):
        x_T = x_T.sum(0, keepdim=True) / len(x_T) ** 0.5
    if x_T.shape[1:] != image.shape[1:]:
        x_T = F.interpolate(x_T[None], size=tuple(image.shape[1:]), mode="nearest")[0]
    return (x_T / 3).clamp(-1, 1).expand_as(image)
