"""Averages of a length chosen after the training, by the command: one as a checkpoint, many scored."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from diffusion_lightning import checkpoints, load, records
from diffusion_lightning.callbacks.base import profiles
from diffusion_lightning.cli import main, run_folder
from diffusion_lightning.cli.snapshots import Snapshots
from diffusion_lightning.cli.sweep import best_of, chosen, watched_by
from diffusion_lightning.samplers import DDIM

from ..conftest import UNWATCHED, small_config
from ..support.commands import fails
from ..support.disks import full_disk
from ..support.rows import rows

TRIED = pytest.mark.tried("Full disks and broken folders")
LAST, BIAS = "checkpoints/last.ckpt", "denoiser.network.conv_out.bias"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with snapshots at two, four and six, and metrics that no validation made use of."""
    folder = tmp_path_factory.mktemp("powers")
    watched = [word for key in UNWATCHED if key != "metrics" for word in (f"--{key}", "null")]
    main(["fit", "--config", str(small_config(folder)), *watched, "--trainer.logger", "false", "--trainer.callbacks",
          "PowerEMA", "--trainer.callbacks.every_n_train_steps", "2", "--trainer.limit_val_batches", "0",
          "--trainer.default_root_dir", str(folder / "run")])  # fmt: skip
    return folder / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of what the command reads of that run, which a test may spoil."""
    shutil.copytree(run / "averages", tmp_path / "copy/averages", ignore=shutil.ignore_patterns("sweep*"))
    shutil.copytree(run / "checkpoints", tmp_path / "copy/checkpoints")
    return tmp_path / "copy"


def edit(path: Path, **changes: Any) -> None:
    """Other values of a checkpoint's keys; those of tensors beside the ones that are there."""
    held = checkpoints.read(path)
    held["state_dict"].update(changes.pop("state_dict", {}))
    torch.save({**held, **changes}, path)


# One average


def test_the_tracks_own_lengths_give_the_tracks_to_half_precision(run: Path, tmp_path: Path) -> None:
    for track, sigma_rel in enumerate((0.05, 0.10)):
        out = tmp_path / f"{track}.ckpt"
        main(["average", str(run), "--sigma_rel", str(sigma_rel), "--out", str(out)])
        snapshot = checkpoints.read(run / "averages/step=6.ckpt")["state_dict"]
        found = checkpoints.read(out)["state_dict"]
        names = [name.removeprefix(f"{track}.") for name in snapshot if name.startswith(f"{track}.")]
        assert names
        for name in names:
            torch.testing.assert_close(found[name], snapshot[f"{track}.{name}"].float(), rtol=1e-3, atol=1e-5)


def test_an_average_draws_and_an_earlier_one_is_of_its_step(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "average.ckpt"
    main(["average", str(run), "--sigma_rel", "0.08", "--step", "4", "--out", str(out)])
    assert load(out).generate(2, DDIM(2)).shape == (2, 1, 8, 8)
    held = checkpoints.read(out)
    assert held["global_step"] == 4
    kept = [(profiles.exponent(s), step) for step in (2, 4, 6) for s in (0.05, 0.10)]
    share = profiles.weights(kept, [(profiles.exponent(0.08), 4)])[:, 0]
    files = [checkpoints.read(run / f"averages/step={step}.ckpt")["state_dict"] for step in (2, 4, 6)]
    values = torch.stack([file[f"{track}.{BIAS}"].double() for file in files for track in (0, 1)])
    torch.testing.assert_close(held["state_dict"][BIAS].double(), share @ values, rtol=1e-5, atol=1e-7)


def test_how_far_a_sum_lies_from_what_it_is_of_is_an_integral(run: Path) -> None:
    """Of the profiles themselves, by the trapezoid rule over a million times."""
    found = Snapshots(run)
    wanted = (profiles.exponent(0.03), 6)
    x = profiles.weights(found.kept, [wanted])[:, 0]
    tau = torch.linspace(0, 6, 1_000_001, dtype=torch.float64)

    def profile(gamma: float, t: int) -> torch.Tensor:
        return torch.where(tau <= t, (gamma + 1) / t * (tau / t) ** gamma, 0.0)

    made = sum(float(share) * profile(*of) for share, of in zip(x, found.kept, strict=True))
    square = [torch.trapezoid(f**2, tau) for f in (profile(*wanted) - made, profile(*wanted))]
    assert float(found.misfit([0.03], 6)[0]) == pytest.approx(float((square[0] / square[1]).sqrt()), rel=1e-3)
    assert found.misfit([0.05, 0.10], 6).max() < 1e-6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sigma_rel", "0.5"], "sigma_rel is 0.5, but the mean of all weights has 0.2887"),
        (["--sigma_rel", "0.01"], "come near to averages from 0.038 to 0.13 at step 6: give one of these"),
        (["--sigma_rel", "0.1", "--step", "7"], "at step 7 is asked for, but the snapshots end at step 6"),
        (["--sigma_rel", "long"], "invalid float value"),
        ([], "one average that --out writes: give both"),
        (["--sigma_rel", "0.1", "--n", "3"], "--lengths and --n are of a sweep, but --out writes one"),
        (["--sweep"], "--sweep scores many, but both are given: give one of the two"),
    ],
)
def test_what_cannot_be_made_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert says in fails(capsys, "average", str(run), *words, "--out", str(tmp_path / "out.ckpt"))
    assert not (tmp_path / "out.ckpt").exists()


