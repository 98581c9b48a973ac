"""Captions of every source: they stay with their images, whatever is held out, left out, shuffled or moved."""

import csv
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from diffusion_lightning import data as sources
from diffusion_lightning import records
from diffusion_lightning.data import Arrays, HuggingFace, ImageFolder, Images
from diffusion_lightning.data.base import check_captions, one_of

pytestmark = pytest.mark.usefixtures("own_cache")

N, STEP = 40, 6  # images; image i is all of the grey STEP·i
SPLITS = ("train", "val", "test")


def caption(i: int) -> str:
    return f"picture {i}, “{chr(0x3B1 + i % 20)}”\nof {N}"


def encoded(i: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (STEP * i,) * 3).save(stream, "PNG")
    return stream.getvalue()


def pictures(folder: Path) -> list[str]:
    """Pictures of two classes, in an order of names that is not that of the numbers; the name of each number."""
    names = [f"{'ab'[i % 2]}/{(7 * i) % N:02}.png" for i in range(N)]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(i))
    return names


def write(folder: Path, captions: str, names: list[str], texts: list[str]) -> None:
    """The texts as sidecars or as a list."""
    if captions == "txt":
        for name, text in zip(names, texts, strict=True):
            (folder / name).with_suffix(".txt").write_text(f" {text}\n", encoding="utf-8")
    elif captions.endswith(".csv"):
        with (folder / captions).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "file_name", "text"), *zip(range(N), names, texts, strict=False)])
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in zip(names, texts, strict=True)]
        (folder / captions).write_text("\n".join(lines), encoding="utf-8")


def in_folder(captions: str) -> Callable[..., Images]:
    def make(folder: Path, say: Callable[[int], Any] = caption, classes: bool = False, **kwargs: Any) -> Images:
        write(folder / "set", captions, pictures(folder / "set"), [say(i) for i in range(N)])
        return ImageFolder(folder / "set", captions=captions, classes=classes, **kwargs)

    return make


