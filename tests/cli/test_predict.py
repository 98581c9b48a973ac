"""`predict`: resumed, extended, packed into one file, killed."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lightning import images, load
from diffusion_lightning.cli import drawing, main
from diffusion_lightning.images import Folder, origin
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Cosine

from ..conftest import tiny_unet
from ..support.commands import fails


def draw(run: Path, out: Path, *words: str, n: int = 10) -> str:
    """What the command says."""
    ckpt = str(run / "checkpoints/last.ckpt")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(["predict", "--ckpt_path", ckpt, "--n", str(n), "--out", str(out), "--batch_size", "4", *words])
    return said.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    """With some pictures gone and one half-written, it draws these and no others, and the same."""
    out = tmp_path / "out"
    assert "wrote 10 samples" in draw(run, out)
    whole = contents(out)
    assert sorted(whole) == [f"{i:06d}.png" for i in range(10)]
    made = origin(out / "000003.png")
    assert made is not None
    assert made["seed"] == 0
    assert made["sampler"]["class_path"] == "diffusion_lightning.samplers.DDIM"  # that of the run's grid
    assert made["sampler"]["init_args"]["steps"] == 3
    for number in (2, 8, 9):
        (out / f"{number:06d}.png").unlink()
    (out / ".000008.png.1234.part").write_bytes(whole["000008.png"][:50])
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("0*.png")}
    assert "wrote 3 samples" in draw(run, out)
    assert contents(out) == whole
    assert all((out / name).stat().st_mtime_ns == moment for name, moment in before.items())
    assert "wrote 0 samples" in draw(run, out)
    draw(run, out, n=14)  # more of the same
    more = contents(out)
    assert len(more) == 14
    assert {name: more[name] for name in whole} == whole


def test_the_runs_own_sampler_is_the_same_when_it_is_named(run: Path, tmp_path: Path) -> None:
    said = draw(run, tmp_path / "out", n=3)
    assert said == f"wrote 3 samples to {tmp_path / 'out'}; sampler DDIM, 3 steps\n"
    said = draw(run, tmp_path / "out", "--sampler", "DDIM", "--sampler.steps", "3", n=3)
    assert "wrote 0 samples" in said


def test_the_sampler_of_a_record() -> None:
    """That of the run's grid, read as data; DDIM where it states none."""
    spaced: Any = {"class_path": "DDIM", "init_args": {"steps": 7, "spacing": {"class_path": "UniformLogSNR"}}}
    grid: Any = {"class_path": "diffusion_lightning.callbacks.SampleGrid", "init_args": {"n": 4, "sampler": spaced}}
    other = {
        "class_path": "diffusion_lightning.callbacks.ReverseChain",
        "init_args": {"sampler": {"class_path": "Heun"}},
    }

    def of_steps(T: int) -> Any:
        return Diffusion(tiny_unet(), Cosine(T))

    record: Any
    for record in ({"trainer": {"callbacks": [other, grid]}}, {"grid": grid, "trainer": {}}):
        part: Any = drawing.own_sampler(record, of_steps(1000), ())
        assert (part.kind, part.arguments["steps"]) == (DDIM, 7)
        given = {"class_path": "diffusion_lightning.samplers.DDIM", "init_args": part.spec()["init_args"]}
        given["init_args"]["spacing"] = {"class_path": "diffusion_lightning.samplers.UniformLogSNR"}
        assert drawing._described(given) == part.spec()
    for record in ({}, {"trainer": {"callbacks": None}}, {"trainer": {"callbacks": [other]}}):
        for T, steps in ((1000, 50), (12, 12)):
            part = drawing.own_sampler(record, of_steps(T), ())
            assert (part.kind, part.arguments) == (DDIM, {"steps": steps, "clip": 1.0})
    grid["init_args"]["sampler"] = {"class_path": "foreign.Sampler"}
    with pytest.raises(ValueError, match="--trust foreign"):
        drawing.own_sampler({"trainer": {"callbacks": [grid]}}, of_steps(1000), ())


