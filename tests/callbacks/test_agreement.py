"""Ranks that do not train one and the same thing, and ranks that hang: what ends, who says why, and what is left."""

import contextlib
import io
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from diffusion_lightning.callbacks import Agreement, GenerativeMetrics
from diffusion_lightning.callbacks.base import everywhere
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.cli.run_folder import check_ranks
from diffusion_lightning.data import Digits
from diffusion_lightning.distributed.timeouts import PARENT, _end, ending_with
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.metrics import FrechetDistance
from diffusion_lightning.modules import Generative

from ..conftest import small_config
from ..support.groups import ranks
from ..support.processes import COMMAND, alive, descendants, free_port, rank, started, wait
from ..support.rows import rows

HOST = platform.node()


# The start

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_steps": 6, "default_root_dir": "runs/a", "callbacks": [{"class_path": "A"}, {"class_path": "B"}]},
    "model": {"init_args": {"optimizer": {"init_args": {"lr": 1e-3}}}},
    "data": {"class_path": "Arrays", "init_args": {"path": "/a/set.npz", "batch_size": 4, "flip": False}},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *parents, last = key.split(".")
    at = config
    for parent in parents:
        at = at[int(parent) if isinstance(at, list) else parent]
    at[int(last) if isinstance(at, list) else last] = value
    return config


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed_everything", 1),
        ("trainer.max_steps", 7),
        ("trainer.callbacks.1.class_path", "C"),
        ("trainer.callbacks", []),
        ("model.init_args.optimizer.init_args.lr", 2e-3),
        ("data.init_args.batch_size", 5),
        ("data.init_args.flip", True),
        ("data.init_args.path", "/b/set.npz"),  # these data cannot be compared themselves
        ("data.init_args.new", 1),
    ],
)
def test_a_rank_with_another_configuration_is_named_on_every_rank(key: str, value: Any) -> None:
    other = changed(key, value)

    def work(rank: int) -> None:
        check_ranks(yaml.safe_dump(other if rank == 1 else CONFIG), None)

    for _, said in ranks(work):
        assert said is not None
        assert said.startswith(f"rank 0 on {HOST} and rank 1 on {HOST} have different configurations ({key}")
        assert "start all ranks with the same words" in said


def held(change: str | None) -> Digits:
    data = Digits()
    data.setup("fit")
    (x, y), (x_val, y_val) = data.splits["train"], data.splits["val"]
    if change == "a pixel":
        x = x.clone()
        x[700, 0, 3, 3] ^= 1
    elif change == "the order":
        x, y = x.flip(0), y.flip(0)
    elif change == "an image less":
        x, y = x[:-1], y[:-1]
    elif change == "a label":
        y = y.clone()
        y[5] = (y[5] + 1) % 10
    elif change == "a pixel of the validation set":
        x_val = x_val.clone()
        x_val[0, 0, 0, 0] ^= 1
    data.splits = {"train": (x, y), "val": (x_val, y_val)}
    return data


CHANGES = ["a pixel", "the order", "an image less", "a label", "a pixel of the validation set"]


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize("change", CHANGES)
def test_a_rank_with_other_data_is_named_on_every_rank(change: str) -> None:
    text = yaml.safe_dump(CONFIG)
    sets = held(None), held(None), held(change)
    for _, said in ranks(lambda rank: check_ranks(text, sets[rank]), world=3):
        assert said is not None
        assert said.startswith(f"rank 0 on {HOST} and rank 2 on {HOST} have different data (")
        assert ("val images" if "validation" in change else "train labels" if "label" in change else "train im") in said
        assert said.endswith("give all ranks the same images and labels, in the same order")


@pytest.mark.tried("Several processes")
def test_ranks_that_differ_in_places_alone_agree() -> None:
    """Each machine may have its own copy of the data, which are compared themselves, and its own path to the run."""
    other = changed("data.init_args.path", "/scratch/set.npz")
    other["trainer"]["default_root_dir"] = "/mnt/runs/a"
    data = held(None)
    assert ranks(lambda rank: check_ranks(yaml.safe_dump(other if rank else CONFIG), data)) == [(None, None)] * 2


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize(("step", "batches"), [(5, 9), (6, 8)], ids=["another step", "another number of batches"])
def test_ranks_that_would_go_on_from_other_places_are_refused(step: int, batches: int) -> None:
    def work(rank: int) -> None:
        one: Any = SimpleNamespace(global_step=step if rank else 6, num_training_batches=batches if rank else 9)
        Agreement().on_train_start(one, None)  # type: ignore[arg-type]

    for _, said in ranks(work):
        assert said is not None
        assert "have different places in the training" in said


def test_one_process_agrees_with_itself() -> None:
    assert everywhere(3) == [3]


# Weights, before a checkpoint is written


def weights(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2, bias=False))
    if kind == "channels last":
        return module.to(memory_format=torch.channels_last)
    return module.to(getattr(torch, kind))