def in_arrays(kind: str) -> Callable[..., Images]:
    def make(folder: Path, say: Callable[[int], Any] = caption, classes: bool = False, **kwargs: Any) -> Images:
        images = np.arange(0, STEP * N, STEP, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
        texts = [say(i) for i in range(N)]
        saved = np.array(texts) if kind == "U" else np.array([text.encode() for text in texts])
        np.savez(folder / "set.npz", images=images, labels=np.arange(N) % 2, said=saved)
        return Arrays(folder / "set.npz", captions="said", labels="labels" if classes else None, **kwargs)

    return make


def in_hub(lists: bool) -> Callable[..., Images]:
    def make(folder: Path, say: Callable[[int], Any] = caption, classes: bool = False, **kwargs: Any) -> Images:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        column = [[say(i), "another"] if lists else say(i) for i in range(N)]
        rows = {
            "image": [{"bytes": encoded(i), "path": None} for i in range(N)],
            "label": [i % 2 for i in range(N)],
            "said": column,
        }
        part = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        part.save_to_disk(folder / "set")
        return HuggingFace(str(folder / "set"), caption="said", label="label" if classes else None, **kwargs)

    return make


KINDS: dict[str, Callable[..., Images]] = {
    "a text beside each picture": in_folder("txt"),
    "metadata.jsonl": in_folder("metadata.jsonl"),
    "metadata.csv": in_folder("metadata.csv"),
    "an array of unicode": in_arrays("U"),
    "an array of UTF-8": in_arrays("S"),
    "a column of texts": in_hub(lists=False),
    "a column of lists": in_hub(lists=True),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def numbers(images: Tensor) -> list[int]:
    """Which images these are, bytes or scaled."""
    grey = images[:, 0, 0, 0] if images.dtype == torch.uint8 else (images[:, 0, 0, 0] + 1) * 127.5 + 0.5
    return [int(value) // STEP for value in grey]


def test_every_source_that_takes_captions_is_tried_here() -> None:
    known = [getattr(sources, name) for name in sources.__dict__ if inspect.isclass(getattr(sources, name))]
    takes = {kind for kind in known if {"caption", "captions"} & set(inspect.signature(kind).parameters)}
    assert takes == {ImageFolder, HuggingFace, Arrays}


@every_kind
@pytest.mark.parametrize("classes", [False, True], ids=["captions alone", "with classes"])
def test_each_image_has_its_own_caption(make: Callable[..., Images], classes: bool, tmp_path: Path) -> None:
    data = make(tmp_path, classes=classes, held_out=8)
    for split, n in zip(SPLITS, (32, 8, 8), strict=True):
        images, y = data.read(split)
        assert data.captions is not None
        found = numbers(images)
        assert len(set(found)) == len(found) == n
        assert [data.captions[k] for k in y] == data.captions_of(split) == [caption(i) for i in found]
        assert y.dtype == torch.int64
        if classes:
            assert data._label_of is not None
            assert data._label_of[y].tolist() == [i % 2 for i in found]
        else:
            assert data._label_of is None
    held = numbers(data.read("val")[0])
    if classes:  # from each in proportion
        assert sum(i % 2 for i in held) == 4


@every_kind
def test_without_classes_the_held_out_are_evenly_spaced(make: Callable[..., Images], tmp_path: Path) -> None:
    data = make(tmp_path, held_out=8)
    y = data.read("val")[1]  # of one caption an image, in the order of the set
    assert y.tolist() == [(2 * k + 1) * N // 16 for k in range(8)]


class Taken(LightningModule):
    """The batches as a module gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, list[Any]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.batches["train"].append(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.batches["val"].append(batch)

    def configure_optimizers(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["in memory", "mapped"])
@pytest.mark.parametrize("classes", [False, True], ids=["captions alone", "with classes"])
def test_a_module_gets_texts_with_their_images(classes: bool, memory: float, workers: int, tmp_path: Path) -> None:
    data = KINDS["metadata.csv"](
        tmp_path, classes=classes, held_out=8, batch_size=6, flip=True, num_workers=workers, max_memory_gib=memory
    )
    module = Taken()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert [len(batches) for batches in module.batches.values()] == [5, 2]
    for images, y in [batch for batches in module.batches.values() for batch in batches]:
        found = numbers(images)
        assert (y["text"] if classes else y) == [caption(i) for i in found]
        if classes:
            assert y["label"].tolist() == [i % 2 for i in found]
            assert y["label"].dtype == torch.int64
            assert set(y) == {"label", "text"}
    seen = [i for images, _ in module.batches["val"] for i in numbers(images)]
    assert [caption(i) for i in seen] == data.captions_of("val")  # held-out captions by the number of the sample


def test_the_numbers_of_captions_stay_on_the_cpu_where_images_lie_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for the GPU: to read a number from there would be an error."""
    data = KINDS["an array of unicode"](tmp_path, classes=True, flip=True, batch_size=4)
    monkeypatch.setattr(type(data), "_place", lambda self, images: torch.device("meta"))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch[0].device.type, batch[1].device.type) == ("meta", "cpu")
    images, y = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, torch.device("meta"), 0), 0)
    assert images.device.type == y["label"].device.type == "meta"
    assert all(text in (data.captions or []) for text in y["text"])
    of_ram = data.transfer_batch_to_device((torch.zeros(4, 1, 2, 2), batch[1]), torch.device("meta"), 0)
    assert (of_ram[0].device.type, of_ram[1].device.type) == ("meta", "cpu")


BROKEN = [kind for kind in KINDS if "array" not in kind]


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("classes", [False, True], ids=["captions alone", "with classes"])
def test_captions_stay_with_their_images_where_broken_ones_are_left_out(
    kind: str, classes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = encoded, (0, 3, 4, 17, 39)
    monkeypatch.setattr(f"{__name__}.encoded", lambda i: whole(i)[:-30] if i in broken else whole(i))
    data = KINDS[kind](tmp_path, classes=classes, held_out=8, on_error="skip", size=2)
    with pytest.warns(UserWarning, match="5 of 40 pictures cannot be read and are left out"):
        data.prepare_data()
    seen = []
    for split in ("train", "val"):
        images, y = data.read(split)
        assert data.captions_of(split) == [caption(i) for i in numbers(images)]
        if classes:
            assert data._label_of is not None
            assert data._label_of[y].tolist() == [i % 2 for i in numbers(images)]
        seen += numbers(images)
    assert sorted(seen) == [i for i in range(N) if i not in broken]


@pytest.mark.parametrize("kind", ["a text beside each picture", "metadata.jsonl", "metadata.csv"])
def test_other_captions_are_read_at_the_next_start_and_no_picture_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = KINDS[kind](tmp_path, size=2, held_out=8)
    first.prepare_data()
    assert isinstance(first, ImageFolder)
    assert first.caption_files is not None
    names = {i: f"{'ab'[i % 2]}/{(7 * i) % N:02}.png" for i in range(N)}
    write(tmp_path / "set", first.caption_files, list(names.values()), [f"new {i}" for i in range(N)])
    monkeypatch.setattr(Image, "open", None)
    again = ImageFolder(tmp_path / "set", size=2, captions=first.caption_files, held_out=8)
    assert torch.equal(again.read("train")[0], first.read("train")[0])
    assert again.captions_of("val") == [f"new {i}" for i in numbers(again.read("val")[0])]
    without = ImageFolder(tmp_path / "set", size=2, held_out=8)
    assert torch.equal(without.read("train")[0], first.read("train")[0])
    assert without.captions is without.captions_of("train") is None
    assert not without.read("train")[1].any()


# What is wrong.

ODD: dict[str, tuple[Callable[[int], Any], str]] = {
    "an empty one": (
        lambda i: " \n" if i in (3, 5) else "a",
        r"2 of 40 images of .*set.* have an empty caption, .* fi",
    ),
    "a long one": (lambda i: "a" * 10_001 if i == 3 else "a", r"has 10,001 characters, but a caption has at most 10,0"),
    "one with a byte 0": (lambda i: "a\0b" if i == 3 else "a", "holds a character that no text has"),
}


@every_kind
@pytest.mark.parametrize(("say", "says"), ODD.values(), ids=ODD.keys())
def test_a_caption_that_is_none_is_named_before_a_picture_is_decoded(
    make: Callable[..., Images], say: Callable[[int], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path, say)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ValueError, match=says) as caught:
        data.prepare_data()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "number" in str(caught.value) or "image 3" in str(caught.value)


@every_kind
def test_the_longest_caption_is_taken(make: Callable[..., Images], tmp_path: Path) -> None:
    data = make(tmp_path, lambda i: "é" * 10_000 if i == 0 else f"a {i}", held_out=8)
    images, captions = data.read("train")[0], data.captions_of("train")
    assert captions is not None
    assert len(captions[numbers(images).index(0)]) == 10_000


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "the caption of image 1 is int, but a caption is text"),
        ({"en": "a"}, "the caption of image 1 is dict"),
        (None, "1 of 2 images of here have no caption, the first of them image 1"),
        ("\ud83d", "the caption of image 1 holds a character that no text has"),
    ],
)
def test_a_caption_is_text(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_captions(["a", value], lambda i: f"image {i}", "here")
    assert check_captions([" a\r\nb\n", "🙂"], str, "here") == ["a\nb", "🙂"]


def test_of_several_captions_the_first_is_taken() -> None:
    assert [one_of(value) for value in ("ab", ["x", "y"], ("z",), [], None)] == ["ab", "x", "z", None, None]


class Own(Images):
    shape, captions = (1, 2, 2), ["zero", "one", "two"]

    def __init__(self, y: Tensor, **kwargs: Any) -> None:
        super().__init__(batch_size=2, **kwargs)
        self.y = y

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(self.y), *self.shape, dtype=torch.uint8), self.y