def test_a_bar_counts_the_samplers_steps(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw(run, tmp_path / "out")  # three batches of three steps
    bar = capfd.readouterr().err
    assert "9/9" in bar
    assert bar.startswith("\rpredict   0%")
    draw(run, tmp_path / "quiet", "--trainer.enable_progress_bar", "false")
    assert "predict" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_one_picture_of_all(run: Path, tmp_path: Path, suffix: str) -> None:
    sheet = tmp_path / f"grid{suffix}"
    assert "wrote 5 samples to" in draw(run, sheet, n=5)
    assert [path.name for path in tmp_path.iterdir()] == [sheet.name]
    with Image.open(sheet) as image:
        assert image.size == (3 * (64 + 8) + 8, 2 * (64 + 8) + 8)  # 8×8 pixels at eight times their size
    before = sheet.read_bytes()
    assert "already" in draw(run, sheet, n=5)
    assert sheet.read_bytes() == before
    if suffix == ".png":
        draw(run, tmp_path / "out", n=5)
        pictures = Folder(tmp_path / "out", channels=1)[0:5]
        assert (np.asarray(Image.open(sheet)) == images.grid(pictures).squeeze(-1).numpy()).all()


def test_a_grid_that_was_drawn_otherwise_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "grid.jpg"
    draw(run, sheet, n=2)
    words = ["predict", "--ckpt_path", str(run), "--out", str(sheet), "--batch_size", "4"]
    assert "was drawn with n 2, but now n is 3" in fails(capsys, *words, "--n", "3")
    assert "was drawn with seed 0, but now seed is 1" in fails(capsys, *words, "--n", "2", "--seed", "1")
    Image.new("L", (8, 8)).save(sheet)
    assert "does not say that this command drew it" in fails(capsys, *words, "--n", "2")


def test_a_runs_folder_and_its_words(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ckpt_path` takes a run's folder, and the command says which file it took."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for number, (word, file) in enumerate([("runs/mine", "last"), ("runs/mine/best", "best")]):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main(["predict", "--ckpt_path", word, "--n", "1", "--out", str(number)])
        assert said.getvalue().startswith(f"checkpoint  runs/mine/checkpoints/{file}.ckpt\nwrote 1 samples")
    assert load("runs/mine").steps_done == 6


def test_one_file_for_all(run: Path, tmp_path: Path) -> None:
    """The same pictures as in a folder, (N, H, W, C) bytes; the file itself is not drawn twice."""
    draw(run, tmp_path / "folder")
    archive = tmp_path / "samples.npz"
    draw(run, archive)
    with np.load(archive) as file:
        assert file["arr_0"].shape == (10, 8, 8, 1)
        assert (file["arr_0"] == Folder(tmp_path / "folder", channels=1)[0:10].permute(0, 2, 3, 1).numpy()).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "samples.npz"]
    before = archive.read_bytes()
    assert "already" in draw(run, archive)
    assert archive.read_bytes() == before


def test_other_samples_in_the_place_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt, folder, archive = str(run / "checkpoints/last.ckpt"), tmp_path / "out", tmp_path / "all.npz"
    other = str(next((run / "checkpoints").glob("best.ckpt")))
    for out in (folder, archive):
        draw(run, out, n=3)
    before = contents(folder), archive.read_bytes()
    for out in (folder, archive):
        words = ["predict", "--n", "3", "--out", str(out), "--batch_size", "4"]
        for changed, says in (
            (["--ckpt_path", ckpt, "--seed", "5"], "was drawn with seed 0, but now seed is 5"),
            (["--ckpt_path", ckpt, "--sampler", "Ancestral"], "DDIM("),
            (["--ckpt_path", other], "was drawn with checkpoint"),
        ):
            said = fails(capsys, *words, *changed)
            assert says in said
            assert "choose another --out" in said
    assert "was drawn with n 3, but now n is 4" in fails(capsys, "predict", "--ckpt_path", ckpt, "--n", "4", "--out",
                                                         str(archive), "--batch_size", "4")  # fmt: skip
    (folder / "000007.png").write_bytes(b"mine")
    assert "000007.png is there already and does not say" in fails(capsys, "predict", "--ckpt_path", ckpt, "--out",
                                                                   str(folder))  # fmt: skip
    (folder / "000007.png").unlink()
    assert (contents(folder), archive.read_bytes()) == before


@pytest.mark.slow
def test_two_thousand_samples_killed_twice(run: Path, tmp_path: Path) -> None:
    """SIGKILLed in the middle, twice, the second time on two processes, and rerun: bitwise the undisturbed ones."""

    def command(out: Path, *words: str) -> list[str]:
        ckpt = str(run / "checkpoints/last.ckpt")
        fixed = ["--n", "2000", "--batch_size", "50", "--trainer.accelerator", "cpu"]
        start = [sys.executable, "-m", "diffusion_lightning", "predict", "--ckpt_path", ckpt]
        return [*start, *fixed, "--out", str(out), *words]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken, two = (
        tmp_path / "whole",
        tmp_path / "broken",
        ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    )
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    for enough, words in ((300, []), (900, two)):
        patient = ["nice", "-n", "19", *command(broken, *words)]  # whoever waits for the moment is never kept waiting
        process = subprocess.Popen(patient, start_new_session=True, env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        while len(list(broken.glob("0*.png"))) < enough:
            assert process.poll() is None, "ended before the kill"
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert enough <= len(list(broken.glob("0*.png"))) < 2000
    subprocess.run(command(broken, *two), check=True, capture_output=True, env=environment)
    assert len(contents(whole)) == 2000
    assert contents(broken) == contents(whole)
    # A single block is left for two processes.
    for file in sorted(broken.iterdir())[:7]:
        file.unlink()
    subprocess.run(command(broken, *two), check=True, capture_output=True, env=environment)
    assert contents(broken) == contents(whole)
