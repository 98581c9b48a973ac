"""Two commands at once in one folder: the second is refused, unless the first is dead."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffusion_lightning import files
from diffusion_lightning.cli import main
from diffusion_lightning.cli import run_folder as run_folder

from ..conftest import BARE, small_config
from ..support.commands import fails
from ..support.disks import full_disk

TWO = pytest.mark.tried("Two at once")
HOLDS = """
import sys
from diffusion_lightning import files
with files.locked(sys.argv[1], "…", sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path, name: str = files.LOCK) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder's lock."""
    words = [sys.executable, "-c", HOLDS, str(folder), name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.stdin.close()


@TWO
def test_a_held_folder_is_refused_with_the_name_of_its_owner(tmp_path: Path) -> None:
    with held(tmp_path) as other, pytest.raises(ValueError, match="choose another") as error:
        files.locked(tmp_path, "choose another").__enter__()
    for words in (f"{tmp_path} is in use by process {other.pid} on ", " since 20", "(-c "):
        assert words in str(error.value)
    with files.locked(tmp_path, "…"):
        pass
    assert list(tmp_path.iterdir()) == []


@TWO
def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / files.LOCK).exists()
        with files.locked(tmp_path, "…"):
            assert f'"pid": {os.getpid()}' in (tmp_path / files.LOCK).read_text()


@TWO
def test_one_process_does_not_hold_a_folder_twice(tmp_path: Path) -> None:
    with files.locked(tmp_path, "…"):
        with (
            pytest.raises(ValueError, match="in use by this process"),
            files.locked(tmp_path / "../" / tmp_path.name, "…"),
        ):
            pass
        with files.locked(tmp_path, "…", ".another"):
            pass


@TWO
def test_a_lock_that_was_removed_by_hand_does_not_take_the_next_ones(tmp_path: Path) -> None:
    with files.locked(tmp_path, "…"):
        (tmp_path / files.LOCK).unlink()
        other = held(tmp_path)
        other.__enter__()
    assert (tmp_path / files.LOCK).exists()
    with pytest.raises(ValueError, match="in use"), files.locked(tmp_path, "…"):
        pass
    other.__exit__(None, None, None)


@TWO
def test_a_full_disk_locks_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk(), files.locked(tmp_path, "…"):
        assert (tmp_path / files.LOCK).read_text() == ""


@TWO
def test_a_file_system_without_locks_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", none)
    with files.locked(tmp_path, "…"):
        pass


@TWO
def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with files.locked(tmp_path / "a/b", "…"):
        pass
    assert not (tmp_path / "a/b").exists()
    with files.locked(tmp_path / "a/b", "…"):
        (tmp_path / "a/b/mine").touch()
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["mine"]


def words(command: str, run: Path, folder: Path, config: Path) -> tuple[list[str], Path, str]:
    """A command that writes below `folder`, the folder that it holds, and its lock."""
    ckpt = str(run / "checkpoints/last.ckpt")
    evaluate = ["--ckpt_path", ckpt, "--trainer.default_root_dir", str(folder), "--trainer.logger", "false"]
    return {
        "fit": (["fit", "--config", str(config), "--trainer.default_root_dir", str(folder)], folder, files.LOCK),
        "validate": (["validate", *evaluate], folder, ".validate.lock"),
        "test": (["test", *evaluate], folder, ".test.lock"),
        "predict": (["predict", "--ckpt_path", ckpt, "--n", "2", "--out", str(folder)], folder, files.LOCK),
        "predict into an archive": (
            ["predict", "--ckpt_path", ckpt, "--n", "2", "--out", str(folder / "a.npz")],
            folder / "a.npz.parts",
            files.LOCK,
        ),
        "export": (["export", ckpt, str(folder), "--format", "weights"], folder, files.LOCK),
    }[command]


@TWO
@pytest.mark.parametrize(
    "command",
    ["fit", pytest.param("validate", marks=pytest.mark.slow), "test", "predict", "predict into an archive", "export"],
)
def test_the_second_of_two_commands_is_refused_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments, folder, name = words(command, run, tmp_path / "out", small_config(tmp_path))
    folder.mkdir(parents=True)
    with held(folder, name) as other:
        said = fails(capsys, *arguments)
        assert f"{folder} is in use by process {other.pid}" in said
        assert [p.name for p in folder.iterdir()] == [name]


@TWO
@pytest.mark.parametrize("command", ["predict", "predict into an archive", "export"])
def test_what_a_killed_command_left_is_no_hindrance_and_is_not_counted(run: Path, tmp_path: Path, command: str) -> None:
    arguments, folder, name = words(command, run, tmp_path / "out", tmp_path)
    folder.mkdir(parents=True)
    (folder / name).write_text('{"pid": 1}')
    (folder / ".000001.png.0a.part").write_bytes(b"half")
    main(arguments)
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*"))
    expected = {
        "predict": ["000000.png", "000001.png"],
        "predict into an archive": ["a.npz"],
        "export": ["README.md", "config.yaml", "model.safetensors"],
    }
    assert found == expected[command]


@TWO
def test_a_dry_run_holds_nothing_and_a_finished_run_holds_nothing_more(run: Path, tmp_path: Path) -> None:
    assert not list(run.glob(".*"))
    folder = tmp_path / "run"
    with held(folder):
        main(["fit", "--config", str(small_config(tmp_path)), "--trainer.fast_dev_run", "true", "--trainer.logger",
              "false", *BARE, "--trainer.limit_val_batches", "0"])  # fmt: skip


@TWO
def test_the_first_process_holds_the_folder_for_all_of_its_job(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=False, fast_dev_run=False, default_root_dir=str(tmp_path))
    with held(tmp_path):
        with run_folder.taken(trainer, "fit"):
            pass
        trainer.is_global_zero = True
        with pytest.raises(ValueError, match="in use"), run_folder.taken(trainer, "fit"):
            pass
        with run_folder.taken(trainer, "validate"):  # of its checkpoints, meanwhile
            pass
