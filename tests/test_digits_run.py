"""The main job as the README gives it, at its full length."""

from pathlib import Path

import pytest

from benchmarks.digits import figures
from diffusion_lightning.cli import main

from .conftest import CONFIG
from .test_loggers import rows


@pytest.mark.slow
def test_the_digits_config_makes_digits(tmp_path: Path) -> None:
    main(["fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(tmp_path)])
    found = figures(tmp_path / "checkpoints/last.ckpt")
    assert found.confident >= 0.9
    assert found.rarest >= 0.04
    assert found.commonest <= 0.2
    assert found.distance <= 2 * found.floor
    assert float(rows(tmp_path / "metrics.csv")[-1]["val/fd_digits"]) <= 2 * found.floor
