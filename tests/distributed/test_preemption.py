"""Runs that are told to leave, at every kind of moment, and go on; each against the undisturbed one."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import run_folder
from diffusion_lightning.distributed import preemption

from ..conftest import small_config
from ..support.exactness import EVERYTHING, child, framed, pictures, same, state, table

When = Callable[[Path], bool]


def fit(config: Path, root: Path, when: When | None = None, number: int = signal.SIGUSR1) -> int:
    """Runs `fit --ckpt_path last`, sent a signal once `when(root)` holds; its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_lightning.cli.fit"])
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(root), "--ckpt_path", "last"]
    process = context.Process(target=child, args=(words,))
    process.start()
    while process.is_alive():
        if when is not None and when(root):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, number)  # its workers too, as SLURM does
            break
        time.sleep(0.004)
    process.join()
    return process.exitcode or 0


def training(root: Path) -> When:
    """In mid-training: the last row of the metrics is a new one, of training."""
    before = lines(root)
    return lambda root: lines(root) > before


def validating(root: Path) -> When:
    """The grid is drawn, the metrics are not."""
    before = len(pictures(root))
    return lambda root: len(pictures(root)) > before


def writing(root: Path) -> When:
    return lambda root: any((root / "checkpoints").glob("*.part"))


def lines(root: Path) -> int:
    path = root / "metrics.csv"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_told_to_leave_at_every_kind_of_moment_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """In training, in validations (the last step's too), while writing; by both signals; bit for bit, no row twice."""
    config = framed(tmp_path, "EDM", **{
        **EVERYTHING, "trainer.log_every_n_steps": 1, "trainer.val_check_interval": 30, "trainer.max_steps": 90,
        "model.init_args.lr_scheduler.init_args.total_steps": 90,
    })  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(config, whole) == 0
    moments = [training, validating, writing, training, validating, writing, validating, training]
    for k, moment in enumerate(moments):
        assert fit(config, broken, moment(broken), preemption.SIGNALS[k % 2]) == preemption.EXIT_CODE
        last = broken / "checkpoints/last.ckpt"
        print(moment.__name__, "left at step", read(last)["global_step"])
    while fit(config, broken, validating(broken)) == preemption.EXIT_CODE:
        pass  # every validation is left in its middle, the last step's included
    assert len(pictures(broken)) == 6
    same(state(whole), state(broken))
    assert table(whole) == table(broken)
    assert [p.name for p in pictures(whole)] == [p.name for p in pictures(broken)]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(pictures(whole), pictures(broken), strict=True))


def listens(process: subprocess.Popen) -> bool:
    """Whether it has a handler of SIGUSR1, as the kernel sees it."""
    caught = Path(f"/proc/{process.pid}/status").read_text().split("SigCgt:")[1].split()[0]
    return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="sees the handlers of a process in /proc")
def test_a_signal_during_the_start_is_answered_and_costs_nothing(tmp_path: Path) -> None:
    """As soon as Python listens, while it imports, while the model is built, before or after the first step."""
    config = small_config(tmp_path, **{
        "trainer.logger": False, "trainer.max_steps": 50_000, "trainer.limit_val_batches": 0,
        "model.init_args.lr_scheduler.init_args.total_steps": 50_000,
    })  # fmt: skip
    command = [sys.executable, "-m", "diffusion_lightning", "fit", "--config", str(config)]
    for delay in (0.0, 2.0, 5.0, 8.0):
        root = tmp_path / f"after {delay}"
        process = subprocess.Popen(
            [*command, "--trainer.default_root_dir", str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not listens(process):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate()
        assert process.returncode == preemption.EXIT_CODE, said
        assert "Traceback" not in said
        assert "stopped by SIGUSR1: nothing new is kept" in said or "stopped by SIGUSR1 at step" in said
        assert (root / "checkpoints/last.ckpt").exists() == ("SIGUSR1 at step" in said)


def test_a_requeued_job_goes_on_from_its_own_checkpoint_and_a_new_one_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "checkpoints/last.ckpt"
    last.parent.mkdir()
    last.touch()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / run_folder.JOB).write_text(preemption.name() or "")
    with pytest.raises(ValueError, match="already holds checkpoints"):  # its first start, in a used folder
        run_folder.start(tmp_path, None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for asked in (None, "last", "another/run.ckpt"):
        assert run_folder.start(tmp_path, asked) == str(last)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    with pytest.raises(ValueError, match="already holds checkpoints"):
        run_folder.start(tmp_path, None)
    assert run_folder.start(tmp_path, "another/run.ckpt") == "another/run.ckpt"
    assert run_folder.start(tmp_path / "other", "last") is None


def test_the_checkpoint_of_lightnings_own_requeueing_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(ValueError, match="without being asked: move it away"):
        run_folder.start(tmp_path, None)


def test_the_tasks_of_an_array_are_jobs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert preemption.name() == "slurm  20_3"
