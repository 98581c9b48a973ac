"""The benchmark of scenes: its captions, and shares that are 1 for what the captions say and 0 for anything else."""

from pathlib import Path

import pytest
import torch

from benchmarks import scenes
from diffusion_lightning.data import DigitScenes
from diffusion_lightning.images.scenes import SCENES

from .support.captions import text_model


def test_half_of_the_captions_are_of_pairs_that_training_never_sees() -> None:
    said = scenes.captions(500)
    assert [SCENES[text].seen for text in said] == [True] * 500 + [False] * 500
    assert len(set(said[500:])) == 80
    assert said[:10] == scenes.captions(10)[:10]


def test_real_scenes_match_and_others_do_not() -> None:
    data = DigitScenes(n=200)
    x, y = data.read("test")
    said = [data.captions[i] for i in y.tolist()]  # type: ignore[index]
    assert min(scenes.match(x, said).values()) > 0.95
    moved = said[2:] + said[:2]
    assert max(scenes.match(x, moved).values()) < 0.1


def test_it_prints_a_table_and_draws_two_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(scenes, "SCALES", (1.0, 2.0))
    monkeypatch.setattr(scenes, "STEPS", 2)
    monkeypatch.setattr(scenes.diffusion_lightning, "load", lambda ckpt: text_model((1, 32, 32)))
    scenes.main(["--ckpt", "runs/scenes", "--out", str(tmp_path), "--n", "4"])
    said = capsys.readouterr().out
    assert "| 2 | 0.0% | 0.0% |" in said
    assert "| real held-out scenes | 98." in said
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("scenes.png", "samples.png"))
