"""The user's cache: whatever happened to a file in it, what is trained on and compared with is what was made."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning import files
from diffusion_lightning.cli import main
from diffusion_lightning.data.base import cached
from diffusion_lightning.metrics import ClassCoverage, FrechetDistance, PrecisionRecall
from diffusion_lightning.metrics.evaluation import Evaluation
from diffusion_lightning.metrics.statistics import read_statistics

from ..conftest import small_config, with_a_flipped_bit

tried = pytest.mark.tried("The cache")
SHAPE = (1, 8, 8)
BYTES = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), np.uint8)
OLD = time.time() - 2 * files.STALE


class Making:
    """Makes the bytes, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, stream: IO[bytes]) -> dict[str, Any]:
        self.times += 1
        for image in BYTES:
            stream.write(image.tobytes())
        return {"broken": {"3": "cut short"}, "enlarged": 1}


def taken(making: Making, memory: float = 1.0) -> None:
    """What the cache gives is what was made."""
    found, notes = cached("key", SHAPE, making, memory)
    assert torch.equal(found, torch.from_numpy(BYTES))
    assert notes == {"broken": {"3": "cut short"}, "enlarged": 1}


def the(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(64))


def flipped(path: Path) -> None:
    path.write_bytes(with_a_flipped_bit(path.read_bytes()))


