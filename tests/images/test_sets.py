"""Sets of images from folders, arrays and the hub: the cache's keys, splits, labels, names, paths."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.data import CIFAR10, MNIST, Arrays, CelebA, HuggingFace, ImageFolder
from diffusion_lightning.data.base import decode

try:
    import datasets
except ImportError:  # an extra of the package, which folders and arrays do without
    datasets = None
TRIED = pytest.mark.tried("Folders and sets")
HUB = pytest.mark.skipif(datasets is None, reason="needs the package datasets")


@pytest.fixture(autouse=True)
def own_hub(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if datasets is None:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def picture(seed: int, height: int = 6, width: int = 5) -> bytes:
    """A BMP, whose size follows from its pixels' number alone."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "BMP")
    return stream.getvalue()


def overwrite(path: Path, data: bytes) -> None:
    """Changes a file in place: the same inode and, where it is there already, the same size and time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return
    before = path.stat()
    assert before.st_size == len(data)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino


def pictures(folder: Path, seed: int) -> None:
    for i in range(6):
        overwrite(folder / f"{'ab'[i % 2]}/{i}.bmp", picture(10 * seed + i))


def array(folder: Path, seed: int) -> None:
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(seed).integers(0, 256, (6, 6, 5, 3), np.uint8))
    overwrite(folder / "a.npy", stream.getvalue())


def saved_set(folder: Path, seed: int) -> None:
    """Of the hub's library: the rows change, and its own mark of them does not."""
    rows = {"image": [{"bytes": picture(10 * seed + i), "path": None} for i in range(6)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder.with_name("made"))
    for file in folder.with_name("made").iterdir():
        if file.suffix == ".arrow" or not (folder / file.name).exists():
            overwrite(folder / file.name, file.read_bytes())


def faces(folder: Path, seed: int) -> None:
    for i, file in enumerate(sorted(Path(folder, "celeba/img_align_celeba").iterdir())):
        if file.read_bytes()[:2] != b"BM":
            file.unlink()  # a JPEG, whose size depends on its pixels
        overwrite(file, picture(100 * seed + i, 218, 178))


SETS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Any]]] = {
    "a folder": (pictures, lambda folder: ImageFolder(folder, held_out=1)),
    "a mapped array": (array, lambda folder: Arrays(folder / "a.npy", held_out=1, max_memory_gib=0)),
    "a saved set": (saved_set, lambda folder: HuggingFace(str(folder), held_out=1)),
    "a set of picture files": (pictures, lambda folder: HuggingFace(str(folder), held_out=1)),
    "faces": (faces, lambda folder: CelebA(folder, size=8)),
}
EACH = pytest.mark.parametrize("name", [pytest.param(name, marks=HUB if "set" in name else ()) for name in SETS])


def prepared(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / ("root" if name == "faces" else "f")
    if name == "faces":
        request.getfixturevalue("celeba")
    SETS[name][0](folder, 0)
    return folder


@TRIED
@EACH
def test_two_folders_with_the_same_names_sizes_and_times_are_two_sets(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write, read = SETS[name]
    folder = prepared(name, tmp_path, request)
    shutil.copytree(folder, tmp_path / "g")  # with the times
    write(tmp_path / "g", 1)
    first, second = (read(at).read("train")[0] for at in (folder, tmp_path / "g"))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@TRIED
@EACH
def test_a_set_that_is_changed_in_place_is_read_anew(
    name: str, tmp_path: Path, own_cache: Path, request: pytest.FixtureRequest
) -> None:
    """With the earlier size and time of each file."""
    write, read = SETS[name]
    folder = prepared(name, tmp_path, request)
    first = read(folder).read("train")[0].clone()
    write(folder, 1)
    second = read(folder).read("train")[0].clone()
    assert not torch.equal(first, second)
    made = sorted((own_cache / "pictures").glob("*.bytes"))
    assert len(made) == 2
    assert torch.equal(read(folder).read("train")[0], second)
    assert sorted((own_cache / "pictures").glob("*.bytes")) == made  # nothing is decoded once more


@TRIED
@EACH
def test_what_an_earlier_version_decoded_is_not_taken(
    name: str, tmp_path: Path, own_cache: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lightning.data import arrays

    folder = prepared(name, tmp_path, request)
    with monkeypatch.context() as context:
        for module in (decode, arrays):
            context.setattr(sys_module(module), "FORMAT", 1)
        SETS[name][1](folder).prepare_data()
    SETS[name][1](folder).prepare_data()
    assert len(list((own_cache / "pictures").glob("*.bytes"))) == 2


def sys_module(found: Any) -> Any:
    """The module of a function, or the module itself: `base` exports a function of its module's name."""
    import sys

    return sys.modules[found.__module__] if callable(found) else found


# Splits.


@TRIED
@pytest.mark.parametrize(
    "hub", [pytest.param(False, id="a folder"), pytest.param(True, id="a set of the hub", marks=HUB)]
)
@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Train", "Val", "Test"), ("TRAIN", "VALIDATION", "TEST"), ("train", "Valid")],
    ids=["small letters", "a capital", "capitals and VALIDATION", "without a test split"],
)
def test_splits_are_found_in_any_case_of_letters(names: tuple[str, ...], hub: bool, tmp_path: Path) -> None:
    sizes = dict(zip(names, (4, 3, 2), strict=False))
    for k, (name, n) in enumerate(sizes.items()):
        for i in range(n):
            overwrite(tmp_path / f"f/{name}/{i}.bmp", picture(10 * k + i))
    data: Any = ImageFolder(tmp_path / "f")
    if hub:
        parts = {
            name: datasets.Dataset.from_dict(
                {"image": [{"bytes": picture(10 * k + i), "path": None} for i in range(n)]},
                features=datasets.Features({"image": datasets.Image()}),
            )
            for k, (name, n) in enumerate(sizes.items())
        }
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
        data = HuggingFace(str(tmp_path / "set"))
    assert [len(data.read(split)[0]) for split in ("train", "val", "test")] == [4, 3, 2 if len(names) == 3 else 3]


@TRIED
def test_two_folders_that_are_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Train", "val"):
        overwrite(tmp_path / f"f/{name}/0.bmp", picture(0))
    with pytest.raises(ValueError, match="has Train and train, which are both its train: rename or remove one"):
        ImageFolder(tmp_path / "f").prepare_data()


# Labels.

WRONG: dict[str, tuple[Any, str]] = {
    "lists": ([[1], [2, 3], [], [0]], "holds lists, but a label is the whole number of a class"),
    "lists of one length": ([[1, 2]] * 4, r"has shape \[4, 2\], but there are 4 images"),
    "gaps": ([1, None, 0, 1], "holds gaps, but a label is the whole number of a class"),
    "records": ([{"a": 1}, {"a": 2}, {"a": 0}, {"a": 1}], "holds records, but a label is the whole number of a class"),
    "numbers beyond 63 bits": ([2**64 - 1, 0, 1, 2], "holds 18446744073709551615, but classes are numbered from 0"),
    "texts": (["a", "b", "a", "b"], "holds <U1, but a label is the whole number of a class"),
    "floats": ([0.0, 1.0, 0.0, 1.5], r"holds float(64)?, but a label is the whole number of a class"),
    "below zero": ([-1, 0, 1, 1], "holds -1, but classes are numbered from 0"),
    "true or false": ([True, False, True, False], "holds bool, but a label is the whole number of a class"),
}


def unsigned(name: str) -> Any:
    """The type that alone holds such numbers."""
    return np.uint64 if name == "numbers beyond 63 bits" else None


@TRIED
@HUB
@pytest.mark.parametrize("name", WRONG)
def test_labels_of_another_kind_in_a_set_are_refused_in_one_true_sentence(name: str, tmp_path: Path) -> None:
    values, says = WRONG[name]
    labels = np.array(values, unsigned(name)) if unsigned(name) else values
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(4)], "label": labels}
    part = datasets.Dataset.from_dict(rows)
    part.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=says) as caught:
        HuggingFace(str(tmp_path / "set"), label="label").prepare_data()
    assert "\n" not in str(caught.value)


