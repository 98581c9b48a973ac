"""Runs that go on beyond where they were to end: the learning rate, the rows of metrics.csv, what is said."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from torch.optim import lr_scheduler

from diffusion_lightning.callbacks import Checkpoint, StatedAnew
from diffusion_lightning.callbacks.checkpoint import VALIDATION
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.cli.changes import check_stated_anew
from diffusion_lightning.cli.resuming import Resumed
from diffusion_lightning.data import Digits
from diffusion_lightning.distributed import preemption
from diffusion_lightning.loggers import MetricsFile
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.optim import LinearWarmup
from diffusion_lightning.schedules import Cosine

from ..conftest import tiny_unet
from ..support.commands import fails
from ..support.exactness import same
from ..support.resuming import (
    INIT,
    files,
    on,
)

tried = pytest.mark.tried("Resuming")
TOTAL = f"--{INIT}.lr_scheduler.init_args.total_steps"


def column(root: Path, key: str) -> list[float]:
    with (root / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


# The learning rate


class ByLoss(lr_scheduler.LRScheduler):
    """No function of the step."""

    def step(self, metrics: float) -> None:  # type: ignore[override]
        pass


SCHEDULES = {
    "OneCycleLR": lambda optimizer, n: lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=n),
    "CosineAnnealingLR": lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, n),
    "LinearWarmup": lambda optimizer, n: LinearWarmup(optimizer, n),
    "none": None,
}


def trained(
    folder: Path, steps: int, schedule: Any, *callbacks: Any, lr: float = 1e-3, ckpt_path: Path | None = None
) -> list[float]:
    """The rate in every step of a run, whose last checkpoint is `last.ckpt` in the folder."""
    module = Diffusion(
        tiny_unet(), Cosine(T=10), (1, 8, 8), lr_scheduler=schedule, optimizer=lambda p: torch.optim.AdamW(p, lr=lr)
    )
    Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, logger=MetricsFile(folder / "metrics.csv"),
        callbacks=list(callbacks), limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1,
    ).fit(module, Digits(batch_size=16), ckpt_path=ckpt_path)  # fmt: skip
    module.trainer.save_checkpoint(folder / "last.ckpt")
    return column(folder, "train/lr")


@tried
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_stated_anew_has_the_rates_of_a_run_that_had_it_from_the_start(tmp_path: Path, kind: str) -> None:
    """From step 3 on of 8; the checkpoint's, of 4 steps and from another rate, is forgotten."""
    make: Any = SCHEDULES[kind]
    of_4, of_8 = (None if make is None else lambda o, n=n: make(o, n) for n in (4, 8))
    trained(tmp_path, 3, of_4, lr=5e-3)
    found = trained(tmp_path, 8, of_8, StatedAnew(rate=True), ckpt_path=tmp_path / "last.ckpt")[3:]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, expected = None if of_8 is None else of_8(optimizer), []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    assert found == pytest.approx(expected[3:], rel=1e-6)
    group = read(tmp_path / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert {k: v for k, v in group.items() if k != "params"} == {
        k: v for k, v in optimizer.param_groups[0].items() if k != "params"
    }


@tried
def test_a_schedule_that_is_no_function_of_the_step_is_named_with_init_from() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for schedule in (lr_scheduler.ReduceLROnPlateau(optimizer), ByLoss.__new__(ByLoss)):
        with pytest.raises(ValueError, match=r"by metrics, not by the step alone.*--init_from a\.ckpt"):
            check_stated_anew(schedule, "a.ckpt")
    check_stated_anew(lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=3), "a.ckpt")