def zeroed(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 3 : 2 * len(held) // 3] = bytes(2 * len(held) // 3 - len(held) // 3)
    path.write_bytes(held)


def all_zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def removed(path: Path) -> None:
    path.unlink()


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff\x00 no notes")


def of_another_kind(path: Path) -> None:
    path.write_text(json.dumps({"hash": 3}))


def of_other_pictures(path: Path) -> None:
    notes = json.loads(path.read_text())
    path.write_text(json.dumps({**notes, "notes": {"broken": {}, "enlarged": 1}}))


DAMAGE = [cut, cut_to_nothing, lengthened, flipped, zeroed, all_zeroed]
NOTES = [removed, cut, cut_to_nothing, zeroed, garbled, of_another_kind, of_other_pictures]
CASES = [("bytes", f) for f in DAMAGE] + [("json", f) for f in NOTES]


def words(value: str | Callable[[Path], None]) -> str:
    """Of a file's kind, or of what is done to it."""
    return {"bytes": "pictures", "json": "notes"}[value] if isinstance(value, str) else value.__name__.replace("_", " ")


@tried
@pytest.mark.parametrize("memory", [1.0, 0.0], ids=["in memory", "mapped"])
@pytest.mark.parametrize(("suffix", "harm"), CASES, ids=words)
def test_decoded_pictures_that_are_damaged_or_lost_their_notes_are_made_again_with_one_warning(
    own_cache: Path, suffix: str, harm: Callable[[Path], None], memory: float, recwarn: pytest.WarningsRecorder
) -> None:
    making = Making()
    taken(making, memory)
    harm(the(own_cache / "pictures", f"*.{suffix}"))
    assert len(recwarn) == 0
    taken(making, memory)
    assert making.times == 2
    says = f"the decoded pictures in {own_cache}/pictures/key.bytes are made again"
    assert [says in str(w.message) for w in recwarn] == [True]
    taken(making, memory)
    assert making.times == 2
    assert len(recwarn) == 1


@tried
def test_damaged_pictures_in_a_cache_that_cannot_be_written_are_made_in_memory(own_cache: Path) -> None:
    making = Making()
    taken(making)
    flipped(the(own_cache / "pictures", "*.bytes"))
    replace, os.replace = os.replace, lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    try:
        with pytest.warns(UserWarning, match="not kept for later runs"):
            taken(making)
    finally:
        os.replace = replace


@tried
def test_decoded_pictures_of_an_earlier_version_without_a_hash_are_made_again_silently(
    own_cache: Path, recwarn: pytest.WarningsRecorder
) -> None:
    making = Making()
    taken(making)
    notes = the(own_cache / "pictures", "*.json")
    notes.write_text(json.dumps(json.loads(notes.read_text())["notes"]))
    taken(making)
    taken(making)
    assert making.times == 2
    assert len(recwarn) == 0


SIZES = {
    "no byte": 0,
    "a byte": 1,
    "a byte less than a piece": files.PIECE - 1,
    "a piece": files.PIECE,
    "a byte more": files.PIECE + 1,
    "three pieces and a part": 3 * files.PIECE + 5,
}


@tried
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_hash_made_while_writing_is_the_one_found_by_reading(tmp_path: Path, size: int) -> None:
    """Whatever the chunks, at the pieces' edges too."""
    data = bytes(range(256)) * (size // 256 + 1)
    with (tmp_path / "file").open("wb") as file:
        stream = files.Hashing(file)
        for first in range(0, size, 5_000_001):
            stream.write(data[first : min(first + 5_000_001, size)])
    assert files.digest_of_pieces(tmp_path / "file") == stream.digest()
    assert (tmp_path / "file").stat().st_size == stream.size == size


@tried
@pytest.mark.parametrize("name", [".key.bytes.0a1b.part", ".key.bytes.0a1b.notes", "moments.npz.71.part"])
def test_unfinished_files_of_yesterday_are_swept_when_the_cache_is_used(own_cache: Path, name: str) -> None:
    place = own_cache / ("references" if "npz" in name else "pictures")
    place.mkdir(parents=True)
    for file, age in ((place / name, OLD), (place / f".today{name}", time.time()), (place / "mine.txt", OLD)):
        file.write_text("")
        os.utime(file, (age, age))
    cached("key", SHAPE, Making(), 1.0)
    Evaluation([], None, cache=own_cache / "references")
    assert not (place / name).exists()
    assert (place / f".today{name}").exists()
    assert (place / "mine.txt").exists()


# References


class Pooled(nn.Module):
    """Means over the quarters of an image, and which is the lightest."""

    num_features = num_classes = 4
    name = "pooled"

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float(), 4).flatten(1)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self(images)
        return features, features


REAL, FAKE = (torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
              for n in (90, 60))  # fmt: skip


def metrics() -> list[Any]:
    return [FrechetDistance(Pooled()), PrecisionRecall(Pooled()), ClassCoverage(Pooled())]


def scored(folder: Path | None, real: Tensor = REAL) -> dict[str, float]:
    found = Evaluation(metrics(), real, batch_size=50, cache=folder).score(FAKE)
    return {key: float(value) for key, value in found.items()}


def with_nan(path: Path) -> None:
    """As a network on a faulty device would have left it."""
    with np.load(path) as file:
        held = dict(file)
    next(x for x in held.values() if x.dtype.kind == "f").flat[0] = np.nan
    np.savez(path, **held)


def of_another_set(path: Path) -> None:
    """A file that was copied to this name: whole, but not of these images."""
    scored(path.parent / "other", REAL[:70])
    kind = path.name.partition("-")[0]
    the(path.parent / "other", f"{kind}-*.npz").rename(path)


def of_another_shape(path: Path) -> None:
    with np.load(path) as file:
        held = {name: x[..., :-1] if x.ndim else x for name, x in file.items()}
    np.savez(path, **held)


def no_numbers(path: Path) -> None:
    with np.load(path) as file:
        np.savez(path, **{name: np.array("x") if x.ndim else x for name, x in file.items()})  # type: ignore[arg-type]


FOREIGN = [*DAMAGE[:2], *DAMAGE[3:], garbled, with_nan, of_another_set, of_another_shape, no_numbers]


@tried
@pytest.mark.parametrize("kind", ["moments", "features", "classes"])
@pytest.mark.parametrize("harm", FOREIGN, ids=words)
def test_a_reference_that_is_damaged_or_of_something_else_is_made_again_with_one_warning(
    tmp_path: Path, kind: str, harm: Callable[[Path], None], recwarn: pytest.WarningsRecorder
) -> None:
    before = scored(tmp_path)
    file = the(tmp_path, f"{kind}-*.npz")
    harm(file)
    recwarn.clear()
    Evaluation(metrics(), REAL, cache=tmp_path)  # found at the start, before a sample is made
    assert [str(w.message).partition(f"the reference {file} ")[0] for w in recwarn] == [""]
    assert scored(tmp_path) == before
    recwarn.clear()
    assert scored(tmp_path) == before
    assert len(recwarn) == 0


@tried
def test_a_reference_that_one_process_cannot_read_is_made_again_by_all(tmp_path: Path) -> None:
    """The others say no, whatever this one found."""
    before = scored(tmp_path)
    evaluation = Evaluation(metrics(), REAL, batch_size=50, cache=tmp_path, agree=lambda holds: False)
    assert all(metric.reference is None for metric in evaluation.metrics)
    assert {key: float(value) for key, value in evaluation.score(FAKE).items()} == before


@tried
def test_a_reference_of_an_earlier_version_is_made_again_silently(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    before = scored(tmp_path)
    for file in tmp_path.glob("*.npz"):
        with np.load(file) as held:
            np.savez(file, **{name: x for name, x in held.items() if x.dtype.kind != "U"})
    recwarn.clear()
    assert scored(tmp_path) == before
    assert len(recwarn) == 0
    kept = list(tmp_path.glob("*.npz"))
    assert len(kept) == 3
    for file in kept:
        with np.load(file) as held:
            assert "hash" in held.files


class Faulty(Pooled):
    """A network that gives no numbers."""

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().classify(images)
        return features * math.nan, logits


@tried
def test_a_reference_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    """One of the same metric that is finite is."""
    for network, n in ((Faulty(), 0), (Pooled(), 1)):
        Evaluation([PrecisionRecall(network)], REAL, batch_size=50, cache=tmp_path).score(FAKE)
        assert len(list(tmp_path.iterdir())) == n


@tried
@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_given_statistics_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    held = {"mu": np.zeros(4), "sigma": np.eye(4)}
    held[name].flat[0] = np.nan
    np.savez(tmp_path / "given.npz", **held)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        read_statistics(tmp_path / "given.npz", 4)


@tried
def test_a_damaged_reference_is_found_when_fit_starts(run: Path, cache: Path, own_cache: Path, tmp_path: Path) -> None:
    """Before the first step, though no evaluation follows here."""
    shutil.copytree(cache / "references", own_cache / "references")
    for file in (own_cache / "references").glob("moments-digits-*.npz"):
        zeroed(file)
    changes = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "checkpoint.monitor": None}
    with pytest.warns(UserWarning, match=r"the reference .*moments-digits.*: it is made again"):
        main(["fit", "--config", str(small_config(tmp_path, **changes)), "--trainer.logger", "false"])


# The command


@tried
def test_the_command_lists_the_cache_with_sizes_and_clears_it_and_nothing_else(
    own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached("key", SHAPE, Making(), 1.0)
    scored(own_cache / "references")
    (own_cache / "pictures/.key.bytes.0a1b.part").write_bytes(bytes(2048))
    (own_cache / "pictures/mine.txt").write_text("kept")
    (own_cache / "mine.npz").write_text("kept")
    main(["cache"])
    out = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["pictures", "50", "of", "1x8x8", "3.3", "KiB", "new", "pictures/key.bytes"]
               for line in out)  # fmt: skip
    assert sum(line.startswith("reference ") for line in out) == 3
    assert any("moments of pooled-1x8x8" in line for line in out)
    assert any(line.split()[:3] == ["unfinished", "2.0", "KiB"] for line in out)
    assert out[-1].startswith("5 entries, ")
    main(["cache", "--clear"])
    assert capsys.readouterr().out.startswith("removed 5 entries, ")
    assert sorted(p.name for p in own_cache.rglob("*") if p.is_file()) == ["mine.npz", "mine.txt"]
    main(["cache"])
    assert capsys.readouterr().out == f"0 entries, 0 bytes in {own_cache}\n"
