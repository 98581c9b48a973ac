"""Processes that are killed and links that are cut, under torchrun, under Lightning and between two machines.

Real processes, groups and signals; the machines are network namespaces. A killed rank ends the job within 10 seconds:
this bound is promised, and the only time that a test asserts.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning.checkpoints import read

from ..conftest import small_config
from ..support.exactness import same
from ..support.processes import COMMAND, ENVIRONMENT, Process, alive, descendants, free_port, rank, started, wait
from ..support.rows import rows

pytestmark = pytest.mark.slow

PROMISED = 10.0  # seconds from a rank's death to the end of the job
TORCHRUN = ["-m", "torch.distributed.run"]
STEPS = 200

ENDS = ("left", "right")  # of the link between two machines


def config(folder: Path, **changes: Any) -> Path:
    """A run of two processes with 32 images each: 200 steps, checkpoints every 20, one validation in the middle."""
    return small_config(folder, **{
        "trainer.max_steps": STEPS, "trainer.val_check_interval": 100, "trainer.log_every_n_steps": 1,
        "trainer.logger": False, "trainer.enable_progress_bar": False,
        "model.init_args.lr_scheduler.init_args.total_steps": STEPS, "model.init_args.network.init_args.dropout": 0.1,
        "checkpoint.every_n_train_steps": 20, **changes,
    })  # fmt: skip


def trained(root: Path) -> int:
    """How many steps stand in the record of a run."""
    return len(rows(root / "metrics.csv")) if (root / "metrics.csv").exists() else 0


def torchrun(*words: str, restarts: int = 0, processes: int = 2) -> list[str]:
    return [sys.executable, *TORCHRUN, "--nproc_per_node", str(processes), "--max-restarts", str(restarts),
            "--standalone", *COMMAND, *words, "--trainer.devices", str(processes)]  # fmt: skip


def result(root: Path) -> dict[str, Any]:
    checkpoint = read(root / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == STEPS
    return {
        "weights": checkpoint["state_dict"],
        "average": checkpoint["callbacks"]["EMA"],
        "optimizer": checkpoint["optimizer_states"],
    }


def losses(root: Path) -> list[float]:
    """Of the first step to the last, each of them once."""
    found = [row for row in rows(root / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in found] == list(range(len(found)))
    return [float(row["train/loss"]) for row in found]


def kill(process: Process, victim: str, log: Path) -> None:
    """SIGKILLs the process of one rank; the others, and what started them, have ended in the time that is promised."""
    children = descendants(process.pid)
    family = [process.pid, *children]
    # Lightning's own first process is rank 0; torchrun's is none.
    os.kill(next((pid for pid in children if rank(pid) == victim), process.pid), signal.SIGKILL)
    since = time.monotonic()
    while (process.poll() is None or any(map(alive, family))) and time.monotonic() < since + 60:
        time.sleep(0.01)
    seconds = time.monotonic() - since
    print(f"rank {victim} killed: all over after {seconds:.1f} s, exit status {process.returncode}")
    assert seconds < PROMISED, log.read_text()[-4000:]
    assert process.returncode != 0


@pytest.mark.parametrize("victim", ["0", "1"])
def test_torchrun_ends_when_a_rank_is_killed(victim: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = torchrun(str(config(tmp_path)))
    with started(words, log) as process:
        wait(lambda: trained(tmp_path / "run") > 30, process, log)
        kill(process, victim, log)
    assert trained(tmp_path / "run") < STEPS
    assert 'diffusion_lightning/cli/entry.py", line' not in log.read_text()  # torchrun's own traceback is the only one


@pytest.mark.parametrize("victim", ["0", "1"])
def test_lightning_ends_when_a_rank_is_killed(victim: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [sys.executable, *COMMAND, str(config(tmp_path)), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with started(words, log) as process:
        wait(lambda: trained(tmp_path / "run") > 30, process, log)
        kill(process, victim, log)
    assert trained(tmp_path / "run") < STEPS
    said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"error: rank {1 - int(victim)} of 2 on ")
    assert "lost the others (" in said[0]
    assert "Traceback" not in log.read_text()


def test_torchrun_restarts_from_the_last_checkpoint_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    """One rank is killed in the first attempt, the other in the second."""
    file, whole, broken = config(tmp_path), tmp_path / "whole", tmp_path / "broken"

    def words(root: Path) -> list[str]:
        return torchrun(str(file), "--trainer.default_root_dir", str(root), "--ckpt_path", "last", restarts=3)

    with started(words(whole), tmp_path / "whole.log") as process:
        assert process.wait() == 0, (tmp_path / "whole.log").read_text()[-4000:]

    log = tmp_path / "broken.log"
    with started(words(broken), log) as process:
        for victim, after in (("1", 50), ("0", 130)):
            wait(lambda after=after: trained(broken) > after, process, log)  # type: ignore[misc]
            ranks = {rank(pid): pid for pid in descendants(process.pid)}
            os.kill(ranks[victim], signal.SIGKILL)
            wait(lambda ranks=ranks: not any(map(alive, ranks.values())), process, log)  # type: ignore[misc]
            print(f"rank {victim} killed with {trained(broken)} of {STEPS} steps done")
        assert process.wait() == 0, log.read_text()[-4000:]

    same(result(whole), result(broken))
    assert losses(whole) == losses(broken)
    assert rows(whole / "metrics.csv")[-1].keys() == rows(broken / "metrics.csv")[-1].keys()


def test_two_nodes_of_torchrun_train_the_losses_of_one_process(tmp_path: Path) -> None:
    """Two agents on the loopback device, one process each, against one process with the batch of both."""
    file = config(tmp_path, **{
        "trainer.limit_val_batches": 0, "trainer.max_steps": 100, "model.init_args.lr_scheduler": None,
        "model.init_args.optimizer.init_args.lr": 2e-4, "model.init_args.network.init_args.dropout": 0.0,
    })  # fmt: skip
    alone, together = tmp_path / "alone", tmp_path / "together"
    subprocess.run(
        [sys.executable, *COMMAND, str(file), "--trainer.default_root_dir", str(alone),
         "--data.init_args.batch_size", "64"],
        check=True, capture_output=True, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    agent = [sys.executable, *TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv-backend", "c10d",
             "--rdzv-id", "two", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1",
             *COMMAND, str(file), "--trainer.default_root_dir", str(together), "--trainer.num_nodes", "2"]  # fmt: skip
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    with started(agent, logs[0]) as first, started(agent, logs[1]) as second:
        assert first.wait() == 0, logs[0].read_text()[-4000:]
        assert second.wait() == 0, logs[1].read_text()[-4000:]
    found, expected = torch.tensor(losses(together)), torch.tensor(losses(alone))
    assert len(expected) == 100
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces with a loopback device each, linked by `left`, 10.77.0.1, and `right`, 10.77.0.2."""
    name = f"dl{uuid.uuid4().hex[:8]}"
    names = [f"{name}{end}" for end in ENDS]
    try:
        for machine in names:
            ip("netns", "add", machine)
            ip("-n", machine, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "name", "left", "type", "veth", "peer", "name", "right", "netns", names[1])
        for machine, end, number in zip(names, ENDS, (1, 2), strict=True):
            ip("-n", machine, "address", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", machine, "link", "set", end, "up")
        yield names
    finally:
        for machine in names:
            subprocess.run(["ip", "netns", "delete", machine], check=False, capture_output=True)


def no_namespaces() -> str | None:
    """Why this machine has none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces take root and the command `ip`"
    name = f"dl{uuid.uuid4().hex[:8]}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"this machine lets no network namespace be made: {error.stderr.decode().strip()}"
    return None


def test_both_ends_of_a_cut_link_raise_and_say_so(tmp_path: Path) -> None:
    """Both within the timeout of 8 seconds, one more for a step and 10 for the end of a process."""
    if (reason := no_namespaces()) is not None:
        pytest.skip(reason)
    timeout = 8
    file = config(tmp_path, **{
        "trainer.devices": 1, "trainer.num_nodes": 2, "trainer.max_steps": 100_000, "trainer.limit_val_batches": 0,
        "trainer.strategy": {"class_path": "DDPStrategy", "init_args": {"timeout": f"0:00:0{timeout}"}},
        "model.init_args.lr_scheduler": None, "checkpoint.every_n_train_steps": 100_000,
    })  # fmt: skip
    logs = [tmp_path / "left.log", tmp_path / "right.log"]
    with two_machines() as machines:
        words = [["ip", "netns", "exec", name, sys.executable, *COMMAND, str(file)] for name in machines]
        places = [
            {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "NODE_RANK": str(node), "LOCAL_RANK": "0",
             "GLOO_SOCKET_IFNAME": end}
            for node, end in enumerate(ENDS)
        ]  # fmt: skip
        with started(words[0], logs[0], places[0]) as first, started(words[1], logs[1], places[1]) as second:
            wait(lambda: trained(tmp_path / "run") > 30, first, logs[0])
            assert second.poll() is None, logs[1].read_text()[-4000:]
            ip("-n", machines[0], "link", "set", "left", "down")
            since = time.monotonic()
            ended: dict[int, float] = {}
            while len(ended) < 2 and time.monotonic() < since + 120:
                for number, process in enumerate((first, second)):
                    if process.poll() is not None:
                        ended.setdefault(number, time.monotonic() - since)
                time.sleep(0.01)
            print(f"cut: ended after {ended}, {first.returncode}, {second.returncode}")
            assert len(ended) == 2, [log.read_text()[-2000:] for log in logs]
            for number, process, log in zip((0, 1), (first, second), logs, strict=True):
                assert ended[number] < timeout + 1 + PROMISED
                assert process.returncode == 1, log.read_text()[-4000:]
                said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
                assert len(said) == 1, log.read_text()[-4000:]
                assert f"rank {number} of 2 on " in said[0]
                assert f"(Timed out waiting {timeout}000ms for " in said[0]
                assert "Traceback" not in log.read_text()


def test_the_written_configuration_names_the_timeout(tmp_path: Path) -> None:
    """So that it may be read, and holds where the run is started from it again."""
    file = config(tmp_path, **{
        "trainer.strategy": {"class_path": "DDPStrategy"}, "trainer.max_steps": 2, "trainer.limit_val_batches": 0,
        "trainer.devices": 1,
    })  # fmt: skip
    subprocess.run([sys.executable, *COMMAND, str(file)], check=True, capture_output=True,
                   env={**os.environ, **ENVIRONMENT, "MASTER_PORT": str(free_port())})  # fmt: skip
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["trainer"]["strategy"]["init_args"]["timeout"] == "0:02:00"
