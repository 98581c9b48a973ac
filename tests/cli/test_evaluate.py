"""`validate` and `test` of a checkpoint: the user's words over its record, where results go, what is left out."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lightning import checkpoints
from diffusion_lightning.cli import evaluate, fit, main
from diffusion_lightning.records import Spec

RECORD = {
    "class_path": "diffusion_lightning.modules.Diffusion",
    "init_args": {"shape": [1, 8, 8], "schedule": {"class_path": "Cosine", "init_args": {"T": 12, "s": 0.1}}},
}


def changed(*words: str) -> Spec:
    overrides, rest = evaluate._split(words)
    assert rest == []
    found = evaluate._overlaid(json.loads(json.dumps(RECORD)), "model", overrides, set())
    assert found is not None
    return found["init_args"]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--model.init_args.compile", "true"], "compile", True),
        (["--model.compile=true"], "compile", True),
        (["--model.vlb_weight", "1e-3"], "vlb_weight", 1e-3),
        (["--model.init_args.schedule.init_args.T", "7"], "schedule", {"T": 7, "s": 0.1}),
        (["--model.schedule.T=7"], "schedule", {"T": 7, "s": 0.1}),
        (["--model.schedule", "Linear", "--model.schedule.T", "7"], "schedule", {"T": 7}),
        (["--model.schedule.class_path", "Linear"], "schedule", {}),
        (["--model.vlb", "VLB", "--model.vlb.times", "3"], "vlb", {"times": 3}),
        (["--model.vlb", "null"], "vlb", None),
    ],
)
def test_options_change_a_record_as_they_change_a_config(words: list[str], key: str, value: Any) -> None:
    found = changed(*words)[key]
    assert (found["init_args"] if isinstance(found, dict) else found) == value


def test_other_words_stay() -> None:
    words = ["--ckpt_path", "x", "--trainer.devices=1", "--model.compile", "true", "--database", "y"]
    assert evaluate._split(words)[1] == ["--ckpt_path", "x", "--trainer.devices=1", "--database", "y"]


def test_results_lie_in_the_run_of_the_checkpoint_or_in_a_folder_of_its_name(tmp_path: Path) -> None:
    assert evaluate._root(tmp_path / "run/checkpoints/last.ckpt") == tmp_path / "run"
    assert evaluate._root(tmp_path / "moved.ckpt") == Path("runs/moved")


def test_callbacks_of_ones_own_are_left_out_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoints.read(run / "checkpoints/last.ckpt")
    config = checkpoints.config(checkpoint, run)
    config["trainer"]["callbacks"] = [{"class_path": "my_callbacks.Watch"}, {"class_path": "lightning.pytorch.X"}]
    (tmp_path / "checkpoints").mkdir()
    torch.save({**checkpoint, "config": json.dumps(config)}, tmp_path / "checkpoints/own.ckpt")
    main(["validate", "--ckpt_path", str(tmp_path / "checkpoints/own.ckpt"), "--trainer.limit_val_batches", "1",
          "--trainer.enable_progress_bar", "false"])  # fmt: skip
    said = capsys.readouterr()
    assert "my_callbacks.Watch, code outside of this package, which is left out" in said.err
    assert (tmp_path / "validate.csv").exists()
    assert f"figures     {tmp_path / 'validate.csv'}" in said.out


# A configuration of the user's own is never removed

ENDS = {"success": None, "error": ValueError("it failed"), "Ctrl-C": KeyboardInterrupt()}


@pytest.mark.tried("Full disks and broken folders")
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("end", ENDS)
def test_a_config_of_the_user_outlives_the_command(
    command: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    """Also one that lies directly in the system's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = tmp_path / "user.yaml"
    shutil.copyfile(run / "config.yaml", config)
    given: list[list[str]] = []

    def work(kind: Any, words: list[str]) -> None:
        given.append(words)
        if (error := ENDS[end]) is not None:
            raise error

    monkeypatch.setattr(fit, "_cli", work)
    with contextlib.nullcontext() if ENDS[end] is None else pytest.raises((SystemExit, ValueError, KeyboardInterrupt)):
        main([command, "--config", str(config)])
    assert given == [[command, "--config", str(config)]]
    assert config.read_bytes() == (run / "config.yaml").read_bytes()