def test_a_users_set_may_number_its_captions_as_it_likes() -> None:
    data = Own(torch.tensor([2, 0, 2, 2], dtype=torch.uint8))
    assert data.captions_of("test") == ["two", "zero", "two", "two"]
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert [y for _, y in batches] == [["two", "zero"], ["two", "two"]]


@pytest.mark.parametrize("y", [[0, 1, 3], [-1, 0, 1]], ids=["too high", "below 0"])
def test_a_number_of_no_caption_is_refused(y: list[int]) -> None:
    says = rf"y of the train images of Own goes from {min(y)} to {max(y)}, but 3 captions are numbered from 0 on: give"
    for use in (lambda data: data.setup("fit"), lambda data: data.captions_of("train")):
        with pytest.raises(ValueError, match=says):
            use(Own(torch.tensor(y)))


@pytest.mark.parametrize("flip", [True, False])
def test_sides_that_flips_make_wrong_are_warned_of(flip: bool, recwarn: pytest.WarningsRecorder) -> None:
    data = Own(torch.tensor([0, 1, 2, 0]), flip=flip)
    data.captions = ["a cat Left of a dog", "bright and leftover", "the right one"]
    data.setup("fit")
    said = [str(warning.message) for warning in recwarn if "left or right" in str(warning.message)]
    assert [message.partition(":")[0] for message in said] == [
        "flip mirrors images, but 3 of 4 training captions say left or right"
    ] * flip


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (np.array(["a"] * (N - 1)), r"said of .* has 39 captions, but there are 40 images: give each one caption"),
        (np.array([["a"]] * N), r"said of .* holds <U1 of shape \[40, 1\], but captions are texts"),
        (np.arange(N), r"said of .* holds int64 of shape \[40\], but captions are texts"),
        (np.array(["a"] * N, object), r"said of .* holds object of shape \[40\], but captions are texts"),
        (np.array(["é".encode("latin-1")] * N), r"said of .* holds bytes that are no text in UTF-8"),
        (np.full(N, 0xFFFFFFFF, np.uint32).view("<U1"), r"said of .* holds bytes that are no text"),
        (None, r"holds images, but no said: correct data's captions"),
    ],
    ids=["too few", "of two dimensions", "numbers", "objects", "another encoding", "no characters", "missing"],
)
def test_an_array_that_holds_no_captions_is_refused(saved: Any, says: str, tmp_path: Path) -> None:
    images = np.zeros((N, 2, 2), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, **({} if saved is None else {"said": saved}))
    with pytest.raises(ValueError, match=says) as caught:
        Arrays(tmp_path / "a.npz", captions="said").prepare_data()
    assert "\n" not in str(caught.value)
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(ValueError, match="holds one array, but images, labels or captions are named"):
        Arrays(tmp_path / "a.npy", captions="said").prepare_data()


