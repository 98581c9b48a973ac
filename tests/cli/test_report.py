"""`report` and `runs`: what they write and print, of runs of any state, and what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_lightning.cli import commands, main, provenance, report, runs
from diffusion_lightning.report.run import Run

from ..conftest import BARE, small_config
from ..support.commands import fails
from ..support.runs import CONFIG, Page, check_page, rows, write_csv, write_run

LENGTH = "model.init_args.lr_scheduler.init_args.total_steps"
PLAIN = [*BARE, "--checkpoint.monitor", "val/loss"]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    main(list(words))
    return capsys.readouterr().out


def test_fit_and_test_write_the_report_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what `fit` knows of the model and the machine, and after `test` with the real images' own figures."""
    config = str(small_config(tmp_path))
    main(["fit", "--config", config, "--trainer.logger", "false", "--report", "true"])
    folder = tmp_path / "run"
    assert f"report      {folder / 'report.html'}" in capsys.readouterr().out
    page = Page(folder / "report.html")
    check_page(page)
    about = json.loads((folder / "about.json").read_text())
    assert f"{about['parameters']:,} trained" in page.text
    assert about["operations"] > about["parameters"]
    assert len(about["data_fingerprint"]) == 32
    assert about["device"].startswith("cpu")
    assert "finished" in page.text
    assert "report" not in Run(folder).config  # nothing that made the run
    before = (folder / "report.html").stat().st_mtime_ns
    main(["test", "--ckpt_path", str(folder), "--model.init_args.vlb", "VLB", "--model.init_args.vlb.times", "2"])
    assert (folder / "report.html").stat().st_mtime_ns > before
    page = Page(folder / "report.html")
    check_page(page)
    assert "test/bits_per_dim" in page.text
    tested = Run(folder).tested.last()
    assert tested["floor/images"] == 132  # as many as samples, of the digits that no model was trained on
    assert 0 < tested["floor/fd_digits"] < tested["test/fd_digits"]
    assert f"held-out real images (132): {tested['floor/fd_digits']!r}" in page.text
    about = json.loads((folder / "about.json").read_text())
    assert (about["ended"], about["steps"]) == (True, 6)


@pytest.mark.parametrize("words", [["--report", "false"], ["--trainer.fast_dev_run", "true", "--report", "true"]])
def test_no_report_where_none_is_asked_for(tmp_path: Path, words: list[str]) -> None:
    main(["fit", "--config", str(small_config(tmp_path)), "--trainer.logger", "false", *PLAIN, *words])
    assert not (tmp_path / "run/report.html").exists()


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert provenance._version("torch")
    assert provenance._version("none of this name") is None


def test_a_report_that_fails_costs_the_command_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*of: object) -> None:
        raise RuntimeError("of any kind")

    monkeypatch.setattr(report.page, "write", broken)
    main(["fit", "--config", str(small_config(tmp_path)), "--trainer.logger", "false", *PLAIN, "--report", "true"])
    said = capsys.readouterr().err
    assert "note: the report could not be written (of any kind); all else is there" in said
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_a_run_that_trains_and_then_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, **{"trainer.max_steps": 100_000, LENGTH: 100_000, "trainer.logger": False})
    code = f"from diffusion_lightning.cli import main; main(['fit', '--config', {str(config)!r}, *{PLAIN!r}])"
    trains = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "run"
    try:
        end = time.monotonic() + 60
        while not (folder / "metrics.csv").exists() and time.monotonic() < end:
            time.sleep(0.2)
        printed(capsys, "report", str(folder))
        assert "training" in Page(folder / "report.html").texts
        assert "training" in printed(capsys, "runs", str(tmp_path))
        assert trains.poll() is None  # and looking at it took no lock from it
    finally:
        os.kill(trains.pid, signal.SIGKILL)
        trains.wait()
    printed(capsys, "report", str(folder))
    page = Page(folder / "report.html")
    check_page(page)
    assert "killed" in page.texts


def test_the_page_and_the_charts_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", steps=200)
    assert printed(capsys, "report", str(one)) == f"report      {one / 'report.html'}\n"
    out = tmp_path / "deep/both.html"
    printed(capsys, "report", str(one), str(two), "--out", str(out))
    assert "Runs compared: one, two" in Page(out).text
    said = printed(capsys, "report", str(two), "--png", str(tmp_path / "png"))
    assert not (two / "report.html").exists()  # the charts alone
    assert f"charts      {len(list((tmp_path / 'png').iterdir()))} in" in said


