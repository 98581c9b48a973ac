"""What `predict`, `edit` and `app` draw with: a checkpoint's model, a sampler, a guidance and a condition."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import checkpoints, files, loading, random, records, samplers
from ..guidance import ClassifierFree, Guidance, Guided, prepare
from ..modules import Generative
from . import run_folder
from .parser import Parser
from .wanted import Wanted, wanted

GRIDS = (".png", ".jpg", ".jpeg", ".webp")  # one picture of all that is drawn


@dataclass(frozen=True)
class Opened:
    """A checkpoint's model, the configuration in it, and its digest."""

    model: Any
    record: records.Spec
    digest: str


@dataclass(frozen=True)
class Drawing:
    """What samples are drawn with; `made` states it in plain data, as a picture records how it was made."""

    model: Any
    sampler: Any
    guidance: Guided
    asked: Wanted
    made: dict[str, Any]


def add_options(parser: Parser) -> None:
    """The options that say what is drawn, of all but `--prompts`."""
    parser.add_argument("--ckpt_path", type=str, required=True, help="the checkpoint")
    parser.add_argument(
        "--trust", nargs="+", default=[], help="modules of your own classes that the checkpoint may name"
    )
    parser.add_argument("--seed", type=int, default=0, help="sample number i is a function of the seed and i")
    parser.add_argument(
        "--y",
        type=int | str | None,
        default=None,
        help="the class of all samples: its number, or its name if it has one that is no number; none is each in turn, "
        "by the samples' numbers",
    )
    parser.add_argument("--prompt", type=str | None, default=None, help="the caption of all samples")
    parser.add_argument(
        "--negative_prompt",
        type=str | None,
        default=None,
        help="the caption that guidance leads away from; none is the null condition",
    )
    parser.add_argument(
        "--sampler",
        type=samplers.Sampler | None,
        default=None,
        help="the reverse loop; none is the run's own for its grid of samples, else DDIM of 50 steps",
    )
    parser.add_argument(
        "--guidance",
        type=Guidance | float | None,
        default=None,
        help="scale of classifier-free guidance, 1 or none being without; or a guidance with its own options: "
        "ClassifierFree, AutoGuidance (--guidance.guide CKPT), ClassifierGuided (--guidance.classifier CKPT)",
    )


def opened(path: str, trust: Collection[str] = ()) -> Opened:
    """Read a checkpoint and build its model; raises as `loading.load` does."""
    checkpoint = checkpoints.read(path)
    record = checkpoints.config(checkpoint, path)
    model = loading.restored(checkpoint, record, path, trust, kind=Generative)
    return Opened(model, record, files.digest(path))


def read(
    parser: Parser,
    config: Any,
    texts: list[str] | None,
    open_: Callable[[str, Collection[str]], Opened] = opened,
) -> Drawing:
    """What a command's parsed words ask for, checked: what is wrong is said before any sample is made.

    Args:
        parser: it made the configuration.
        config: with the options of `add_options`.
        texts: the prompts, of `wanted.prompts`.
        open_: reads a checkpoint, such as one that keeps those that it has read.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or its model cannot draw what is asked for.
    """
    random.check_seed(config.seed, "--seed")
    found = open_(run_folder.chosen(config.ckpt_path), config.trust)
    sampler, described = None, None
    if config.sampler is not None:
        sampler, described = parser.instantiate(config).sampler, _described(config.sampler.as_dict())
    elif (part := own_sampler(found.record, found.model, config.trust)) is not None:
        sampler, described = part.make(), part.spec()
    guidance = _away_from(parser.instantiate(config).guidance, config.negative_prompt)
    prepare(guidance, partial(loading.module, trust=config.trust))
    asked = wanted(found.model, guidance, config.y, texts)
    found.model.check(sampler, guidance)
    made = {
        "checkpoint": found.digest,
        "seed": config.seed,
        "sampler": described,
        "y": asked.y,
        "guidance": _stated(config.guidance),
    }
    if config.negative_prompt is not None:
        made["negative_prompt"] = config.negative_prompt
    return Drawing(found.model, sampler, guidance, asked, made)


def own_sampler(record: records.Spec, model: Any, trust: Collection[str]) -> records.Part | None:
    """The sampler of the run's grid of samples, which is fast enough to be seen at every validation; else the model's.

    None of a model that has none.
    """
    trainer = record.get("trainer")
    listed = trainer.get("callbacks") if isinstance(trainer, dict) else None
    callbacks = [x for x in (listed if isinstance(listed, list) else []) if isinstance(x, dict)]
    grids = [x for x in callbacks if str(x.get("class_path")).rpartition(".")[2] == "SampleGrid"]
    for grid in (record.get("grid"), *grids):
        arguments = grid.get("init_args") if isinstance(grid, dict) else None
        if isinstance(arguments, dict) and arguments.get("sampler") is not None:
            return records.read(arguments["sampler"], samplers.Sampler, "the run's sampler", trust)
    own = model.drawn_by()
    return None if own is None else records.Part(*own)


def _described(value: Any) -> Any:
    """A class and its arguments as records describe them, whose `init_args` may be left out elsewhere."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        return {"class_path": value["class_path"], "init_args": {k: _described(x) for k, x in arguments.items()}}
    return value


def _stated(guidance: Any) -> Any:
    """A guidance as records describe it, with the digests of the checkpoints that it names; a number as it is."""
    if guidance is None or isinstance(guidance, int | float):
        return guidance
    found = _described(guidance.as_dict())
    for name in ("guide", "classifier"):
        if name in found["init_args"]:
            found["init_args"][name] = files.digest(checkpoints.found(found["init_args"][name]))
    return found


def _away_from(guidance: Guided, negative: str | None) -> Guided:
    """The guidance, with the user's prompt in place of the null condition.

    Raises:
        ValueError: if no guidance goes away from the null condition.
    """
    if negative is None:
        return guidance
    if isinstance(guidance, int | float) and guidance != 1:
        return ClassifierFree(guidance, negative=negative)
    if isinstance(guidance, ClassifierFree):
        guidance.negative = negative
        return guidance
    raise ValueError(
        f"--negative_prompt is {negative}, but no guidance leads away from it: give --guidance a scale, such as 3"
    )