def test_a_checkpoints_record_names_captions_as_plain_data(tmp_path: Path) -> None:
    data = KINDS["metadata.csv"](tmp_path, held_out=8)
    arguments = {"path": str(tmp_path / "set"), "captions": "metadata.csv", "held_out": 8}

    def read(**changes: Any) -> Any:
        return records.read({"class_path": "ImageFolder", "init_args": {**arguments, **changes}}, Images, "data").make()

    assert read().captions_of("val") == data.captions_of("val")
    refused = ({"class_path": "builtins.open"}, 3, ["metadata.csv"], "/etc/passwd", "../metadata.csv")
    for value in refused:
        with pytest.raises(ValueError, match="captions"):
            read(captions=value)


def test_labels_of_an_array_are_taken_beside_captions_only_by_name(tmp_path: Path) -> None:
    data = KINDS["an array of unicode"](tmp_path, held_out=8, batch_size=4)  # the file has labels of a usual name
    data.setup("fit")
    _, y = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert y == (data.captions_of("val") or [])[:4]


def test_a_column_of_captions_that_is_none(tmp_path: Path) -> None:
    data = KINDS["a column of texts"](tmp_path)
    assert isinstance(data, HuggingFace)
    with pytest.raises(ValueError, match="has the columns image, label, said, but no words: name another"):
        HuggingFace(data.set_name, caption="words").prepare_data()
    with pytest.raises(ValueError, match="the caption of number 0 of train is int, but a caption is text"):
        HuggingFace(data.set_name, caption="label").prepare_data()
    missing = KINDS["a column of texts"](tmp_path / "b", lambda i: None if i in (4, 9) else "a")
    with pytest.raises(ValueError, match=r"2 of 40 images of .* have no caption, the first of them number 4 of train"):
        missing.prepare_data()


@pytest.mark.parametrize("hidden", ["no column", "gaps", "empty"])
def test_a_test_split_without_captions_is_left_out(hidden: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def rows(n: int, said: list[Any] | None) -> Any:
        columns = {"image": [{"bytes": encoded(i), "path": None} for i in range(n)]}
        features = {"image": datasets.Image()}
        if said is not None:
            columns["said"], features["said"] = said, datasets.Value("string")
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    kept_back = {"no column": None, "gaps": [None] * 3, "empty": [""] * 3}[hidden]
    sets = {"train": rows(6, list("abcdef")), "validation": rows(2, list("xy")), "test": rows(3, kept_back)}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "set")
    data = HuggingFace(str(tmp_path / "set"), caption="said")
    with pytest.warns(UserWarning, match="the split test of .* has no said and is left out"):
        data.prepare_data()
    assert [data.captions_of(split) for split in SPLITS] == [list("abcdef"), list("xy"), list("xy")]
