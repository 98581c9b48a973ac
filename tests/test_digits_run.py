"""The main job as the README gives it, at its full length."""

from pathlib import Path

import pytest

from benchmarks.digits import figures

from .support.rows import rows


@pytest.mark.slow
def test_the_digits_config_makes_digits(trained: Path) -> None:
    found = figures(trained / "checkpoints/last.ckpt")
    assert found.confident >= 0.9
    assert found.rarest >= 0.04
    assert found.commonest <= 0.2
    assert found.distance <= 2 * found.floor
    assert float(rows(trained / "metrics.csv")[-1]["val/fd_digits"]) <= 2 * found.floor
