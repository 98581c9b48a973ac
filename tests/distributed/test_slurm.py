"""Jobs of a real SLURM on two nodes: preempted, requeued, cancelled, failed; by configs/slurm/train.sbatch as it is."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning.checkpoints import read
from diffusion_lightning.distributed import preemption

from ..conftest import ROOT, small_config
from ..support.exactness import pictures, same, state, table
from ..support.slurm import Slurm, missing
from ..support.wandb_runs import history

SCRIPT = ROOT / "configs/slurm/train.sbatch"
STEPS = 90
# Two nodes, no GPU; the log as the script has it.
NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


class SlowDisk(Callback):
    """A checkpoint takes a third of a second to reach the disk, so that a signal can come in the middle of it."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        fsync = os.fsync

        def slow(file: Any) -> None:
            time.sleep(0.33)
            fsync(file)

        os.fsync = slow  # type: ignore[assignment]


class Apart(Callback):
    """In the first validation one process waits for the other where no signal reaches it."""

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if preemption.restarted() or trainer.sanity_checking:
            return
        if trainer.global_rank:
            Path("apart").touch()
            time.sleep(600)
        trainer.strategy.barrier()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return small_config(tmp_path, **{
        "trainer.max_steps": STEPS, "trainer.val_check_interval": 30, "trainer.accumulate_grad_batches": 2,
        "trainer.log_every_n_steps": 1, "model.init_args.lr_scheduler.init_args.total_steps": STEPS,
        "model.init_args.network.init_args.dropout": 0.2, "data.init_args.batch_size": 16,
        "data.init_args.num_workers": 1, "data.init_args.flip": True, "checkpoint.every_n_train_steps": 4,
        "ema.decay": 0.9,
    })  # fmt: skip


def submit(slurm: Slurm, folder: Path, config: Path, *words: str) -> tuple[str, Path]:
    """The job's number and the folder of its run."""
    number = slurm.submit(
        folder, *NODES, str(SCRIPT), str(config), "--trainer.callbacks+", f"{__name__}.SlowDisk", *words,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    return number, folder / f"runs/diffusion-{number}"


def until(holds: Callable[[], bool], slurm: Slurm, number: str, folder: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{slurm.show(number)}\n{log(folder, number)}"
        time.sleep(0.01)


def ended(slurm: Slurm, number: str) -> bool:
    return slurm.show(number)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def log(folder: Path, number: str) -> str:
    path = folder / f"slurm-{number}.log"
    # Two processes write into it, and one may be in the middle of a letter.
    return path.read_text(errors="replace") if path.exists() else "no log"


def restarts(slurm: Slurm, number: str) -> int:
    return int(slurm.show(number)["Restarts"])


def test_preempted_in_training_in_validation_and_while_writing_the_job_ends_as_the_undisturbed_one(
    slurm: Slurm, config: Path, tmp_path: Path
) -> None:
    """Weights, averages, optimizer, every logged row, every picture; one run in Weights & Biases, each step once."""
    number, whole = submit(slurm, tmp_path, config)
    until(lambda: ended(slurm, number), slurm, number, tmp_path)
    assert slurm.show(number)["JobState"] == "COMPLETED", log(tmp_path, number)

    number, broken = submit(slurm, tmp_path, config)
    last = broken / "checkpoints/last.ckpt"

    def in_training() -> bool:
        return last.exists() and not list(last.parent.glob("*.part")) and read(last)["global_step"] >= 4

    def in_validation() -> bool:  # the grid is drawn, the metrics are not
        return bool(pictures(broken))

    def while_writing() -> bool:
        return any(last.parent.glob(".last.ckpt.*.part")) and len(pictures(broken)) > 1

    for k, moment in enumerate((in_training, in_validation, while_writing)):
        until(moment, slurm, number, tmp_path)
        slurm.signal(number)
        until(lambda k=k: restarts(slurm, number) == k + 1, slurm, number, tmp_path)  # type: ignore[misc]
        print(moment.__name__, "requeued at step", read(last)["global_step"], "of", STEPS)
    until(lambda: ended(slurm, number), slurm, number, tmp_path)
    assert slurm.show(number)["JobState"] == "COMPLETED", log(tmp_path, number)
    said = log(tmp_path, number)
    assert said.count("was put back into the queue") == 3, said
    assert "Traceback" not in said

    same(state(whole), state(broken))
    assert table(whole) == table(broken)
    assert [p.read_bytes() for p in pictures(whole)] == [p.read_bytes() for p in pictures(broken)]
    found, expected = history(broken), history(whole)
    steps = [row["_step"] for row in found]
    assert steps == sorted(set(steps)) == [row["_step"] for row in expected]
    assert [row.get("train/loss") for row in found] == [row.get("train/loss") for row in expected]
    assert [row.get("val/fd_digits") for row in found] == [row.get("val/fd_digits") for row in expected]
    assert len({folder.name.rpartition("-")[2] for folder in (broken / "wandb").glob("offline-run-*")}) == 1


def test_a_process_that_waits_for_one_which_has_left_does_not_keep_the_job_from_the_queue(
    slurm: Slurm, config: Path, tmp_path: Path
) -> None:
    number, run = submit(slurm, tmp_path, config, "--trainer.callbacks+", "tests.distributed.test_slurm.Apart")
    until((tmp_path / "apart").exists, slurm, number, tmp_path)
    time.sleep(1)  # the other one has come to its barrier
    slurm.signal(number)
    until(lambda: restarts(slurm, number) == 1, slurm, number, tmp_path, 1.5 * preemption.TURN)
    until(lambda: ended(slurm, number), slurm, number, tmp_path)
    said = log(tmp_path, number)
    assert slurm.show(number)["JobState"] == "COMPLETED", said
    assert read(run / "checkpoints/last.ckpt")["global_step"] == STEPS
    assert restarts(slurm, number) == said.count("was put back into the queue") == 1, said
    assert "Traceback" not in said


def test_a_cancelled_job_stays_cancelled_and_a_failed_one_failed(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    """A cancelled one is told by SIGTERM and saves; a new job starts afresh, in a folder of its own."""
    number, root = submit(slurm, tmp_path, config)
    last = root / "checkpoints/last.ckpt"
    until(last.exists, slurm, number, tmp_path)
    slurm.ask("scancel", number)
    until(lambda: ended(slurm, number), slurm, number, tmp_path)
    assert slurm.show(number)["JobState"] == "CANCELLED"
    assert "was not requeued" in log(tmp_path, number)
    saved = read(last)["global_step"]
    assert 4 <= saved < STEPS

    other, fresh = submit(slurm, tmp_path, config, "--trainer.max_steps", "3")
    until(lambda: ended(slurm, other), slurm, other, tmp_path)
    assert slurm.show(other)["JobState"] == "COMPLETED", log(tmp_path, other)
    assert read(fresh / "checkpoints/last.ckpt")["global_step"] == 3
    assert read(last)["global_step"] == saved

    wrong, _ = submit(slurm, tmp_path, config, "--data.init_args.batch_size", "4000")
    until(lambda: ended(slurm, wrong), slurm, wrong, tmp_path)
    assert slurm.show(wrong)["JobState"] == "FAILED"
    assert slurm.show(wrong)["Restarts"] == "0"
    assert "error: one step takes 16000 images" in log(tmp_path, wrong)
