"""The number of threads and how they wait: what the machine allows, what the user says, what a resumed run says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.distributed import threads

from ..conftest import BARE, small_config

tried = pytest.mark.tried("A busy machine")

QUOTAS = {
    "version 2": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "version 2, no quota": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
    "version 2, less than one": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
    "version 2, more than the affinity": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"}, 4),
    "version 2, of a group above": (
        {
            "proc/self/cgroup": "0::/job/step/task",
            "sys/fs/cgroup/job/cpu.max": "300000 100000",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000",
        },
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:memory:/\n4:cpu,cpuacct:/docker/1\n0::/",
            "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "version 1, the container's group as the root": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/1",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "25000",
        },
        2,
    ),
    "version 1, no quota": (
        {
            "proc/self/cgroup": "1:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "nothing is told": ({}, 4),
    "hardware threads in pairs": (
        {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)},
        2,
    ),
}


@tried
@pytest.mark.parametrize(("files", "count"), QUOTAS.values(), ids=QUOTAS)
def test_the_number_of_threads_follows_affinity_and_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads.available(tmp_path) == count


def settled(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], loaded: bool = False) -> dict[str, str]:
    """The environment that `settle` leaves, before torch is loaded or after."""
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(threads, "_ours", False)
    monkeypatch.setattr(threads, "available", lambda: 4)
    with monkeypatch.context() as patch:
        if not loaded:
            patch.delitem(sys.modules, "torch")
        threads.settle()
    return dict(os.environ)


PASSIVE = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


@tried
@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {**PASSIVE, "OMP_NUM_THREADS": "4"}),
        ({"OMP_NUM_THREADS": "1"}, PASSIVE),
        ({"MKL_NUM_THREADS": "3"}, PASSIVE),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS": "4"}),
        ({"GOMP_SPINCOUNT": "77"}, {"OMP_NUM_THREADS": "4"}),
        ({"KMP_BLOCKTIME": "200"}, {"OMP_NUM_THREADS": "4"}),
        ({"KMP_BLOCKTIME": "200", "OMP_NUM_THREADS": "2"}, {}),
    ],
    ids=[
        "nothing", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
        "KMP_BLOCKTIME and OMP_NUM_THREADS",
    ],
)  # fmt: skip
def test_what_the_user_says_of_threads_wins(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], added: dict[str, str]
) -> None:
    assert settled(monkeypatch, given) == {**given, **added}


@tried
def test_once_torch_is_loaded_nothing_of_its_threads_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    assert settled(monkeypatch, {}, loaded=True) == {}
    threads.share(2)
    assert os.environ == {}
    assert torch.get_num_threads() == before


@tried
@pytest.mark.parametrize(("number", "each"), [(1, 4), (2, 2), (3, 1), (8, 1)], ids=["one", "two", "three", "eight"])
def test_processes_of_one_machine_share_its_threads(monkeypatch: pytest.MonkeyPatch, number: int, each: int) -> None:
    """Those that are started later read their number from the environment, and so does Lightning."""
    settled(monkeypatch, {})
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads.share(number)
    assert os.environ["OMP_NUM_THREADS"] == str(each)
    assert found == [each] * (number > 1)
    settled(monkeypatch, {"OMP_NUM_THREADS": "3"})
    threads.share(number)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert found == [each] * (number > 1)


def train(folder: Path, steps: int, *words: str) -> Path:
    """Trains without evaluations; gives the last checkpoint."""
    config = small_config(folder, **{"model.init_args.lr_scheduler": None, "trainer.limit_val_batches": 0})
    main(["fit", "--config", str(config), "--trainer.logger", "false", *BARE,
          "--trainer.max_steps", str(steps), *words])  # fmt: skip
    return folder / "run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("stopped"), 1)


@tried
@pytest.mark.parametrize("then", [None, 1, 0], ids=["an earlier version", "another number", "the same number"])
def test_a_resumed_run_that_has_another_number_of_threads_says_so(
    stopped: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, then: int | None
) -> None:
    now, checkpoint = torch.get_num_threads(), read(stopped)
    assert checkpoint["threads"] == now
    checkpoint["threads"] = then if then is None else now + then
    torch.save(checkpoint, tmp_path / "before.ckpt")
    last = train(tmp_path, 2, "--ckpt_path", str(tmp_path / "before.ckpt"))
    said = [str(warning.message) for warning in recwarn if "thread" in str(warning.message)]
    assert len(said) == (then == 1)
    if said:
        assert f"written with {now + 1} threads per process, but this run has {now}: its results differ" in said[0]
        assert said[0].endswith(f"set OMP_NUM_THREADS={now + 1}")
    assert read(last)["threads"] == now


def unset() -> dict[str, str]:
    """The environment without settings of threads."""
    return {k: v for k, v in os.environ.items() if k.partition("_")[0] not in ("OMP", "GOMP", "KMP", "MKL")}


PROBE = """
import os, sys, types

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from diffusion_lightning.cli.entry import _work

probe = types.ModuleType("diffusion_lightning.cli.probe")
sys.modules["diffusion_lightning.cli.probe"] = probe


def main(given):
    assert "torch" not in sys.modules
    import torch

    print(torch.get_num_threads(), torch.__config__.parallel_info())


probe.main = main
_work("probe", None)
"""


@tried
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, ["GOMP_SPINCOUNT = '1000'", "OMP_NUM_THREADS = '1'"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["OMP_WAIT_POLICY = 'ACTIVE'", "OMP_NUM_THREADS = '1'"]),
        ({"GOMP_SPINCOUNT": "77", "OMP_NUM_THREADS": "3"}, ["GOMP_SPINCOUNT = '77'", "OMP_NUM_THREADS = '3'"]),
    ],
    ids=["nothing", "threads that spin", "spins and threads counted"],
)
def test_what_torchs_library_of_threads_reads_is_what_was_set(given: dict[str, str], says: list[str]) -> None:
    """By its own account, in the process of the command, on one core of the machine."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False,
        env={**unset(), **given, "OMP_DISPLAY_ENV": "VERBOSE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(line in done.stderr for line in says), done.stderr
    if "OMP_NUM_THREADS" not in given:  # MKL may hold a user's number down to that of the cores
        assert done.stdout.startswith("1 ")


@tried
@pytest.mark.slow
def test_two_processes_that_a_run_starts_have_half_of_the_threads_each(tmp_path: Path) -> None:
    words = ["fit", "--config", str(small_config(tmp_path)), "--trainer.accelerator", "cpu", "--trainer.devices", "2",
             "--trainer.strategy", "ddp", "--trainer.logger", "false", *BARE,
             "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", *words], capture_output=True, text=True, check=False, env=unset()
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run/checkpoints/last.ckpt")["threads"] == max(1, threads.available() // 2)
