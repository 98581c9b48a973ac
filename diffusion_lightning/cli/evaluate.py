"""`diffusion-lightning validate` and `test` of a checkpoint: its loss, its metrics and bits/dim, by its own record.

What is taken from the file is data: its model, its data and the evaluations that it ran, read by `records`. The
trainer, the loggers and every other callback are the user's words, or defaults; figures and pictures go into the folder
of the run in which the checkpoint lies. With `--config`, the configuration is the user's own: `training` does the work.
"""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger

from .. import checkpoints, known, loading, records
from ..callbacks import BoundCurve, Preemption
from ..distributed import threads, timeouts
from ..loggers import MetricsFile
from ..records import Spec
from ..report.words import printable
from . import defaults, fit, report, run_folder
from .commands import COMMANDS
from .parser import Parser

# Of the callbacks that a run had, those that say what its samples and losses are worth.
EVALUATIONS = (
    "SampleGrid", "LossByTimestep", "GenerativeMetrics", "Reconstructions", "ReverseChain", "SamplerTable",
)  # fmt: skip
WATCHES = [key for key, kind in defaults.WATCHES.items() if kind.__name__ in EVALUATIONS]  # those that have a key
CONFIG = {"--config", "-c", "--print_config"}

PACKAGE = __package__.partition(".")[0]

Override = tuple[str, list[str], Any]  # an option: `model` or `data`, the keys below it, the value


def main(words: list[str]) -> None:
    """Runs `validate` or `test`, which the words begin with."""
    if CONFIG & {word.partition("=")[0] for word in words}:
        return fit.main(words)
    command = words[0]
    overrides, rest = _split(words[1:])
    parser = Parser(prog=f"diffusion-lightning {command}", description=COMMANDS[command].does)
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="the checkpoint; required")
    parser.add_argument("--trust", nargs="+", default=[], help="modules of your own classes, hub names or files of "
                        "weights that the checkpoint may name")  # fmt: skip
    parser.add_argument("--seed_everything", type=int | None, default=None, help="the run's own if none is given")
    if command == "test":
        parser.add_argument("--report", type=bool, default=True, help="write the run's report.html anew at the end")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.epilog = "--model.KEY and --data.KEY change the checkpoint's own model and data, as in fit."
    config = parser.parse_args(rest)
    if config.ckpt_path is None:
        raise ValueError(f"{command} needs a model, but neither --ckpt_path nor --config names one: give --ckpt_path")
    path = Path(run_folder.chosen(config.ckpt_path))
    checkpoint = checkpoints.read(path)
    record = checkpoints.config(checkpoint, path)
    trust = {*config.trust, *records.modules([value for _, _, value in overrides])}
    spec = {part: _overlaid(record.get(part), part, overrides, trust) for part in ("model", "data")}
    if spec["data"] is None:
        raise ValueError(
            f"the checkpoint {path} was imported and names no data to {command} it on: name them by --data, such as "
            "--data CIFAR10"
        )
    seed = seed_of(record if config.seed_everything is None else vars(config))
    seed_everything(seed, verbose=False)
    model: Any = loading.restored(checkpoint, spec, path, trust, seed, kind=LightningModule)
    data = data_of(spec["data"], seed, trust, _names_place(overrides))

    root = Path(config.trainer.default_root_dir or _root(path)).expanduser()
    callbacks = None if config.trainer.callbacks is not None else _evaluations(record, model, trust)
    trainer = _trainer(parser, config, root, command, callbacks)
    with run_folder.taken(trainer, command), timeouts.ending_with(trainer):
        getattr(trainer, command)(model, datamodule=data)
        run_folder.check_evaluated(trainer, command)
    if trainer.is_global_zero:
        print(f"figures     {root / f'{command}.csv'}")
        if command == "test" and config.report and not config.trainer.fast_dev_run:
            report.at_the_end(root)


def _trainer(parser: Parser, config: Any, root: Path, command: str, callbacks: list[Callback] | None) -> Trainer:
    timeouts.name_limit(config.trainer.strategy)
    run_folder.place_loggers(config.trainer.logger, root, command)
    made = parser.instantiate(config).trainer
    named = made.logger if isinstance(made.logger, list) else [made.logger]
    chosen = [*(made.callbacks or []), *(callbacks or []), *([BoundCurve()] if command == "test" else [])]
    loggers = [*(x for x in named if isinstance(x, Logger)), MetricsFile(root / f"{command}.csv")]
    options = {**vars(made), "default_root_dir": str(root), "callbacks": chosen, "logger": loggers}
    options["enable_model_summary"] = bool(made.enable_model_summary)
    trainer = Trainer(**options)
    trainer.callbacks.append(Preemption())  # type: ignore[attr-defined]
    timeouts.limit_waiting(trainer)
    timeouts.check_started(trainer)
    threads.share(trainer.num_devices)
    return trainer


