"""Files that are written whole or not at all, whatever writes them and however it ends."""

import errno
import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from diffusion_lightning import files

from .support.disks import full_disk

BROKEN = pytest.mark.tried("Full disks and broken folders")


WRITERS: dict[str, Callable[[IO[bytes]], object]] = {
    "bytes": lambda stream: stream.write(bytes(100_000)),
    "torch": lambda stream: torch.save({"weights": torch.zeros(100_000)}, stream),
    "numpy": lambda stream: np.savez(stream, a=np.zeros(100_000)),
    "a picture": lambda stream: Image.effect_noise((300, 300), 64).save(stream, "PNG"),
    "safetensors": lambda stream: stream.write(save({"weights": torch.zeros(100_000)})),
}


@BROKEN
@pytest.mark.parametrize("room", [0, 5000], ids=["no room", "room for a part"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_earlier_file_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[IO[bytes]], object], room: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(OSError, match="File too large") as error, full_disk(room), files.written(path) as stream:
        write(stream)
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"earlier"}
    with files.written(path) as stream:
        write(stream)
    assert path.read_bytes() != b"earlier"


@BROKEN
@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyboardInterrupt(), OSError("of something else")],
    ids=["an error", "Ctrl-C", "an error of the system"],
)
def test_a_block_that_raises_leaves_the_earlier_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    files.write_text(path, "earlier")

    def write() -> None:
        with files.written(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    assert raised.value is error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "earlier"


@BROKEN
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(pipe, "words")
    assert os.read(reader, 100) == b"words"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@BROKEN
@pytest.mark.parametrize("fails", [False, True], ids=["filled", "left in its middle"])
def test_a_folder_is_filled_or_stays_empty(tmp_path: Path, fails: bool) -> None:
    folder = tmp_path / "folder"
    try:
        with files.written_folder(folder) as part:
            files.write_text(part / "below/a", "a")
            files.write_text(part / "b", "b")
            assert not (folder / "b").exists()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert list(folder.iterdir()) == []
    else:
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == ["b", "below", "below/a"]


@BROKEN
def test_what_fails_in_an_unfinished_folder_is_named_as_what_it_was_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="File too large") as error, full_disk(), files.written_folder(tmp_path) as part:
        files.write_text(part / "below/a", "a")
    assert error.value.filename == str(tmp_path / "below/a")


def in_the_way(place: Path, kind: str) -> None:
    """Makes it impossible to write into a folder."""
    if kind == "a file":
        place.write_text("mine")
    elif kind == "a link to nowhere":
        place.symlink_to(place.with_name("nowhere"))
    else:
        place.mkdir()
        place.chmod(0o500)


KINDS = [
    "a file",
    "a link to nowhere",
    pytest.param(
        "a folder that is read-only", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    ),
]


@BROKEN
@pytest.mark.parametrize("below", ["", "not/yet/there"], ids=["itself", "below it"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, kind: str, below: str) -> None:
    place = tmp_path / "place"
    files.check_writable(place / below)
    files.check_file(place / below / "file")
    assert list(tmp_path.iterdir()) == []
    in_the_way(place, kind)
    for check in (lambda: files.check_writable(place / below), lambda: files.check_file(place / below / "file")):
        with pytest.raises(OSError, match=re.escape(str(place))) as error:
            check()
        assert error.value.filename == str(place)
        assert error.value.errno


@BROKEN
def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        files.check_file(tmp_path)


def test_unfinished_files_are_swept_after_a_day_or_at_once_under_a_lock(tmp_path: Path) -> None:
    old, new, folder = tmp_path / ".a.12.part", tmp_path / ".b.34.part", tmp_path / ".56.part"
    kept = tmp_path / "c.part"
    for part in (old, new, kept):
        part.touch()
    folder.mkdir()
    os.utime(old, (0, 0))
    files.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, folder, kept])
    files.sweep(tmp_path, age=0)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_digest_is_of_the_bytes_and_a_home_folder_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert files.digest(tmp_path / "a") == files.digest(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"2")
    assert files.digest(tmp_path / "a") != files.digest(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"a": ["~/x", "~", "a~/b", 3], "b": Path("~/y"), "c": "~other/z"}
    assert files.expanded(given) == {
        "a": [str(tmp_path / "x"), str(tmp_path), "a~/b", 3],
        "b": tmp_path / "y",
        "c": "~other/z",
    }


def test_the_streams_of_a_picture_and_a_file_have_the_same_bytes(tmp_path: Path) -> None:
    picture, memory = Image.effect_noise((30, 30), 64), io.BytesIO()
    picture.save(memory, "PNG")
    with files.written(tmp_path / "a.png", sync=False) as stream:
        picture.save(stream, "PNG")
    assert (tmp_path / "a.png").read_bytes() == memory.getvalue()