# Many, scored


def test_a_sweep_scores_each_length_as_validate_does_and_goes_on_where_it_was_stopped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["average", str(run), "--sweep", "--n", "70"]
    main([*words, "--lengths", "0.08", "0.05"])
    table, picture = run / "averages/sweep.csv", run / "averages/sweep.png"
    found = rows(table)
    assert [(row["sigma_rel"], row["step"], row["n"]) for row in found] == [("0.05", "6", "70"), ("0.08", "6", "70")]
    said = capsys.readouterr().out
    best = min(found, key=lambda row: float(row["val/fd_digits"]))["sigma_rel"]
    assert f"diffusion-lightning average {run} --sigma_rel {best} --out CKPT" in said
    with Image.open(picture) as image:
        assert image.size[0] > 400
        assert len(image.convert("RGB").getcolors(100_000) or []) > 10
    assert sorted(path.name for path in (run / "averages").iterdir() if "step" not in path.name) == [
        "sweep.csv", "sweep.png"
    ]  # fmt: skip

    # Another length is scored, and no other: the rows that are there stay as they are.
    scored = 0
    validate = Trainer.validate

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal scored
        scored += 1
        return validate(*given, **more)

    monkeypatch.setattr(Trainer, "validate", counted)
    main([*words, "--lengths", "0.05", "0.12", "0.08"])
    assert scored == 1
    assert rows(table)[:2] == found
    assert [row["sigma_rel"] for row in rows(table)] == ["0.05", "0.08", "0.12"]
    main([*words, "--lengths", "0.12"])
    assert scored == 1
    monkeypatch.undo()

    # The figures are those of `validate`, to the last digit; of as many samples as the run's metrics take.
    main(["average", str(run), "--sweep", "--lengths", "0.12"])
    *before, row = rows(table)
    assert [other["n"] for other in before] == ["70"] * 3
    assert row["n"] == "66"
    out = tmp_path / "checkpoints/average.ckpt"
    main(["average", str(run), "--sigma_rel", "0.12", "--out", str(out)])
    main(["validate", "--ckpt_path", str(out), "--trainer.enable_progress_bar", "false"])
    (expected,) = rows(tmp_path / "validate.csv")
    keys = [key for key in row if key.startswith("val/")]
    assert {"val/loss", "val/fd_digits", "val/kid_digits_mean", "val/precision_digits"} <= set(keys)
    assert {key: row[key] for key in keys} == {key: expected[key] for key in keys}


