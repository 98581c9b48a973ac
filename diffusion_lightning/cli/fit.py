"""`diffusion-lightning fit`, `validate` and `test`, through Lightning's CLI.

A run lives in one folder, `trainer.default_root_dir`, and never overwrites another's. Every checkpoint carries its
run's configuration, so that what comes after `fit` needs the file alone (`evaluate`, `predict`). The configuration here
is the user's own, which is code. Whatever is wrong is said in one sentence and, wherever it can be, before training
starts.
"""

import os
from argparse import SUPPRESS
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from .. import checkpoints, loading, records
from ..callbacks import EMA, Agreement, BoundCurve, Checkpoint, FiniteLoss, Preemption, Progress
from ..distributed import threads, timeouts
from ..loggers import MetricsFile
from ..modules import Generative, LoRA
from . import report, run_folder
from .defaults import LOGGER, UNASKED, WATCHES, has, settle
from .errors import first_cause
from .parser import Parser
from .resuming import Resumed, check_length, restoring
from .shell import Shell


class CLI(Shell):
    """Lightning's CLI with this project's conventions: the run's folder, the seed, EMA and checkpoints."""

    resumed: Resumed | None = None  # what `fit` goes on from

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        for key, kind in WATCHES.items():
            default = {"class_path": kind.__name__} if key in UNASKED else None
            text = (kind.__doc__ or "").partition("\n")[0]
            parser.add_argument(f"--{key}", type=kind | None, default=default, help=text)
        text = (LoRA.__doc__ or "").partition("\n")[0]
        parser.add_argument("--lora", type=LoRA | None, default=SUPPRESS, help=f"fit: adapters, {text}")
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fit: a checkpoint whose averaged weights a fresh run starts from",
        )
        parser.add_argument(
            "--allow_changed",
            type=str,
            action="append",
            default=None,
            help="fit --ckpt_path: a key, with all below it, that may differ from the checkpoint's configuration, "
            "though the weights or the draws then mean something else; may be given several times",
        )
        parser.add_argument(
            "--report", type=bool, default=True, help="write report.html into the run's folder at the end"
        )
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed", compute_fn=_seed)

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self.value("trainer").default_root_dir)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config.weights_only = True
        settle(config)
        timeouts.name_limit(config.trainer.strategy)
        if self.subcommand == "fit":
            if "WANDB_SWEEP_ID" in os.environ:  # each trial of a sweep has a folder of its own
                config.trainer.default_root_dir = str(self.root / os.environ["WANDB_RUN_ID"])
            config.ckpt_path = run_folder.start(self.root, config.ckpt_path)
            if config.ckpt_path is not None:
                self.resumed = Resumed(config.ckpt_path, config, self.words)
        elif config.ckpt_path is not None:
            config.ckpt_path = run_folder.meant_by(self.root, config.ckpt_path)
        fits = self.subcommand == "fit"
        run_folder.place_loggers(config.trainer.logger, self.root, None if fits else self.subcommand)
        for logger in run_folder.described(config.trainer.logger) if fits else []:
            if run_folder.is_wandb(logger.class_path) and not logger.get("init_args.id"):
                checkpoint = self.resumed.checkpoint if self.resumed else None
                logger["init_args.id"] = run_folder.wandb_id(self.root, checkpoint)
                logger["init_args.resume"] = "allow"

    def instantiate_classes(self) -> None:
        """Builds the objects; whatever a constructor refuses, a user's own class too, is said in its own words."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ValueError(str(first_cause(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's own record of its metrics, and one bar for the whole run in the place of one an epoch."""
        config = self.built("trainer")
        watches = [self.built(key) for key in WATCHES if has(self.model, key)]
        own = config.callbacks if isinstance(config.callbacks, list | None) else [config.callbacks]
        config.callbacks = [*(x for x in watches if x is not None), *(own or [])]
        named = config.logger if isinstance(config.logger, list) else [config.logger]
        file = "metrics.csv" if self.subcommand == "fit" else f"{self.subcommand}.csv"
        kwargs["logger"] = [*(x for x in named if isinstance(x, Logger)), MetricsFile(self.root / file)]
        if self.subcommand == "fit":
            config.callbacks += [FiniteLoss(), Agreement()]
            if config.enable_progress_bar is not False:
                config.callbacks.append(Progress())
                kwargs["enable_progress_bar"] = False
        if self.subcommand == "test":
            config.callbacks.append(BoundCurve())
        kwargs["enable_model_summary"] = bool(config.enable_model_summary)  # Lightning's default counts no FLOPs: 0
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if (record := next((x for x in callbacks if isinstance(x, run_folder.Record)), None)) is not None:
            callbacks.insert(0, run_folder.SameStart(record.text))
        timeouts.limit_waiting(trainer)
        timeouts.check_started(trainer)
        threads.share(trainer.num_devices)
        saves = next(x for x in callbacks if isinstance(x, Checkpoint)) if self.subcommand == "fit" else None
        callbacks.append(Preemption(saves))
        return trainer

    def _check_checkpoint(self) -> None:
        """Raise ValueError if the checkpoint's weights are not this model's."""
        if (path := self.value("ckpt_path")) is not None:
            loading.check_fits(self.model, checkpoints.read(path), path)

    def before_fit(self) -> None:
        check_length(self.trainer, self.model)
        if self.resumed is not None:
            self.resumed.apply(self.trainer, self.model)
            self.resumed = None  # the trainer reads the file for itself
        elif (start := self.value("init_from")) is not None:
            loading.start_from(self.model, run_folder.chosen(start))
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(run_folder.start_line(self.trainer, self.model, self.config[self.subcommand]), flush=True)

    def work(self, subcommand: str) -> None:
        """Does it, unless there is nothing left to train."""
        if self.resumed is None or self.resumed.over is None:
            path = None if self.resumed is None else self.resumed.path
            with run_folder.taken(self.trainer, subcommand), timeouts.ending_with(self.trainer), restoring(path):
                if subcommand == "fit":  # what another run may have written since it was looked at
                    run_folder.start(self.root, self.value("ckpt_path"))
                super().work(subcommand)
            if subcommand == "fit" and self.trainer.is_global_zero and not self.value("trainer").fast_dev_run:
                report.ended(self.root, self.trainer.global_step)
            writes = subcommand in ("fit", "test") and self.value("report") and self.trainer.is_global_zero
            if writes and not self.value("trainer").fast_dev_run:
                report.at_the_end(self.root)
            return
        loading.check_fits(self.model, self.resumed.checkpoint, self.resumed.path)
        if self.trainer.is_global_zero:
            print(self.resumed.over)

    before_validate = before_test = _check_checkpoint

    def after_validate(self) -> None:
        """Raise ValueError if there was nothing to evaluate."""
        run_folder.check_evaluated(self.trainer, str(self.subcommand))

    after_test = after_validate

    @rank_zero_only
    def after_fit(self) -> None:
        """Says where everything lies, and how to go on."""
        self._check_trained()
        if self.value("trainer").fast_dev_run:
            print("\nthe dry run ended well; it keeps nothing")
            return
        last, grids = self.root / "checkpoints/last.ckpt", sorted((self.root / "samples").glob("*.png"), key=_step)
        values = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")}
        command = f"{'uv run ' if 'UV' in os.environ else ''}diffusion-lightning predict"
        own = records.foreign(self.value("model").as_dict())
        trust = f" --trust {' '.join(own)}" if own else ""
        draws = isinstance(self.model, Generative)
        none = "none: no validation ran, or trainer.callbacks has no SampleGrid"
        more = f"{command} --ckpt_path {last} --n 64 --out {self.root / 'more'} --seed 1{trust}"
        lines = [
            *([("samples", grids[-1] if grids else none)] if draws else []),
            ("metrics", self.root / "metrics.csv" if (self.root / "metrics.csv").exists() else "none logged"),
            *(("", f"{key} {value:.4g}") for key, value in values.items()),
            ("checkpoint", last),
            *([("draw more", more)] if draws and self.model.own_sampler() is not None else []),
        ]
        print("\n" + "\n".join(f"{name:<11} {text}" for name, text in lines))

    def _check_trained(self) -> None:
        """Raises ValueError if no step was trained and there is no checkpoint."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run:
            trained = trainer.fit_loop.epoch_loop.total_batch_idx >= 0
        else:
            trained = (self.root / "checkpoints/last.ckpt").exists()
        if trained:
            return
        if 0 in (trainer.num_training_batches, trainer.limit_train_batches):
            why = "the training data has no batches: give more images, a smaller batch_size, or raise "
            raise ValueError(f"no step was trained, since {why}trainer.limit_train_batches")
        raise ValueError(
            f"no step was trained, since the run starts at step {trainer.global_step} and epoch "
            f"{trainer.current_epoch} and trainer.max_steps is {trainer.max_steps}, max_epochs {trainer.max_epochs}: "
            "raise the one that ends it"
        )


class Description(CLI):
    """A configuration, read and checked; nothing is built."""

    def before_instantiate_classes(self) -> None:
        settle(self.config)
        self.text = run_folder.Record(self.parser, self.config).text

    def instantiate_classes(self) -> None: ...


AnyCLI = TypeVar("AnyCLI", bound=CLI)


def _seed(seed: bool | int) -> int:
    if isinstance(seed, bool) or not 0 <= seed < 2**32:  # NumPy's range, whose generator is seeded with it too
        raise ValueError(
            f"seed_everything is {seed}, but a run is a function of its seed, which is a whole number from 0 to "
            "2^32 - 1: give one of these"
        )
    return seed


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step="))


def _cli(kind: type[AnyCLI], args: list[str], execute: bool = True) -> AnyCLI:
    return kind(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=run_folder.Record,
        trainer_defaults={"default_root_dir": "runs/unnamed", "logger": LOGGER},
        seed_everything_default=0,
        parser_class=Parser,
        auto_configure_optimizers=False,
        args=args,
        run=execute,
    )


def main(words: list[str]) -> None:
    """Runs the subcommand that the words begin with."""
    _cli(CLI, words)


def described(words: list[str]) -> str:
    """The text of a configuration that is read from these words and checked; nothing is built."""
    return _cli(Description, words, execute=False).text
