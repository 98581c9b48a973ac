"""The wheel in an environment of its own, far from the repository: what a user has who installs the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BARE, ROOT

UV = shutil.which("uv")
EXAMPLE = """
import torch
from diffusion_lightning import load
from diffusion_lightning.samplers import DDIM

images = load("run/checkpoints/last.ckpt").generate(2, DDIM(2), seed=3)
assert images.shape == (2, 1, 8, 8) and torch.isfinite(images).all()
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="uv, which builds and installs it, is not here")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, and what the wheel asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [str(UV), "--quiet"]
    subprocess.run([*uv, "build", "--wheel", "--out-dir", str(folder), str(ROOT)], check=True)
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder / "env")], check=True)
    (wheel,) = folder.glob("*.whl")
    # The versions that are tested: what was released since may not be there, or not work.
    versions = folder / "versions.txt"
    frozen = subprocess.run([*uv, "pip", "freeze", "--exclude-editable", "--python", sys.executable],
                            check=True, capture_output=True, text=True).stdout  # fmt: skip
    versions.write_text(frozen, encoding="utf-8")
    install = [*uv, "pip", "install", "--python", str(folder / "env/bin/python"), "--constraint", str(versions)]
    subprocess.run([*install, str(wheel)], check=True)
    return folder / "env/bin"


def test_a_recipe_trains_without_a_clone_and_its_checkpoint_draws(installed: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["DIFFUSION_LIGHTNING_CACHE"] = str(tmp_path / "cache")

    def ran(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(installed / "diffusion-lightning")
    assert "digits" in ran(command, "recipes")
    quiet = ["--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null", "--trainer.logger", "false"]
    ran(command, "fit", "--config", "digits", "--trainer.max_steps", "2", "--trainer.default_root_dir", "run",
        *BARE, *quiet)  # fmt: skip
    ran(str(installed / "python"), "-c", EXAMPLE)
    where = ran(str(installed / "python"), "-c", "import diffusion_lightning; print(diffusion_lightning.__file__)")
    assert str(installed.parent) in where
