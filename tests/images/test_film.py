"""Films: every frame and its time, in each format; one that cannot be written is refused before anything is."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffusion_lightning.images import check_film, write_film


def frames(n: int, channels: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (12, 20, channels), dtype=torch.uint8, generator=g) for _ in range(n)]


def read(path: Path, channels: int) -> tuple[list[Tensor], list[int]]:
    """The frames of an animated picture, and how many milliseconds each is shown."""
    found, times = [], []
    with Image.open(path) as film:
        assert film.info.get("loop") == 0  # without end
        for frame in ImageSequence.Iterator(film):
            pixels = torch.frombuffer(bytearray(frame.convert("RGB").tobytes()), dtype=torch.uint8)
            found.append(pixels.view(frame.height, frame.width, 3)[..., :channels])
            times.append(frame.info["duration"])
    return found, times


@pytest.mark.parametrize(("suffix", "channels"), [(".webp", 1), (".webp", 3), (".gif", 1)])
@pytest.mark.parametrize("n", [2, 7])
def test_every_pixel_of_every_frame_is_kept_and_the_last_is_held(
    suffix: str, channels: int, n: int, tmp_path: Path
) -> None:
    path, made = tmp_path / f"film{suffix}", frames(n, channels)
    write_film(path, made, seconds=0.05, hold=2.0)
    found, times = read(path, channels)
    assert len(found) == n
    assert all(torch.equal(a, b) for a, b in zip(found, made, strict=True))
    assert times == [50] * (n - 1) + [2000]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_film_of_less_quality_is_a_smaller_file(tmp_path: Path) -> None:
    for name, quality in (("whole", None), ("small", 30)):
        write_film(tmp_path / f"{name}.webp", frames(6), quality=quality)
    assert len(read(tmp_path / "small.webp", 1)[0]) == 6
    assert (tmp_path / "small.webp").stat().st_size < (tmp_path / "whole.webp").stat().st_size


def test_a_gif_in_colours_has_every_frame(tmp_path: Path) -> None:
    write_film(tmp_path / "film.gif", frames(5, 3))
    found, times = read(tmp_path / "film.gif", 3)
    assert len(found) == 5
    assert times[-1] > times[0]


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_frames_that_are_equal_last_as_long_together(suffix: str, tmp_path: Path) -> None:
    """However a format packs them."""
    a, b = frames(2)
    write_film(tmp_path / f"film{suffix}", [a, a, a, b, b], seconds=0.1, hold=1.0)
    assert sum(read(tmp_path / f"film{suffix}", 1)[1]) == 1400


FFMPEG = """#!{python}
import sys
assert sys.argv[sys.argv.index("-s") + 1] == "20x12"
pixels = sys.stdin.buffer.read()
open(sys.argv[-1], "wb").write(b"film of %d" % len(pixels)) if {works} else sys.exit("no encoder")
"""


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that counts the bytes that it is given, alone on the PATH."""
    (tmp_path / "bin").mkdir()
    place = tmp_path / "bin/ffmpeg"
    place.write_text(FFMPEG.format(python=sys.executable, works=True))
    place.chmod(0o755)
    monkeypatch.setenv("PATH", str(place.parent))
    return place


@pytest.mark.skipif(os.name != "posix", reason="the encoder of the test is a script")
@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoder_gets_every_frame_and_the_last_one_often(ffmpeg: Path, channels: int, tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", frames(4, channels), seconds=0.1, hold=1.0)
    assert (tmp_path / "film.mp4").read_bytes() == b"film of %d" % (20 * 12 * channels * 13)


@pytest.mark.skipif(os.name != "posix", reason="the encoder of the test is a script")
def test_an_encoder_that_fails_leaves_no_film(ffmpeg: Path, tmp_path: Path) -> None:
    ffmpeg.write_text(FFMPEG.format(python=sys.executable, works=False))
    with pytest.raises(ValueError, match=r"ffmpeg could not make the film \(no encoder\).*\.webp"):
        write_film(tmp_path / "film.mp4", frames(2))
    assert not (tmp_path / "film.mp4").exists()


def test_a_film_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no ffmpeg on the PATH.*\.webp"):
        check_film("film.mp4", 8, 8)
    with pytest.raises(ValueError, match=r"film.avi is no name of a film"):
        check_film("film.avi", 8, 8)
    with pytest.raises(ValueError, match=r"20000×8 pixels, but a side of a \.webp has 16383"):
        check_film("film.webp", 8, 20_000)
    check_film("film.gif", 8, 20_000)