@TRIED
@pytest.mark.parametrize("name", WRONG)
def test_labels_of_another_kind_in_an_array_are_refused_in_one_true_sentence(name: str, tmp_path: Path) -> None:
    values, says = WRONG[name]
    labels: Any = np.zeros(4, [("a", "i4")])
    if name in ("lists", "gaps"):
        labels = np.array(values, object)
        says = "labels of .* holds Python objects, but a label is the whole number of a class"
    elif name != "records":
        labels = np.array(values, unsigned(name))
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 6, 5), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=says) as caught:
        Arrays(tmp_path / "a.npz").prepare_data()
    assert "\n" not in str(caught.value)


@TRIED
def test_labels_in_unsigned_numbers_are_read(tmp_path: Path) -> None:
    images = np.zeros((4, 6, 5), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 0, 1, 0], np.uint64))
    y = Arrays(tmp_path / "a.npz", held_out=2).read("train")[1]
    assert y.dtype == torch.int64
    assert sorted(y.tolist()) == [0, 1]


# The classes' names.


def test_the_names_of_a_folders_classes_are_in_the_order_of_their_labels(tmp_path: Path) -> None:
    for i, name in enumerate(("zebra", "ant", "ox", "ant", "zebra", "ox")):
        overwrite(tmp_path / f"f/{name}/{i}.bmp", picture(i))
        overwrite(tmp_path / f"g/Train/{name}/{i}.bmp", picture(i))
        overwrite(tmp_path / f"g/Val/{name}/{i}.bmp", picture(i))
    for folder in ("f", "g"):
        data = ImageFolder(tmp_path / folder, classes=True)
        assert data.class_names == ["ant", "ox", "zebra"]
        assert set(data.read("train")[1].tolist()) == {0, 1, 2}
        assert ImageFolder(tmp_path / folder).class_names is None


@HUB
def test_the_names_of_a_sets_classes_are_the_sets_own(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(4)], "label": [0, 1] * 2, "number": [0, 1] * 2}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"]), "number": datasets.Value("int64")}  # fmt: skip # noqa: E501
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "set")
    for label, names in (("label", ["dog", "cat"]), ("number", None), (None, None)):
        assert HuggingFace(str(tmp_path / "set"), label=label).class_names == names


# Paths.


@TRIED
@pytest.mark.parametrize("kind", [str, Path], ids=["a text", "a path"])
def test_a_path_from_the_home_folder_is_expanded(
    kind: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "f", 0)
    array(tmp_path, 0)
    for data in (ImageFolder(kind("~/f")), Arrays(kind("~/a.npy"), held_out=1)):
        data.prepare_data()
    assert ImageFolder(kind("~/f")).path == tmp_path / "f"
    assert Arrays(kind("~/a.npy")).path == tmp_path / "a.npy"
    for make in (MNIST, CIFAR10, CelebA):
        assert make(kind("~/data")).root == tmp_path / "data"
    assert ImageFolder("a~b/~").path == Path("a~b/~")


@TRIED
@HUB
def test_the_name_of_a_set_is_expanded_if_it_is_a_path_from_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    saved_set(tmp_path / "set", 0)
    data = HuggingFace("~/set")
    data.prepare_data()
    assert data.set_name == str(tmp_path / "set")
    assert HuggingFace("someone/~set").set_name == "someone/~set"
