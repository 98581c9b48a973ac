"""`diffusion-lightning predict`: samples of a checkpoint as pictures, made on all devices, resumable."""

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from .. import files, random
from ..callbacks import Preemption, Progress, SampleWriter
from ..callbacks.progress import Watched
from ..distributed import preemption, threads, timeouts
from ..images import ORIGIN, contents, origin
from . import drawing
from .commands import COMMANDS
from .parser import Parser
from .wanted import Wanted, prompts

Request = dict[str, Any]


def main(words: list[str]) -> None:
    """Draws samples from a checkpoint and writes them as pictures.

    Sample number i is the same whatever else is drawn, so a run that was stopped goes on when it is started again:
    what lies in the folder already is kept.
    """
    parser = make_parser()
    config = parser.parse_args(words[1:])
    texts = given_prompts(config)
    drawn = drawing.read(parser, config, texts)
    model, sampler, asked = drawn.model, drawn.sampler, drawn.asked
    steps = 1 if sampler is None else len(sampler.times(model.schedule)) - 1

    out = Path(config.out)
    archive = out if out.suffix.lower() in (".npz", *drawing.GRIDS) else None
    made = {**drawn.made}
    if archive is not None:
        made |= {"first": config.first, "n": config.n}  # it holds these and no others
        made |= asked.stated()
        out = archive.with_name(f"{archive.name}.parts")
        if archive.exists():
            _check(archive, _origin_of_archive(archive) if archive.suffix == ".npz" else origin(archive), made)
            SampleWriter(out, made, archive).clear()
            print(f"{archive} holds these {config.n} samples already")
            return
        files.check_file(archive)
    writer = SampleWriter(out, made, archive, asked.prompt)
    end = config.first + config.n
    bar = Progress(sampled=steps)
    callbacks: list[Callback] = [writer] if config.trainer.enable_progress_bar is False else [writer, bar]
    trainer = make_trainer(config, callbacks)
    trainer.callbacks.append(Preemption())  # type: ignore[attr-defined]
    threads.share(trainer.num_devices)
    with _alone(trainer, out):
        there = _there(out, made, asked)
        preemption.keeps(lambda: _kept(config.out, out, archive))
        requests = asked_of(drawn, config, None if sampler is None else Watched(sampler, bar), there)
        kept = len(there.intersection(range(config.first, end)))
        if requests:
            with timeouts.ending_with(trainer):
                trainer.predict(model, datamodule=Requests(requests), return_predictions=False)
        elif trainer.is_global_zero:
            writer.finish()
    if trainer.is_global_zero:
        if archive is not None:
            writer.clear()
        of = "" if asked.y is None else f" of class {asked.y}"
        names = model.class_names or []
        if asked.y is not None and asked.y < len(names):  # no class at all has a number too, but no name
            of += f" ({names[asked.y]})"
        where = f"to {config.out}" + (f", where {kept} were already" if kept else "")
        how = "in one go" if sampler is None else f"sampler {type(sampler).__name__}, {steps} steps"
        print(f"wrote {config.n - kept} samples{of} {where}; {how}")


def make_parser() -> Parser:
    """The parser of its words, after the subcommand's name."""
    parser = Parser(prog="diffusion-lightning predict", description=COMMANDS["predict"].does)
    drawing.add_options(parser)
    parser.add_argument(
        "--out", type=str, required=True, help="a folder of pictures, one .npz file of all, or one picture of all"
    )
    parser.add_argument("--n", type=int | None, default=None, help="how many; none is 64, or one of each of --prompts")
    parser.add_argument("--first", type=int, default=0, help="the first sample's number")
    parser.add_argument(
        "--prompts", type=str | None, default=None, help="a file of captions, one a line, for the samples in turn"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="samples made at once, per device")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"logger", "callbacks", "default_root_dir"})
    return parser


