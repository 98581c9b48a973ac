"""A file of the cache that ranks fill together: each block once, whatever ends a run or harms the file."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from diffusion_lightning import files
from diffusion_lightning.cli import main
from diffusion_lightning.data.base import rows
from diffusion_lightning.data.base.rows import Rows, filled

from ..conftest import with_a_flipped_bit
from ..support.disks import full_disk
from ..support.groups import ranks

tried = pytest.mark.tried("The cache")
N, SHAPE = 1500, (2, 1, 2, 2, 2)
TRUE = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(0))
BLOCKS = [(0, 512), (512, 1024), (1024, 1500)]


class Computing:
    """Gives the true rows, and keeps which it was asked for; raises an error in the place of one block."""

    def __init__(self, error: BaseException | None = None, at: int = 1024) -> None:
        self.asked: list[tuple[int, int]] = []
        self.error, self.at = error, at

    def __call__(self, start: int, stop: int) -> Tensor:
        if self.error is not None and start == self.at:
            raise self.error
        self.asked.append((start, stop))
        return TRUE[start:stop]


def taken(computing: Computing, memory: float = 1.0, key: str = "key") -> None:
    """What the cache gives is what was computed."""
    layout = Rows(N, SHAPE, "float32")
    assert torch.equal(filled(key, N, lambda: layout, computing, "latents", memory), TRUE)


@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "mapped"])
def test_each_block_is_computed_once_for_all_runs(own_cache: Path, memory: float) -> None:
    first, second = Computing(), Computing()
    taken(first, memory)
    assert first.asked == BLOCKS
    taken(second, memory)
    assert second.asked == []
    assert sorted(x.name for x in (own_cache / "latents").iterdir()) == ["key.json", "key.rows"]


@pytest.mark.parametrize(
    "shape", [(1, 2, 4, 32, 32), (2, 2, 4, 64, 64), (1, 1, 3, 5, 7), (2, 1, 4, 4, 4), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_block_is_whole_pages(shape: tuple[int, ...], dtype: str) -> None:
    layout = Rows(100_000, shape, dtype)
    assert layout.block * layout.row % rows.PAGE == 0
    assert layout.block * layout.row <= max(rows.BLOCK, rows.PAGE * layout.row)
    assert (layout.blocks - 1) * layout.block < layout.n <= layout.blocks * layout.block


@tried
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("not finite"), OSError(errno.EIO, "broken")], ids=repr
)
def test_latents_go_on_where_their_computation_was_ended(own_cache: Path, error: BaseException) -> None:
    computing = Computing(error)
    with pytest.raises(type(error)):
        taken(computing)
    assert computing.asked == BLOCKS[:2]
    assert not list(own_cache.glob("latents/*.rows"))
    again = Computing()
    taken(again)
    assert again.asked == BLOCKS[2:]


def flipped(path: Path) -> None:
    path.write_bytes(with_a_flipped_bit(path.read_bytes()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 100)


def lost(path: Path) -> None:
    path.unlink()


def of_other_hashes(path: Path) -> None:
    """A digit that was changed leaves JSON whole."""
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"rows": 1499}))


def no_json(path: Path) -> None:
    path.write_text("[1, 2")


@tried
@pytest.mark.parametrize("harm", [flipped, cut], ids=lambda harm: harm.__name__)
def test_an_unfinished_block_that_a_disk_harmed_is_computed_again(
    own_cache: Path, harm: Callable[[Path], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        taken(Computing(KeyboardInterrupt()))
    part = own_cache / "latents/.key.part"
    part.write_bytes(part.read_bytes()[: 1024 * 64])  # the blocks that are done
    harm(part)
    again = Computing()
    taken(again)
    assert again.asked == BLOCKS[1:]


@tried
def test_a_journal_that_was_cut_in_a_line_costs_that_block(own_cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        taken(Computing(KeyboardInterrupt()))
    (journal,) = own_cache.glob("latents/*.done")
    journal.write_text(journal.read_text()[:-5])
    again = Computing()
    taken(again)
    assert again.asked == BLOCKS[1:]


@tried
@pytest.mark.parametrize(
    ("suffix", "harm", "again"),
    [
        ("rows", flipped, BLOCKS[1:2]),
        ("rows", cut, BLOCKS[2:]),
        ("rows", lengthened, []),
        ("rows", lost, BLOCKS),
        ("json", lost, BLOCKS),
        ("json", of_other_hashes, BLOCKS),
        ("json", no_json, BLOCKS),
    ],
    ids=["a flipped bit", "cut", "longer", "lost", "notes lost", "notes of another number", "notes cut"],
)
def test_what_a_finished_file_of_latents_has_lost_is_computed_again(
    own_cache: Path,
    suffix: str,
    harm: Callable[[Path], None],
    again: list[tuple[int, int]],
    recwarn: pytest.WarningsRecorder,
) -> None:
    taken(Computing())
    harm(own_cache / f"latents/key.{suffix}")
    recwarn.clear()
    computing = Computing()
    taken(computing)
    assert computing.asked == again
    assert ["is computed again" in str(w.message) for w in recwarn] == [True] * (suffix == "json" or harm is not lost)
    recwarn.clear()
    after = Computing()
    taken(after)
    assert after.asked == []
    assert len(recwarn) == 0


# Several ranks


def test_two_ranks_compute_each_block_once_and_read_one_file(own_cache: Path) -> None:
    def work(rank: int) -> list[tuple[int, int]]:
        computing = Computing()
        taken(computing)
        return computing.asked

    (one, wrong), (two, none) = ranks(work)
    assert (wrong, none) == (None, None)
    assert (one, two) == (BLOCKS[::2], BLOCKS[1::2])
    assert sorted(x.name for x in (own_cache / "latents").iterdir()) == ["key.json", "key.rows"]
    alone = Computing()
    taken(alone)
    assert alone.asked == []


@tried
def test_ranks_whose_caches_are_their_own_fill_one_each(tmp_path: Path) -> None:
    def work(rank: int) -> list[tuple[int, int]]:
        os.environ["DIFFUSION_LIGHTNING_CACHE"] = str(tmp_path / str(rank))
        computing = Computing()
        if rank == 0:  # it has it already
            (tmp_path / "0/latents").mkdir(parents=True)
            for name in ("key.rows", "key.json"):
                shutil.copy(tmp_path / "whole/latents" / name, tmp_path / "0/latents" / name)
        taken(computing)
        return computing.asked

    os.environ["DIFFUSION_LIGHTNING_CACHE"], before = str(tmp_path / "whole"), os.environ["DIFFUSION_LIGHTNING_CACHE"]
    try:
        taken(Computing())
    finally:
        os.environ["DIFFUSION_LIGHTNING_CACHE"] = before
    assert ranks(work) == [([], None), (BLOCKS, None)]
    assert (tmp_path / "1/latents/key.rows").read_bytes() == (tmp_path / "whole/latents/key.rows").read_bytes()


@tried
def test_an_error_on_one_rank_ends_the_others_with_its_words(own_cache: Path) -> None:
    def work(rank: int) -> None:
        taken(Computing(ValueError("image 7 is not finite") if rank else None, 512))

    (_, one), (_, two) = ranks(work)
    assert one == "rank 1 failed (image 7 is not finite), and this one goes no further: see what it says"
    assert two == "image 7 is not finite"
    again = Computing()
    taken(again)
    assert again.asked == BLOCKS[1:]


# The disk, and others who write there


@pytest.mark.tried("Full disks and broken folders")
@pytest.mark.parametrize("room", [0, 50_000], ids=["from the start", "half way"])
def test_latents_for_which_there_is_no_room_end_in_a_sentence(
    own_cache: Path, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="File too large") as error, full_disk(room):
        taken(Computing())
    assert error.value.errno == errno.EFBIG
    taken(Computing())


@pytest.mark.tried("Full disks and broken folders")
def test_a_disk_that_is_too_small_for_latents_is_found_before_they_are_computed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=64 * N - 1))
    computing = Computing()
    with pytest.raises(ValueError, match=r"the latents take .* GiB, but there are .* make room there, set DIFFUSION_L"):
        taken(computing)
    assert computing.asked == []


@pytest.mark.tried("Two at once")
def test_latents_that_another_process_computes_are_waited_for_by_a_sentence(own_cache: Path) -> None:
    with (
        files.locked(own_cache / "latents", "wait", ".key.lock"),
        pytest.raises(ValueError, match=r"is in use by .*: it computes the latents: wait for it to end"),
    ):
        taken(Computing())


@tried
def test_the_command_lists_latents_and_what_is_unfinished_of_them(
    own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(Computing())
    with pytest.raises(KeyboardInterrupt):
        taken(Computing(KeyboardInterrupt()), key="other")
    capsys.readouterr()
    main(["cache"])
    said = capsys.readouterr().out
    assert "latents     1500 of 2x2x2 in float32, both mirrors  94.0 KiB" in said
    assert said.count("unfinished") == 2
    main(["cache", "--clear"])
    assert list((own_cache / "latents").iterdir()) == []


@tried
def test_unfinished_latents_of_a_month_ago_are_swept(own_cache: Path) -> None:
    folder = own_cache / "latents"
    folder.mkdir(parents=True)
    for name, days in ((".a.part", 31), (".a.1.done", 31), (".b.part", 29), (".b.1.done", 29)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - days * 24 * 3600,) * 2)
    taken(Computing())
    assert sorted(x.name for x in folder.iterdir()) == [".b.1.done", ".b.part", "key.json", "key.rows"]