def test_lengths_are_chosen_between_those_that_there_are_with_the_runs_own(run: Path) -> None:
    snapshots = Snapshots(run)
    found = chosen(snapshots, 6)
    assert 8 <= len(found) <= 12
    assert {0.05, 0.10} < set(found)
    for length in found:
        snapshots.check(length, 6)
    shortest, longest = snapshots.span(6)
    assert found[0] < 1.1 * shortest
    assert found[-1] > longest / 1.1


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, ("val/fd_digits", True)),
        ({"checkpoint": {"monitor": "val/precision", "mode": "max"}}, ("val/precision", False)),
        ({"checkpoint": {"monitor": "val/precision"}}, ("val/precision", True)),
        ({"checkpoint": {"monitor": "val/loss", "mode": "max"}}, ("val/fd_digits", True)),
    ],
)
def test_the_best_is_by_the_metric_that_chose_the_runs_best(record: Any, expected: tuple[str, bool]) -> None:
    row = {"sigma_rel": 0.1, "val/loss": 1.0, "val/other": "", "val/fd_digits": 2.0, "val/precision": 3.0}
    assert watched_by(record, row) == expected


def test_a_figure_that_is_no_number_is_never_the_best() -> None:
    curve = [(0.02, float("nan")), (0.05, 2.0), (0.1, 1.0), (0.2, 3.0)]
    assert (best_of(curve, True), best_of(curve, False)) == ((0.1, 1.0), (0.2, 3.0))
    assert best_of(curve[:1], True)[0] == 0.02


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lengths", "0.05", "0.3"], "sigma_rel is 0.3, but the mean of all weights has 0.2887"),
        (["--lengths", "0.05", "0.2"], "sigma_rel is 0.2, but sums of the 3 snapshots"),
        (["--lengths", "0.05", "--step", "0"], "at step 0 is asked for, but the snapshots end at step 6"),
        (["--n", "0"], "--n is 0, but figures are of samples: give at least 1"),
        (["--sigma_rel", "0.1"], "give both, or --sweep alone"),
        (["no sweep"], "--sweep scores many, but neither is given"),
    ],
)
def test_a_sweep_is_refused_before_anything_is_scored(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda *_: pytest.fail("it scores"))
    words = [] if words == ["no sweep"] else ["--sweep", *words]
    assert says in fails(capsys, "average", str(run), *words)


def test_a_run_without_metrics_has_no_best_length(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = checkpoints.read(copied / LAST)
    config = {**checkpoints.config(held, copied), "metrics": None}
    edit(copied / LAST, config=records.text(config))
    assert f"the run {copied} states no metrics" in fails(capsys, "average", str(copied), "--sweep")
    assert not (copied / "averages/sweep.csv").exists()


# Accidents


def writes(copied: Path) -> list[str]:
    return ["average", str(copied), "--sigma_rel", "0.08", "--out", str(copied / "out.ckpt")]


def test_a_run_without_snapshots_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "averages")
    for words in (writes(copied), ["average", str(copied), "--sweep"]):
        assert "holds no snapshots: train with --trainer.callbacks+ PowerEMA" in fails(capsys, *words)
    shutil.rmtree(copied)
    assert f"there is no folder {copied}, but" in fails(capsys, "average", str(copied), "--sweep")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut in the middle": (cut, r"step=4\.ckpt \(\d+ bytes\) is cut short, damaged"),
    "empty": (lambda path: path.write_bytes(b""), r"step=4\.ckpt \(0 bytes\) is cut short"),
    "a training checkpoint": (lambda path: shutil.copy(path.parents[1] / LAST, path), "states no lengths"),
    "of another step": (lambda path: shutil.copy(path.with_name("step=2.ckpt"), path), "which is not one of each"),
    "one length twice": (lambda path: edit(path, sigma_rel=[0.05, 0.05]), "which is not one of each"),
    "a length of another kind": (lambda path: edit(path, sigma_rel=[0.05, "0.10"]), "states no lengths"),
    "a length that is none": (lambda path: edit(path, sigma_rel=[0.05, float("nan")]), "sigma_rel is nan, but"),
    "a third length": (lambda path: edit(path, sigma_rel=[0.05, 0.1, 0.2]), "is missing"),
    "a name of another run": (lambda path: edit(path, state_dict={"1.other": torch.zeros(2)}), "its other is "),
    "a shape of another run": (
        lambda path: edit(path, state_dict={f"0.{BIAS}": torch.zeros(1, 1).half()}),
        rf"step=4\.ckpt is no snapshot of this run: its {BIAS} is \[1, 1\], but .* it is \[1\]",
    ),
    "past the largest half": (
        lambda path: edit(path, state_dict={f"0.{BIAS}": torch.tensor([torch.inf]).half()}),
        f"the average of {BIAS} is not finite",
    ),
}


