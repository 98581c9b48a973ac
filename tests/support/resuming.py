"""A short run to go on with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_lightning.cli import main

from ..conftest import UNWATCHED, put, small_config

QUIET = {
    "trainer.logger": False, "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False, "trainer.log_every_n_steps": 1, "trainer.callbacks": None,
    **UNWATCHED,
}  # fmt: skip


def bare_config(folder: Path, **settings: Any) -> Path:
    """The small config of the digits without loggers, callbacks, validation."""
    config = yaml.safe_load(small_config(folder).read_text())
    for key, value in {**QUIET, **settings}.items():
        put(config, key, value)
    path = folder / "bare.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, with its configuration beside it."""
    folder = tmp_path_factory.mktemp("short")
    steps = {"trainer.max_steps": 4, "model.init_args.lr_scheduler.init_args.total_steps": 4}
    main(["fit", "--config", str(bare_config(folder, **steps))])
    return folder / "run"


@pytest.fixture
def copied(short: Path, tmp_path: Path) -> Path:
    """A copy of that run, and of its configuration, that a test may go on with."""
    shutil.copytree(short, tmp_path / "run")
    config = yaml.safe_load((short.parent / "bare.yaml").read_text())
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"


def on(root: Path, *words: str) -> list[str]:
    return ["fit", "--config", str(root.parent / "bare.yaml"), "--ckpt_path", "last", *words]


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


INIT = "model.init_args"
