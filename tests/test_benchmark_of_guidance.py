"""The benchmark of guidance: every kind is drawn by, a scale of 1 is no guidance, and nothing is measured twice."""

from pathlib import Path

import pytest
import torch

from benchmarks import guidance
from benchmarks.guidance import KINDS, Cells, tables


@pytest.mark.slow
def test_every_kind_is_measured_once_and_a_scale_of_one_is_no_guidance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(guidance, "SCALES", (1.0, 400.0))
    monkeypatch.setattr(guidance, "STEPS", 2)
    words = ["--out", str(tmp_path), "--seeds", "1", "--steps", "2"]
    guidance.main(words)
    cells = Cells(tmp_path)
    assert len(cells.found) == 2 * len(KINDS)
    assert len({cell["fd_digits"] for cell in cells.of(scale=1.0)}) == 1
    assert len({cell["fd_digits"] for cell in cells.of(scale=400.0)}) > 2
    assert (tmp_path / "guidance.png").stat().st_size > 10_000
    first = capsys.readouterr().out
    monkeypatch.setattr(guidance, "model_of", None)
    guidance.main(words)
    again = capsys.readouterr().out
    assert "cells of" not in again
    assert first.endswith(again[again.index("| guidance") :])


def test_the_table_has_the_scale_of_the_smallest_mean(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for seed, (one, two) in enumerate([(1.0, 0.7), (1.2, 0.5), (1.4, 0.6)]):
        for scale, distance in ((1.0, one), (2.0, two)):
            cells.add({"objective": "auto", "seed": seed, "scale": scale, "fd_digits": distance, "precision": 0.5,
                       "recall": 0.75})  # fmt: skip
    text = tables(cells, {"fd_digits": 0.27, "precision": 0.9, "recall": 0.8})
    assert "| autoguidance | 1.200 ± 0.200 | 0.600 ± 0.100 |" in text
    assert "| autoguidance | 2 | 0.600 ± 0.100 | 0.500 ± 0.000 | 0.750 ± 0.000 |" in text
