"""What several tests need: the exact denoiser of Gaussian data, a small model, a small config and a finished run."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from diffusion_lightning.cli import main
from diffusion_lightning.denoising import Prediction
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Betas, Linear, Schedule, Shifted, ZeroTerminalSNR

# Whose fixtures every test may take.
pytest_plugins = ["tests.support.resuming", "tests.support.torchvision_sets", "tests.support.weights"]

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/digits.yaml"

# For the processes that tests start: an installed package (torch-fidelity) brings a folder `tests` too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole of the default tests, and of the slow ones; one for a part."""
    kind = "not slow" in config.option.markexpr or config.option.markexpr == "slow"
    return 2 if kind and config.args == config.getini("testpaths") and not config.option.keyword else 0


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is read from, or left in, the user's cache."""
    use_two_threads()
    if "PYTEST_XDIST_WORKER" in os.environ:  # so that the commands which tests start do not outnumber the cores either
        os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DIFFUSION_LIGHTNING_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def as_at_a_terminal() -> Iterator[None]:
    """Signals as a command has them that a person starts, though what runs the tests may have some ignored."""
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def use_two_threads() -> None:
    """Two workers of pytest-xdist share two cores, and nothing here is large enough for more."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ and os.environ.get("OMP_NUM_THREADS") != "1"
    torch.set_num_threads(2 if alone else 1)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """In a test, and after it too: a command sets its own number, and a module's fixtures come before a test's."""
    use_two_threads()
    torch.manual_seed(0)
    yield
    use_two_threads()


@pytest.fixture(autouse=True)
def wandb_of_its_own() -> Iterator[None]:
    """A command that a test starts has a process of wandb's of its own, as at a terminal, and not that of the tests."""
    os.environ.pop("WANDB_SERVICE", None)
    yield
    os.environ.pop("WANDB_SERVICE", None)


def of_length(make: type[Schedule], T: int = 1000) -> Schedule:
    """A schedule of T steps of any class; one that wraps another, around the linear."""
    if make is ZeroTerminalSNR:
        return ZeroTerminalSNR(Linear(T))
    if make is Shifted:
        return Shifted(Linear(T), 2.0)
    return Betas([min(0.5, 500 / T) * (t + 1) / T for t in range(T)]) if make is Betas else make(T=T)  # type: ignore[call-arg]


def gaussian(schedule: Schedule, std: float, mean: float = 0.0):  # type: ignore[no-untyped-def]
    """The optimal denoiser of data N(mean, std²): x_0 = E[x_0 | x_t] in closed form."""

    def denoise(x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Prediction:
        signal, noise = schedule.scales(t, x_t)
        x_0 = mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    return denoise


def tiny_unet() -> UNet:
    """A U-Net of 8×8 digits that takes milliseconds."""
    return UNet(in_channels=1, size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4, dropout=0.1)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; what is named by its class alone on the way is written out."""
    *parents, last = key.split(".")
    for parent in parents:
        below = config.setdefault(parent, {})
        if isinstance(below, str):
            config[parent] = below = {"class_path": below}
        config = below
    config[last] = copy.deepcopy(value)


# What keeps a run from being watched: nothing is drawn, scored or timed.
UNWATCHED = {key: None for key in ("grid", "metrics", "chain", "loss_by_timestep", "throughput")}
BARE = [word for key in (*UNWATCHED, "trainer.callbacks") for word in (f"--{key}", "null")]
SMALL: dict[str, Any] = {
    "trainer.max_steps": 6,
    "trainer.val_check_interval": 3,
    "trainer.log_every_n_steps": 2,
    "model.init_args.schedule": {"class_path": "Cosine", "init_args": {"T": 12}},
    "model.init_args.network.init_args.channels": 8,
    "model.init_args.network.init_args.groups": 4,
    "model.init_args.lr_scheduler.init_args.total_steps": 6,
    "data.init_args.batch_size": 32,
    "ema.decay": 0.5,
    "checkpoint.every_n_train_steps": 2,
    "report": False,  # a second for each of hundreds of runs
}


DIGITS_DISTANCE = {"class_path": "FrechetDistance", "init_args": {"extractor": "DigitsNet"}}
TABLE = {"n": 66, "batch_size": 33, "steps": [2], "samplers": ["Ancestral", "DDIM"], "metrics": [DIGITS_DISTANCE]}


def small_config(folder: Path, **changes: Any) -> Path:
    """configs/digits.yaml with SMALL and further changes, in a file."""
    config = yaml.safe_load(CONFIG.read_text())
    for key, value in {**SMALL, "trainer.default_root_dir": str(folder / "run"), **changes}.items():
        put(config, key, value)
    short = {"class_path": "DDIM", "init_args": {"steps": 3}}
    config["grid"] = {"n": 4, "sampler": short}
    config["chain"] = {"n": 2, "frames": 3, "sampler": short}
    metrics = config["metrics"]
    metrics.update(n=66, test_n=132, batch_size=33, sampler={"class_path": "DDIM", "init_args": {"steps": 2}})
    metrics["metrics"][1]["init_args"]["subset_size"] = 50  # of KID
    config["trainer"].setdefault("callbacks", [{"class_path": "SamplerTable", "init_args": TABLE}])
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, with what it printed beside it."""
    folder = tmp_path_factory.mktemp("fit")
    config = small_config(folder)
    code = f"from diffusion_lightning.cli import main; main(['fit', '--config', {str(config)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder / "run"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of configs/digits.yaml at its full length, minutes long: for slow tests."""
    folder = tmp_path_factory.mktemp("digits")
    main(["fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(folder)])
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one test, empty at its start."""
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_a_flipped_bit(data: bytes) -> bytes:
    """The data, in whose middle a bit is flipped, as a faulty disk does."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