@TRIED
@pytest.mark.parametrize("kind", SPOILT)
def test_a_snapshot_that_is_none_of_this_run_is_named_and_nothing_is_written(
    copied: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, says = SPOILT[kind]
    spoil(copied / "averages/step=4.ckpt")
    said = fails(capsys, *writes(copied))
    assert re.search(says, said), said
    assert not (copied / "out.ckpt").exists()


@TRIED
def test_a_run_of_another_model_has_no_use_for_snapshots(
    copied: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint is of a network with another name for a weight."""
    held = checkpoints.read(copied / LAST)
    held["state_dict"]["other"] = held["state_dict"].pop(BIAS)
    torch.save(held, copied / LAST)
    assert f"its {BIAS} is [1], but in the others, or in the run's last checkpoint, it is" in fails(
        capsys, *writes(copied)
    )


@TRIED
@pytest.mark.parametrize("place", ["out.ckpt", "sweep.csv", "sweep.png"])
def test_an_average_that_has_no_place_is_refused_at_the_start(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A folder lies there, which root may not write over either."""
    monkeypatch.setattr(Snapshots, "averaged", lambda *_: pytest.fail("it works"))
    at = copied / place if place == "out.ckpt" else copied / "averages" / place
    at.mkdir()
    words = writes(copied) if place == "out.ckpt" else ["average", str(copied), "--sweep"]
    assert f"error: {at}: Is a directory" in fails(capsys, *words)
    assert list(at.iterdir()) == []


@TRIED
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_named_at_the_start(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "averages").chmod(0o500)
    try:
        said = fails(capsys, "average", str(copied), "--sweep")
    finally:
        (copied / "averages").chmod(0o700)
    assert f"error: {copied / 'averages'}" in said
    assert "Permission denied: choose another place, or allow writing there" in said


@TRIED
def test_a_disk_that_is_full_keeps_the_earlier_average_and_the_rows_that_are_there(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = copied / "out.ckpt", copied / "averages/sweep.csv"
    out.write_bytes(b"an earlier one")
    with full_disk(1500):
        said = fails(capsys, *writes(copied))
    assert f"{out}: File too large: make room there" in said
    assert out.read_bytes() == b"an earlier one"

    # A table of a few rows has room, and of more it has none.
    figures = {"val/loss": 1.0, "val/fd_digits": 2.0, "val/" + "long" * 70: 3.0}
    monkeypatch.setattr(Trainer, "validate", lambda *_, **__: [figures])
    monkeypatch.setattr(run_folder, "check_evaluated", lambda *_: None)
    words = ["average", str(copied), "--sweep"]
    with full_disk(500), pytest.raises(SystemExit):
        main(words)
    assert f"error: {table}: File too large: make room there" in capsys.readouterr().err
    kept = rows(table)
    assert 1 <= len(kept) < 8
    assert not (copied / "averages/sweep.png").exists()
    main(words)
    assert rows(table)[: len(kept)] == kept
    assert len(rows(table)) == len(chosen(Snapshots(copied), 6))
    assert (copied / "averages/sweep.png").exists()


@TRIED
@pytest.mark.parametrize("text", ["mine", "sigma_rel,step,of\nlong,6,abc\n", "step,of\n6,abc\n"])
def test_a_file_that_is_no_table_is_not_written_over(
    copied: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    table = copied / "averages/sweep.csv"
    table.write_text(f"{text}\nmine", encoding="utf-8")
    assert f"{table} is no table of a sweep, which would go there: move it away" in fails(
        capsys, "average", str(copied), "--sweep"
    )
    assert table.read_text(encoding="utf-8") == f"{text}\nmine"