def save(module: nn.Module, world: int = 2) -> None:
    one: Any = SimpleNamespace(world_size=world, global_step=4)
    Agreement().on_save_checkpoint(one, module, {})  # type: ignore[arg-type]


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64", "channels last"])
def test_one_bit_of_a_weight_that_differs_keeps_the_checkpoint_from_being_written(kind: str) -> None:
    def work(rank: int) -> None:
        module = weights(kind)
        if rank == 1:
            weight = module[2].weight.data  # type: ignore[index]
            weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0, dtype=weight.dtype))
        save(module)

    for _, said in ranks(work):
        assert said is not None
        assert "have different weights (2.weight: " in said
        assert "this checkpoint of step 4 is not written, the earlier ones stay" in said


@pytest.mark.tried("Several processes")
def test_equal_weights_with_statistics_of_their_own_are_saved() -> None:
    """The buffers of a BatchNorm are each rank's own."""

    def work(rank: int) -> None:
        module = weights("float32")
        module[1].running_mean += rank  # type: ignore[index]
        save(module)

    assert ranks(work) == [(None, None)] * 2


# The shared cache of references


class Noise(Generative):
    """Makes samples, as far as a metric sees a model."""

    check = angles = operations = draw = None  # type: ignore[assignment]

    def generate(self, n: int, *more: Any, first: int = 0, **kwargs: Any) -> Tensor:
        return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(first)) * 2 - 1


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize("differs", [False, True], ids=["the same images", "other images"])
def test_no_reference_is_kept_of_ranks_with_other_images(
    differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path))

    def work(rank: int) -> Any:
        callback = GenerativeMetrics([FrechetDistance(DigitsNet(), allow_few=True)], n=40, batch_size=20)
        strategy = SimpleNamespace(
            root_device=torch.device("cpu"),
            reduce_boolean_decision=lambda holds, all: False not in everywhere(bool(holds)),
        )
        one: Any = SimpleNamespace(
            world_size=2, global_rank=rank, is_global_zero=rank == 0, strategy=strategy, state=SimpleNamespace(fn=None),
            datamodule=held("a pixel" if differs and rank else None),
        )  # fmt: skip
        callback.check(one, 40)
        values = callback.round(one, Noise(), "val", 40, None).values
        return float(values["fd_digits"])

    (first, said), (second, said_too) = ranks(work)
    kept = list(tmp_path.rglob("*.npz"))
    if differs:
        assert said is not None
        assert said == said_too
        assert "have different real images to compare samples with (hash of the images" in said
        assert kept == []
    else:
        assert said is None, said
        assert first == second
        assert len(kept) == 1


# The processes that Lightning starts


def launched(*codes: str, seconds: float = 60) -> Any:
    """A trainer whose launcher started these programs, and which waits for them so long at its end."""
    strategy = DDPStrategy(timeout=timedelta(seconds=seconds))
    one = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    one.strategy.launcher.procs = [subprocess.Popen([sys.executable, "-S", "-c", code]) for code in codes]  # type: ignore[union-attr]
    return one


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize("way", ["stopped", "hung"])
def test_no_process_outlives_the_one_that_started_it_and_failed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_lightning.distributed.timeouts.GRACE", 0.2)
    one = launched("import time; time.sleep(600)", "pass")
    hung = one.strategy.launcher.procs[0]
    if way == "stopped":
        hung.send_signal(signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="the first error"), ending_with(one):
        raise RuntimeError("the first error")
    assert hung.poll() == -signal.SIGKILL


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize(
    ("code", "seconds", "says"),
    [
        pytest.param("import time; time.sleep(600)", 2, "hung and was killed", marks=pytest.mark.slow),
        ("raise SystemExit(3)", 60, "ended with status 3"),
    ],
    ids=["hangs at its end", "fails at its end"],
)
def test_a_command_whose_other_process_fails_does_not_end_well(code: str, seconds: float, says: str) -> None:
    one = launched("pass", code, seconds=seconds)
    with pytest.raises(ValueError, match=f"the process of local rank 2 {says}"), ending_with(one):
        pass


@pytest.mark.tried("Several processes")
def test_a_process_ends_if_the_one_that_started_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NCCL's watchdog does, without a word to Python."""
    monkeypatch.setattr("diffusion_lightning.distributed.timeouts.GRACE", 0.2)
    file, one = tmp_path / "pid", SimpleNamespace(strategy=SimpleNamespace(launcher=None))

    def first() -> None:
        os.environ[PARENT] = str(os.getpid())
        if os.fork() == 0:
            with ending_with(one):  # type: ignore[arg-type]
                file.with_suffix(".part").write_text(str(os.getpid()))
                file.with_suffix(".part").rename(file)
                time.sleep(600)
        time.sleep(600)

    command = multiprocessing.get_context("fork").Process(target=first)
    command.start()
    until(file.exists)
    other = int(file.read_text())
    assert alive(other)
    command.kill()
    command.join()
    until(lambda: not alive(other))


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.tried("Several processes")
def test_a_process_that_still_writes_is_waited_for(tmp_path: Path) -> None:
    one = launched(f"import time; time.sleep(0.5); open({str(tmp_path / 'written')!r}, 'w').close()")
    with ending_with(one):
        pass
    assert (tmp_path / "written").exists()
    assert _end(one, 1) == []