def given_prompts(config: Any) -> list[str] | None:
    """The prompts of a parsed configuration, whose `n` is set if it was not given.

    Raises:
        ValueError: if they cannot be read, or there are no samples of these numbers.
    """
    texts = prompts(config.prompt, config.prompts)
    if config.n is None:
        config.n = 64 if config.prompts is None else len(texts or [])
    random.check_numbers(config.first, config.n)
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}, which is no batch: give at least 1")
    return texts


def make_trainer(config: Any, callbacks: list[Callback]) -> Trainer:
    """The trainer of a parsed configuration, which keeps nothing but what the callbacks do."""
    options = {**config.trainer.as_dict(), "enable_checkpointing": False, "enable_model_summary": False}
    options |= {"enable_progress_bar": False, "use_distributed_sampler": False}
    return Trainer(**options, logger=False, callbacks=callbacks)


def asked_of(drawn: drawing.Drawing, config: Any, sampler: Any, there: Collection[int] = ()) -> list[Request]:
    """What to ask of `generate`, block by block, without the blocks whose samples are all there."""
    size = min(config.batch_size, config.n)
    return [
        {
            "n": n,
            "sampler": sampler,
            "y": drawn.asked.of(first, n),
            "guidance": drawn.guidance,
            "seed": config.seed,
            "first": first,
            "batch_size": size,
        }
        for first, n in random.blocks(config.first, config.n, size)
        if not set(there).issuperset(range(first, first + n))
    ]


@contextlib.contextmanager
def _alone(trainer: Trainer, out: Path) -> Iterator[None]:
    """Holds the folder's lock, the first process for all of its job."""
    if not trainer.is_global_zero:
        yield
        return
    with files.locked(out, "wait for it to end, or choose another --out"):
        files.check_writable(out)
        files.sweep(out, age=0)
        yield


def _kept(given: str, out: Path, archive: Path | None) -> str:
    """How many samples are kept, and how to go on."""
    if archive is not None and archive.exists():
        return f"all samples are kept in {given}"
    n = len(list(out.glob("*.png")))
    return f"{n} sample{' is' if n == 1 else 's are'} kept in {out}, and the same command goes on"


class Requests(LightningDataModule):
    """What to ask of `generate`, this process's share."""

    def __init__(self, requests: list[Request]) -> None:
        super().__init__()
        self.requests = requests

    def predict_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        mine = self.requests[self.trainer.global_rank :: self.trainer.world_size]
        # A process without a share would not wait for the others at the end: it repeats one that is not written twice.
        return DataLoader(mine or self.requests[:1], batch_size=None)  # type: ignore[arg-type]


def _there(folder: Path, made: dict[str, Any], asked: Wanted) -> set[int]:
    """Numbers of the samples that the folder holds, all of them made alike."""
    pictures = [file for file in folder.glob("*.png") if file.stem.isdigit()]
    for file in pictures:
        prompt = asked.prompt(int(file.stem))
        _check(file, origin(file), made if prompt is None else made | {"prompt": prompt})
    return {int(file.stem) for file in pictures}


def _check(file: Path, found: dict[str, Any] | None, made: dict[str, Any]) -> None:
    """Raise ValueError if a picture's own record is missing or differs from how it would be made now."""
    if found is None:
        raise ValueError(
            f"{file} is there already and does not say that this command drew it: choose another --out, or remove it"
        )
    for key in dict.fromkeys([*made, *found]):
        if found.get(key) != made.get(key):
            raise ValueError(
                f"{file} was drawn with {key} {_plain(found.get(key))}, but now {key} is {_plain(made.get(key))}: "
                "choose another --out, or remove the earlier samples"
            )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        arguments = ", ".join(f"{k}={_plain(v)}" for k, v in value.get("init_args", {}).items())
        return f"{str(value.get('class_path')).rpartition('.')[2]}({arguments})"
    return str(value)


def _origin_of_archive(path: Path) -> dict[str, Any] | None:
    if ORIGIN not in contents(path):
        return None
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file[ORIGIN]))
