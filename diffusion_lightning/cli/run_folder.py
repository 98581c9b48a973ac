"""A run's folder: which checkpoint it starts from, and what is written down of how it was made."""

import contextlib
import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from .. import checkpoints, files, records
from ..callbacks import SampleGrid
from ..callbacks.base import check_same
from ..distributed import preemption, threads
from ..report.run import ABOUT, Run, flat
from . import provenance

NOT_OF_THE_RUN = ("ckpt_path", "weights_only", "config", "verbose", "allow_changed", "report")
# Each machine may have its own copy of the data, or of their source.
PLACES = tuple(f"data.init_args.{of}{name}" for of in ("", "source.init_args.") for name in ("path", "root", "name"))
JOB = "job"  # the file in a run's folder that names the job which trains there
# What a run writes, or a file in each folder that it makes.
WRITES = ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "samples/step=0.png", "chains/step=0.png", "wandb/0")


class Record(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a `fit`, and the same text into its checkpoints and loggers."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        kept = config.clone()
        for key in NOT_OF_THE_RUN:
            kept.pop(key, None)
        for logger in described(kept.trainer.logger):  # where this run lies is not what made it
            if "init_args.save_dir" in logger:
                logger["init_args.save_dir"] = "."
            if is_wandb(logger.class_path):
                logger["init_args.id"] = None
        self.text = parser.dump(kept, skip_none=False, skip_validation=True, format="yaml")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # on every rank: the others would wait for the first, and a large set takes minutes
            data = trainer.datamodule  # type: ignore[attr-defined]
            self.origin = {"git_commit": provenance.git_commit(), "data_fingerprint": provenance.fingerprint(data)}
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        path = Path(trainer.default_root_dir) / "config.yaml"
        files.write_text(path, self.text)
        started = Run(path.parent).about.get("started") if trainer.ckpt_path else None  # a resumed run's first start
        files.write_text(path.with_name(ABOUT), provenance.about(trainer, pl_module, self.origin, started))
        if preemption.name():
            files.write_text(path.with_name(JOB), preemption.name() or "")
        for logger in trainer.loggers:
            logger.log_hyperparams({**yaml.safe_load(self.text), **self.origin})

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[checkpoints.CONFIG] = records.text(yaml.safe_load(self.text))
        checkpoint[checkpoints.WORLD] = trainer.world_size
        ids = [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        checkpoint[checkpoints.WANDB] = ids[0] if ids else None
        names = getattr(module, "class_names", None)
        checkpoint[checkpoints.CLASSES] = names and [str(name) for name in names]
        checkpoint[checkpoints.THREADS] = torch.get_num_threads()

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        said = threads.differs(checkpoint.get(checkpoints.THREADS), torch.get_num_threads())
        if said and trainer.state.fn == TrainerFn.FITTING and trainer.strategy.root_device.type == "cpu":
            rank_zero_warn(said)


class SameStart(Callback):
    """Compares the ranks' configurations and data, before all other callbacks, which call collectives at their setup.

    Args:
        text: this rank's configuration, YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            check_ranks(self.text, trainer.datamodule)  # type: ignore[attr-defined]


def check_ranks(text: str, data: Any) -> None:
    """Raise ValueError, on every rank, if ranks have other configurations (YAML) or other data; a collective call."""
    held = provenance.contents(data)
    own = {key: value for key, value in flat(yaml.safe_load(text)).items() if not _place(key, bool(held))}
    check_same("configurations", own, "start all ranks with the same words and the same files")
    check_same("data", held, "give all ranks the same images and labels, in the same order")


def _place(key: str, compared: bool) -> bool:
    """Whether a key only says where something lies: the run's folder, or data that are compared themselves."""
    return key == "trainer.default_root_dir" or (compared and key in PLACES)


def start(root: Path, ckpt_path: str | None) -> str | None:
    """The checkpoint to start from, none for a fresh run; refuses a fresh run in a folder that holds one.

    A job that was requeued goes on from its own, whatever it was first started from; a new job never does unasked.
    """
    last, found = root / "checkpoints/last.ckpt", sorted((root / "checkpoints").glob("*.ckpt"))
    if foreign := sorted(root.glob("hpc_ckpt_*.ckpt")):
        raise ValueError(
            f"{foreign[0]} is a checkpoint of Lightning's own requeueing, from which SLURM jobs start without being "
            "asked: move it away, and name it by --ckpt_path if it is meant"
        )
    if (
        last.exists()
        and preemption.restarted()
        and (root / JOB).exists()
        and (root / JOB).read_text(encoding="utf-8") == preemption.name()
    ):
        return str(last)
    if not found or ckpt_path not in (None, "last"):
        return None if ckpt_path in (None, "last") else meant_by(root, ckpt_path)
    if ckpt_path == "last" and last.exists():
        return str(last)
    named = next((str(path) for path in newest_first(last.parent)), None)
    go_on = f"go on with it by --ckpt_path {'last' if last.exists() else named}"
    if named is None:
        go_on = "move them away, since they are states at fault,"
    what = "and this is a fresh one" if ckpt_path is None else "but no last.ckpt"
    raise ValueError(
        f"{root} already holds checkpoints of a run ({', '.join(path.name for path in found)}), {what}: {go_on} or "
        "choose another folder by --trainer.default_root_dir"
    )


def meant_by(root: Path, ckpt_path: str) -> str:
    """The checkpoint that an option of a run means: `last` and `best` are its own."""
    return chosen(str(root / ckpt_path) if ckpt_path in ("last", "best") else ckpt_path)


def chosen(ckpt_path: str) -> str:
    """The checkpoint that a word, a folder or a path means; printed if it is not the path itself."""
    path = checkpoints.found(ckpt_path)
    if path != Path(ckpt_path).expanduser():
        rank_zero_only(print)(f"checkpoint  {path}")
    return str(path)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder from which a run can go on: the last, the numbered, the best."""
    numbered = [path for path in folder.glob("step=*.ckpt") if path.stem.removeprefix("step=").isdigit()]
    numbered.sort(key=lambda path: int(path.stem.removeprefix("step=")), reverse=True)
    return [path for path in (folder / "last.ckpt", *numbered, folder / "best.ckpt") if path.exists()]


def opened(path: str) -> dict[str, Any]:
    """The content of the checkpoint to go on from.

    Raises:
        ValueError: if it cannot be read; names another one in its folder that can.
    """
    try:
        return checkpoints.read(path)
    except ValueError as error:
        others = (other for other in newest_first(Path(path).parent) if other != Path(path) and Path(path).exists())
        if (whole := next(filter(_readable, others), None)) is None:
            raise
        raise ValueError(f"{error}; {whole} is whole: go on from it by --ckpt_path {whole}") from error


def _readable(path: Path) -> bool:
    try:
        return bool(checkpoints.read(path))
    except ValueError:
        return False


@contextlib.contextmanager
def taken(trainer: Trainer, subcommand: str) -> Iterator[None]:
    """Holds the run's folder for a subcommand, so that no second one of its kind writes into it.

    The first process of a job holds it for all; a `fit` beside a `validate` or a `test` of its checkpoints is fine, as
    they write other files, or the same. A dry run writes nothing and holds nothing.

    Raises:
        ValueError: if another process holds it.
        OSError: if `fit` could not write what it makes there; before it has worked for hours.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        yield
        return
    root, fit = Path(trainer.default_root_dir), subcommand == "fit"
    fix = "wait for it to end, or choose another folder by --trainer.default_root_dir"
    with files.locked(root, fix, files.LOCK if fit else f".{subcommand}.lock"):
        if fit:
            for name in WRITES:
                files.check_file(root / name)
            for folder in (root, root / "checkpoints"):
                files.sweep(folder, age=0)
        yield


def check_evaluated(trainer: Trainer, subcommand: str) -> None:
    """Raise ValueError if `validate` or `test` found no batches."""
    kind = "val" if subcommand == "validate" else "test"
    if not sum(getattr(trainer, f"num_{kind}_batches")):
        raise ValueError(
            f"{subcommand} found no batches, so there are no figures: give images by --data, or raise "
            f"trainer.limit_{kind}_batches"
        )


def start_line(trainer: Trainer, module: LightningModule, config: Namespace) -> str:
    """What is trained, for how long and on what, and where it is watched."""
    network = config.get("model.init_args.network.class_path") or config.model.class_path
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    data = config.data.class_path.rpartition(".")[2]
    steps = f"{trainer.max_steps:,} steps" if trainer.max_steps > 0 else f"{trainer.max_epochs} epochs"
    devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    samples = ", samples" if any(isinstance(x, SampleGrid) for x in trainer.callbacks) else ""  # type: ignore[attr-defined]
    wandb = "" if not loggers else ", W&B offline in wandb" if loggers[0]._offline else ", W&B"
    return (
        f"trains {network.rpartition('.')[2]}, {parameters:,} parameters, on {data} for {steps} on "
        f"{devices}{trainer.strategy.root_device.type} in {trainer.precision}; watch {trainer.default_root_dir} "
        f"(metrics.csv{samples}{wandb})"
    )


def described(objects: Any) -> list[Namespace]:
    """Those of a configuration's loggers or callbacks, one or several, that are described by class and arguments."""
    return [x for x in (objects if isinstance(objects, list) else [objects]) if isinstance(x, Namespace)]


def place_loggers(loggers: Any, root: Path, job_type: str | None = None) -> None:
    """Has the loggers of a configuration write into the run's folder, and W&B list an evaluation as what it is."""
    for logger in described(loggers):
        if "init_args.save_dir" in logger and logger["init_args.save_dir"] in (".", None):
            logger["init_args.save_dir"] = str(root)
        if job_type and is_wandb(logger.class_path):
            logger["init_args.job_type"] = logger.get("init_args.job_type") or job_type


def is_wandb(class_path: str) -> bool:
    return issubclass(imported(class_path), WandbLogger)


def imported(class_path: str) -> Any:
    """The class that the user's own configuration names."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def wandb_id(root: Path, checkpoint: dict[str, Any] | None) -> str | None:
    """The run in Weights & Biases: the checkpoint's, else the job's, which may be requeued before its first."""
    if checkpoint:
        return checkpoint.get(checkpoints.WANDB)
    of_job = f"{preemption.name()} {root.absolute()}".encode()
    return hashlib.blake2b(of_job, digest_size=4).hexdigest() if preemption.name() else None