# Whole runs


OTHER = f"{__name__}.Other"  # its path in a config


class Other(Digits):
    """Digits, of which rank 1 has one pixel otherwise."""

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        images, y = super().read(split)
        images = images.clone()
        images[7, 0, 4, 4] ^= int(os.environ["RANK"])
        return images, y


class Drift(Callback):
    """Moves a weight on rank 1, once."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            with torch.no_grad():
                next(module.parameters()).flatten()[0] += 1e-3


class Impatient(Callback):
    """A timeout of seconds, once the processes have met, which takes as long as their imports."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=3), dist.group.WORLD)


def child(rank: int, port: int, words: list[str], said: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
        "DIFFUSION_LIGHTNING_CACHE": str(said.parent / "cache"),
    }  # fmt: skip
    torch.set_num_threads(1)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            main(words)
    finally:
        said.write_text(text.getvalue())


def both(folder: Path, *words: list[str]) -> list[str]:
    """Runs the command of each rank, of which both fail; what they said."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload(["diffusion_lightning.cli.fit"])
    files = [folder / f"said{rank}" for rank in range(2)]
    processes = [context.Process(target=child, args=(k, port, words[k], files[k])) for k in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    said = [file.read_text() if file.exists() else "" for file in files]
    assert not hung, said
    assert [process.exitcode for process in processes] == [1, 1], said
    return said


DDP = [
    "--trainer.devices",
    "2",
    "--trainer.strategy",
    "ddp",
    "--trainer.accelerator",
    "cpu",
    "--trainer.logger",
    "false",
]


@pytest.mark.slow
@pytest.mark.tried("Several processes")
@pytest.mark.parametrize(
    ("subcommand", "changes", "of_one", "says"),
    [
        ("fit", {}, ["--ema.decay", "0.6"], "different configurations (ema.decay: 0.5 and 0.6)"),
        ("fit", {}, ["--metrics", "null"], "different configurations (metrics"),
        ("fit", {"data": {"class_path": OTHER}}, [], "different data (train images: "),
        (
            "validate",
            {"data": {"class_path": OTHER}},
            [],
            "different data (val images: ",
        ),
    ],
    ids=[
        "fit with other configurations",
        "fit with other callbacks",
        "fit with other data",
        "validate with other data",
    ],
)
def test_a_run_whose_ranks_differ_ends_at_its_start_and_leaves_nothing(
    subcommand: str, changes: dict[str, Any], of_one: list[str], says: str, run: Path, tmp_path: Path
) -> None:
    words = [subcommand, "--config", str(small_config(tmp_path, **changes)), *DDP]
    if subcommand == "validate":
        words += ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    for text in both(tmp_path, words, [*words, *of_one]):
        said = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, text
        assert says in said[0]
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.npz"))


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_a_weight_that_moves_on_one_rank_ends_the_run_with_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = small_config(tmp_path, **{"trainer.limit_val_batches": 0})
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "tests.callbacks.test_agreement.Drift"}]
    path.write_text(yaml.safe_dump(config))
    words = ["fit", "--config", str(path), *DDP]
    for text in both(tmp_path, words, words):
        assert "error: rank 0 on " in text
        assert "have different weights (" in text
        assert "this checkpoint of step 4 is not written" in text
    assert sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir()) == ["last.ckpt", "step=2.ckpt"]
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_a_rank_that_hangs_ends_with_the_command_at_the_timeout(tmp_path: Path) -> None:
    file = small_config(tmp_path, **{
        "trainer.max_steps": 100_000, "trainer.limit_val_batches": 0, "trainer.devices": 2, "trainer.logger": False,
        "trainer.strategy": "ddp",
        "trainer.log_every_n_steps": 1, "model.init_args.lr_scheduler": None, "checkpoint.every_n_train_steps": 100_000,
    })  # fmt: skip
    config = yaml.safe_load(file.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "tests.callbacks.test_agreement.Impatient"}]
    file.write_text(yaml.safe_dump(config))
    log, metrics = tmp_path / "log", tmp_path / "run/metrics.csv"
    with started([sys.executable, *COMMAND, str(file)], log) as process:
        wait(lambda: metrics.exists() and len(rows(metrics)) > 3, process, log)
        family = [process.pid, *descendants(process.pid)]
        child = next(pid for pid in family[1:] if rank(pid) == "1")
        os.kill(child, signal.SIGSTOP)
        assert process.wait(60) == 1, log.read_text()[-4000:]
        assert not any(map(alive, family)), [pid for pid in family if alive(pid)]
    said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith("error: rank 0 of 2 on ")
    assert "lost the others (Timed out waiting 3000ms for" in said[0]
    assert "Traceback" not in log.read_text()