@tried
def test_a_finished_run_of_one_cycle_is_prolonged_as_the_refusal_says(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First by max_steps alone, which leaves nothing behind, in Weights & Biases neither; then by what is named.

    Then with the rates of a schedule of seven steps.
    """
    before = files(copied)
    logger = ["--trainer.logger", "WeightsAndBiases", "--trainer.logger.init_args.offline", "true"]
    said = fails(capsys, *on(copied, "--trainer.max_steps", "7", *logger))
    assert "schedule ends at step 4, but the run goes on to step 7" in said
    assert "total_steps to 7 (model.init_args.lr_scheduler.init_args.total_steps" in said
    assert files(copied) == before
    main(on(copied, "--trainer.max_steps", "7", TOTAL, "7"))
    table = capsys.readouterr().out
    assert f"{INIT}.lr_scheduler.init_args.total_steps  4 → 7 (stated anew)" in table
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    of_7 = lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=7, pct_start=0.05, cycle_momentum=False)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        of_7.step()
    assert column(copied, "train/lr")[4:] == pytest.approx(expected[4:], rel=1e-6)
    assert column(copied, "step") == list(range(7))


@tried
def test_a_finished_run_says_so_and_is_left_as_it_is(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where it is further than it is to go."""
    before = files(copied)
    main(on(copied, "--trainer.max_steps", "3"))
    said = capsys.readouterr().out
    assert "is at step 4, already at max_steps 3" in said
    assert "--trainer.max_steps" in said
    assert files(copied) == before


@tried
@pytest.mark.parametrize(
    ("settings", "loops", "over"),
    [
        ({"max_steps": 4}, {}, True),
        ({"max_steps": 5}, {}, False),
        ({"max_steps": 4}, {VALIDATION: {"total": {"started": 1, "processed": 0}}}, False),
        ({"max_steps": 4, "fast_dev_run": True}, {}, False),
        ({"max_steps": -1, "max_epochs": 2}, {"epoch_progress": {"current": {"processed": 2}}}, True),
        ({"max_steps": -1, "max_epochs": 3}, {"epoch_progress": {"current": {"processed": 2}}}, False),
        ({"max_steps": -1}, {}, False),
    ],
    ids=["all steps", "not all steps", "without its last validation", "a dry run", "all epochs", "not all epochs",
         "without an end"],
)  # fmt: skip
def test_whether_a_run_is_finished(settings: dict[str, Any], loops: dict[str, Any], over: bool) -> None:
    resumed = Resumed.__new__(Resumed)
    resumed.path, resumed.step, resumed.checkpoint = "a.ckpt", 4, {"loops": {"fit_loop": loops}}
    trainer = {"max_steps": -1, "max_epochs": None, "fast_dev_run": False, **settings}
    assert (resumed._over(Namespace(**trainer)) is not None) == over


# The rows of metrics.csv


def labelled(
    folder: Path, ends: list[int], every: int, *callbacks: Callback, resumed: bool = False
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The rows of a run of several starts, and its weights at the end."""
    torch.manual_seed(0)
    for start, steps in enumerate(ends):
        module = Diffusion(tiny_unet(), Cosine(T=10), (1, 8, 8))
        trainer = Trainer(
            default_root_dir=folder, accelerator="cpu", max_steps=steps, logger=MetricsFile(folder / "metrics.csv"),
            callbacks=[*callbacks, Checkpoint(every_n_train_steps=every)], log_every_n_steps=2, val_check_interval=3,
            check_val_every_n_epoch=None, limit_val_batches=1, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(
            module, Digits(batch_size=16), ckpt_path=folder / "checkpoints/last.ckpt" if start or resumed else None
        )
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file)), read(folder / "checkpoints/last.ckpt")["state_dict"]


ENDS = {
    "after a run that ends with a validation": [6, 9],
    "after two that do": [3, 6, 9],
    "after a run that ends without": [4, 9],
    "after one that ends with a checkpoint due": [5, 9],
    "after two resumes without steps": [6, 6, 6, 9],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return labelled(tmp_path_factory.mktemp("whole"), [9], 5)


@tried
@pytest.mark.parametrize("kind", ENDS)
def test_the_rows_of_a_prolonged_run_are_those_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: Any, kind: str
) -> None:
    """Labels and values, to the bit."""
    rows, weights = labelled(tmp_path, ENDS[kind], 5)
    assert [row["step"] for row in rows] == ["1", "3", "5", "6", "7", "9"]
    assert rows == undisturbed[0]
    same(weights, undisturbed[1])


class Leaves(Callback):
    """Told to leave, once, in an epoch's hook or a batch's, at a step."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self.leave)

    def leave(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise preemption.Preempted


@tried
@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_validation_batch_start", 6), ("on_validation_batch_start", 9), ("on_train_batch_start", 5)],
    ids=["in a validation", "in the last validation", "after a saved step"],
)
def test_the_rows_of_a_preempted_run_are_those_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: Any, hook: str, step: int
) -> None:
    with pytest.raises(preemption.Preempted):
        labelled(tmp_path, [9], 5, Leaves(hook, step))
    rows, weights = labelled(tmp_path, [9], 5, resumed=True)
    assert rows == undisturbed[0]
    same(weights, undisturbed[1])