def _root(path: Path) -> Path:
    """The folder of the run in which a checkpoint lies; for one that lies elsewhere, a folder of its name."""
    return path.parent.parent if path.absolute().parent.name == "checkpoints" else Path("runs") / path.stem


def _names_place(overrides: list[Override]) -> bool:
    """Whether the user's words say where the data lie, which may be downloaded to that place then."""
    return any(part == "data" and (not keys or keys[-1] in ("root", "path", "name")) for part, keys, _ in overrides)


def seed_of(config: Spec) -> int:
    """The seed of a run, or of the user's words."""
    seed = config.get("seed_everything", 0)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"the seed is {seed}, but it is a whole number from 0 to 2^32 - 1: give --seed_everything")
    return seed


def data_of(spec: Spec, seed: int, trust: Collection[str], users: bool = False) -> LightningDataModule:
    """The data that a record describes; those of the user's words may be downloaded."""
    part = records.read(spec, LightningDataModule, "data", trust)
    if "seed" in known.parameters(part.kind):
        part.arguments.setdefault("seed", seed)
    for one in (part, *(x for x in part.arguments.values() if isinstance(x, records.Part))):
        if "num_workers" in one.arguments:
            one.arguments["num_workers"] = min(one.arguments["num_workers"], os.cpu_count() or 1)
    data = part.make()
    if not users:  # a folder that a file names is read, and never written
        data.may_download = False
    return data


def callbacks_of(record: Spec) -> list[tuple[str, str, Any]]:
    """The callbacks that a record states: where each stands, its class, and all of it."""
    trainer = record.get("trainer")
    listed = trainer.get("callbacks") if isinstance(trainer, dict) else None
    specs = [(key, record[key]) for key in WATCHES if record.get(key) is not None]
    specs += [(f"trainer.callbacks[{i}]", spec) for i, spec in enumerate(listed if isinstance(listed, list) else [])]
    return [(where, str(spec.get("class_path")) if isinstance(spec, dict) else "", spec) for where, spec in specs]


def _evaluations(record: Spec, model: Any, trust: Collection[str]) -> list[Callback]:
    """Those that the run made of its samples, with the metrics and samplers that its record states."""
    made, others = [], []
    for where, name, spec in callbacks_of(record):
        top = name.partition(".")[0]
        if not defaults.has(model, where):
            continue
        if top == PACKAGE and name.rpartition(".")[2] in EVALUATIONS:
            made.append(records.read(spec, Callback, where, trust).make())
        elif top not in ("", PACKAGE, "lightning"):
            others.append(name)
    if others:
        print(
            f"note: the checkpoint's run had {printable(', '.join(others))}, code outside of this package, which is "
            "left out: name what you want of it by --trainer.callbacks",
            file=sys.stderr,
        )
    return made


# The user's words for the model and the data


def _split(words: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The options of the model and the data, and all other words."""
    found: list[Override] = []
    rest: list[str] = []
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        part, *keys = option.removeprefix("--").split(".")
        if not word.startswith("--") or part not in ("model", "data"):
            rest.append(word)
            continue
        value = value if equals else next(following, "")
        found.append((part, [key for key in keys if key != "init_args"], _plain(value)))
    return found, rest


def _plain(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a text
    except (yaml.YAMLError, ValueError):
        return text


def _overlaid(spec: Spec | None, part: str, overrides: list[Override], trust: set[str]) -> Spec | None:
    """A record changed by the user's words, whose classes are trusted."""
    for of, keys, value in overrides:
        if of != part:
            continue
        if not keys or keys == ["class_path"]:
            spec = value if isinstance(value, dict) else {"class_path": value, "init_args": {}}
            trust |= records.modules(spec)
        elif isinstance(spec, dict):
            _set(spec, keys, value, trust)
        else:
            raise ValueError(f"--{part}.{'.'.join(keys)} changes the {part}, but there is none: give --{part} first")
    return spec


def _set(spec: Spec, keys: list[str], value: Any, trust: set[str]) -> None:
    key, *below = keys
    arguments = spec.setdefault("init_args", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{key} is to be changed, but the checkpoint's record has no arguments there: give it whole")
    if key == "class_path":
        spec.update(class_path=value, init_args={})
        trust |= records.modules(spec)
    elif below:
        if not isinstance(arguments.get(key), dict):
            arguments[key] = {}
        _set(arguments[key], below, value, trust)
    else:
        named = isinstance(value, str) and records.takes_class(spec.get("class_path"), key, trust)
        arguments[key] = {"class_path": value, "init_args": {}} if named else value
        trust |= records.modules(arguments[key])