def test_what_a_report_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", steps=100)
    (tmp_path / "empty").mkdir()
    assert "does not exist, but a report is of a run's folder" in fails(capsys, "report", str(tmp_path / "none"))
    assert "is a file, but a report is of" in fails(capsys, "report", str(one / "config.yaml"))
    assert "so it is no run's folder" in fails(capsys, "report", str(tmp_path / "empty"))
    assert "is given twice" in fails(capsys, "report", str(one), f"{one}/../one")
    assert "ends in .html" in fails(capsys, "report", str(one), "--out", str(one / "metrics.csv"))
    assert "see diffusion-lightning report --help" in fails(capsys, "report")
    (one / "report.html").mkdir()
    assert "a folder is where a file should be" in fails(capsys, "report", str(one))


def test_the_lists_of_words_are_those_of_the_code() -> None:
    assert tuple(runs.KEYS) == commands.ORDERS


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Runs of different states, a sweep's trials within a folder, and what is no run."""
    root = tmp_path / "runs"
    write_run(root / "a")
    write_run(root / "sweep/b", steps=200)
    write_run(root / "sweep/c", {"checkpoint": {"monitor": "val/precision_digits", "mode": "max"}}, steps=100)
    write_csv(root / "sweep/c/checkpoints/averages/metrics.csv", rows(100))  # within a run
    (root / "sweep/c/.lock").write_text("{}")
    (root / "empty/metrics").mkdir(parents=True)
    (root / "new").mkdir()
    shutil.copy(root / "a/config.yaml", root / "new")
    for age, name in ((100, "a"), (50, "sweep/b"), (10_000, "sweep/c"), (9, "new")):
        for path in (root / name).rglob("*"):
            if path.is_file():
                os.utime(path, (time.time() - age, time.time() - age))
    return root


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:-1]]


def test_the_table_of_runs(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "runs", str(several))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert names(text) == ["new", "sweep/b", "a", "sweep/c"]  # the newest first
    assert "finished  400 of 400  val/fd_digits 1.25" in " ".join(lines["a"].split(" ")).replace("   ", "  ")
    assert "stopped" in lines["sweep/b"]
    assert "killed" in lines["sweep/c"]
    assert "0.9 at 100" in lines["sweep/c"]  # its best is by its own monitor
    assert text.splitlines()[-1] == f"4 runs below {several}"


def test_runs_in_every_order(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def order(*words: str) -> list[str]:
        return names(printed(capsys, "runs", str(several), *words))

    assert order("--sort", "name") == ["a", "new", "sweep/b", "sweep/c"]
    assert order("--sort", "steps") == ["a", "sweep/b", "sweep/c", "new"]
    assert order("--sort", "best", "--metric", "val/fd_digits") == ["a", "sweep/b", "sweep/c", "new"]
    # A run without the figure comes last in either direction.
    assert order("--sort", "best", "--metric", "val/fd_digits", "--reverse") == ["sweep/c", "sweep/b", "a", "new"]
    assert order("--state", "finished", "killed") == ["a", "sweep/c"]
    assert order("--name", "sweep/*") == ["sweep/b", "sweep/c"]
    for sort in commands.ORDERS:
        assert sorted(order("--sort", sort)) == ["a", "new", "sweep/b", "sweep/c"]


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_looked_at_is_left_out(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (several / "theirs/checkpoints").mkdir(parents=True)
    (several / "theirs/checkpoints").chmod(0)
    assert len(names(printed(capsys, "runs", str(several)))) == 4


def test_a_run_at_the_root_and_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", steps=100)
    assert names(printed(capsys, "runs", str(one))) == ["one"]
    assert printed(capsys, "runs", str(one / "samples")) == f"0 runs below {one / 'samples'}\n"
    assert "does not exist, but runs lie in a folder" in fails(capsys, "runs", str(tmp_path / "none"))
    assert "is a file, but runs lie in a folder" in fails(capsys, "runs", str(one / "metrics.csv"))
    assert "invalid choice" in fails(capsys, "runs", str(tmp_path), "--sort", "luck")


@pytest.mark.tried("Paths")
def test_a_hostile_name_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = os.fsencode(tmp_path) + b"/\x1b[31mred\xff\n$x"
    os.mkdir(hostile)
    folder = Path(os.fsdecode(hostile))
    write_run(folder, {**CONFIG, "checkpoint": {"monitor": "\x1b[2J"}}, steps=100)
    text = printed(capsys, "runs", str(tmp_path))
    assert "\x1b" not in text
    assert "1 run below" in text
    out = tmp_path / "out.html"
    printed(capsys, "report", str(folder), "--out", str(out))
    assert "\x1b" not in Page(out).source
