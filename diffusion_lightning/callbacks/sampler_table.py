"""Samplers against their numbers of steps, from one checkpoint: which is worth its time."""

import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric

from ..modules.base.generative import generative
from ..samplers import Sampler
from .base import Scoring, save_table

Row = dict[str, Any]


class SamplerTable(Scoring):
    """At the end of `test`, scores n samples of every sampler at every number of steps, all from the same noise.

    The table is printed, written as `samplers.csv` into the run's folder, row after row as they are done, and logged
    as `samplers` where a logger takes tables. Its columns are `sampler`, `steps`, the metrics' values and
    `seconds_per_image`, those of one device. A step is one call of the network, but two for `Heun`.

    Args:
        metrics: see `GenerativeMetrics`.
        samplers: at least one; their own `steps` do not matter.
        steps: the numbers of steps, each in 1 … T.
        n: how many samples a row.
        batch_size: samples made at once, per device.
        seed: of the samples.
        split: which of the data's splits the samples are compared with.
        cache: keep references between runs.

    Raises:
        ValueError: if there is nothing to compare, or two samplers are the same.
    """

    def __init__(
        self,
        metrics: list[Metric],
        samplers: list[Sampler],
        steps: list[int],
        n: int = 1000,
        batch_size: int = 256,
        seed: int = 0,
        split: str = "train",
        cache: bool = True,
    ) -> None:
        super().__init__(metrics, batch_size, seed, split, cache)
        if not metrics or not samplers or min(steps, default=0) < 1 or n < 1:
            raise ValueError(
                f"a table of {len(metrics)} metrics of {n} samples, {len(samplers)} samplers and steps {steps} is "
                "empty: give at least one of each, none below 1"
            )
        self.n = n
        self.rows = [
            (name, number, _with_steps(sampler, number))
            for name, sampler in zip(_names(samplers), samplers, strict=True)
            for number in steps
        ]

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "test":
            for _, _, sampler in self.rows:
                generative(module, self).check(sampler)
            self.check(trainer, self.n)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        table: list[Row] = []
        for k, (name, steps, sampler) in enumerate(self.rows, start=1):
            bar = f"{k}/{len(self.rows)} {name}, {steps} steps"
            done = self.round(trainer, module, bar, self.n, sampler)
            if trainer.is_global_zero:
                values = {key: float(value) for key, value in done.values.items()}
                each = done.sampling / done.made
                table.append({"sampler": name, "steps": steps, **values, "seconds_per_image": each})
                rows = [list(table[0]), *(row.values() for row in table)]
                save_table(Path(trainer.default_root_dir) / "samplers.csv", rows)
        if trainer.is_global_zero:
            print("", *_lines(table), sep="\n")
            logger: Any
            for logger in trainer.loggers:
                if hasattr(logger, "log_table"):
                    columns, lines = list(table[0]), [list(row.values()) for row in table]
                    logger.log_table("samplers", columns, lines, step=generative(module, self).steps_done)


def _with_steps(sampler: Sampler, steps: int) -> Sampler:
    other = copy.copy(sampler)
    other.steps = steps
    return other


def _names(samplers: list[Sampler]) -> list[str]:
    """Each one's class, and if several are of one class, the settings in which they differ."""
    kinds = [type(sampler).__name__ for sampler in samplers]
    settings = [{key: _shown(value) for key, value in vars(s).items() if key != "steps"} for s in samplers]
    names = []
    for kind, own in zip(kinds, settings, strict=True):
        alike = [other for k, other in zip(kinds, settings, strict=True) if k == kind]
        differing = [f"{key}={own[key]}" for key in own if any(other.get(key) != own[key] for other in alike)]
        names.append(f"{kind}({', '.join(differing)})" if differing else kind)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two of the samplers are {name} and differ in nothing but their steps, which the table varies itself: "
                "leave one out"
            )
    return names


def _shown(value: Any) -> str:
    """A setting's value; an object's class and its own settings."""
    if not hasattr(value, "__dict__"):
        return str(value)
    own = ", ".join(f"{key}={_shown(inner)}" for key, inner in vars(value).items())
    return f"{type(value).__name__}({own})" if own else type(value).__name__


def _lines(table: list[Row]) -> list[str]:
    """A Markdown table, its columns lined up."""
    rows = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()] for row in table]
    cells = [list(table[0]), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines]
