"""Sets in the formats of the Hugging Face hub, from folders."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.data import HuggingFace

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_hub(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def encoded(i: int, kind: str = "PNG") -> dict[str, Any]:
    stream = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def rows(n: int, first: int = 0, **more: Any) -> Any:
    columns = {"image": [encoded(first + i) for i in range(n)], "label": [i % 2 for i in range(n)], **more}
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        **{name: datasets.Value("string") for name in more},
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def expected(i: int) -> torch.Tensor:
    pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_its_own_splits_are_taken(form: str, tmp_path: Path) -> None:
    sets = {"train": rows(6), "validation": rows(2, 6), "test": rows(3, 8)}
    if form == "saved":
        datasets.DatasetDict(sets).save_to_disk(tmp_path / "set")
    else:
        for name, part in sets.items():
            part.to_parquet(tmp_path / f"set/{name}-00000-of-00001.parquet")
    data = HuggingFace(str(tmp_path / "set"), label="label")
    data.prepare_data()
    assert data.shape == (3, 6, 5)
    for split, n, first in (("train", 6, 0), ("val", 2, 6), ("test", 3, 8)):
        images, y = data.read(split)
        assert torch.equal(images, torch.stack([expected(first + i) for i in range(n)]))
        assert y.tolist() == [i % 2 for i in range(n)]
    with pytest.raises(ValueError, match="but the set has its own val and test"):
        HuggingFace(str(tmp_path / "set"), held_out=1).prepare_data()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for i in range(4):
        place = tmp_path / f"set/{'ab'[i % 2]}/{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(i)["bytes"])
    data = HuggingFace(str(tmp_path / "set"), label="label", held_out=2)
    seen = {x.numpy().tobytes(): int(y) for split in ("train", "val") for x, y in zip(*data.read(split), strict=True)}
    assert seen == {expected(i).numpy().tobytes(): i % 2 for i in range(4)}


def test_a_second_start_reads_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(40).save_to_disk(tmp_path / "set")
    first = HuggingFace(str(tmp_path / "set"), size=4, held_out=0.1).read("train")[0]
    assert first.shape == (36, 3, 4, 4)
    with monkeypatch.context() as context:
        context.setattr(Image, "open", None)
        assert torch.equal(HuggingFace(str(tmp_path / "set"), size=4, held_out=0.1).read("train")[0], first)
    rows(40, first=1).save_to_disk(tmp_path / "set")
    assert not torch.equal(HuggingFace(str(tmp_path / "set"), size=4, held_out=0.1).read("train")[0], first)


def test_broken_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    part = rows(10)
    columns = {"image": [encoded(i) for i in range(10)], "label": part["label"][:]}
    columns["image"][0] = None
    columns["image"][4]["bytes"] = columns["image"][4]["bytes"][:-60]
    datasets.Dataset.from_dict(columns, features=part.features).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"2 of 10 pictures cannot be read \(number 0 of train, number 4 of train;"):
        HuggingFace(str(tmp_path / "set")).prepare_data()
    data = HuggingFace(str(tmp_path / "set"), label="label", on_error="skip", held_out=3)
    with pytest.warns(UserWarning, match="number 0 of train, number 4 of train"):
        data.prepare_data()
    images, labels = (torch.cat(both) for both in zip(data.read("train"), data.read("val"), strict=True))
    seen = {image.numpy().tobytes(): int(y) for image, y in zip(images, labels, strict=True)}
    assert seen == {expected(i).numpy().tobytes(): i % 2 for i in range(10) if i not in (0, 4)}
    assert len(images) == 8
    with pytest.raises(ValueError, match="none of the pictures of val can be read"):  # number 4 is the one held out
        HuggingFace(str(tmp_path / "set"), label="label", on_error="skip", held_out=1).read("val")


@pytest.mark.parametrize("kept_back", [True, False])
def test_a_test_split_without_labels_is_left_out(kept_back: bool, tmp_path: Path) -> None:
    """As -1, the hub's way, or without the column."""
    hidden = rows(3, 8)
    hidden = hidden.map(lambda row: {"label": -1}) if kept_back else hidden.remove_columns("label")
    datasets.DatasetDict({"train": rows(6), "validation": rows(2, 6), "test": hidden}).save_to_disk(tmp_path / "set")
    data = HuggingFace(str(tmp_path / "set"), label="label")
    with pytest.warns(UserWarning, match="the split test of .* has no label and is left out"):
        data.prepare_data()
    assert [len(data.read(split)[0]) for split in ("train", "val", "test")] == [6, 2, 2]
    assert len(HuggingFace(str(tmp_path / "set")).read("test")[0]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image": "picture"}, "has the columns image, label, text, but no picture"),
        ({"image": "text"}, "the column text of .* holds Value, but pictures are sought"),
        ({"label": "text"}, "holds <U1, but a label is the whole number of a class"),
        ({"name": "nowhere"}, "nowhere could be had neither from the hub nor from a folder"),
        ({"channels": 4}, "channels is 4"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows(4, text=list("abcd")).save_to_disk(tmp_path / "set")
    name = str(tmp_path / arguments.pop("name", "set"))
    with pytest.raises(ValueError, match=says) as caught:
        HuggingFace(name, **arguments).prepare_data()
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"install diffusion_lightning\[datasets\]"):
        HuggingFace("someone/some_set").prepare_data()
