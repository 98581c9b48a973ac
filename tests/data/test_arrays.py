"""Images in numpy's files: layouts, names, splits, large ones, and what is wrong with a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffusion_lightning.data import Arrays

DRAW = np.random.default_rng(0)
COLOUR: NDArray[np.uint8] = DRAW.integers(0, 256, (40, 6, 5, 3), np.uint8)
GREY = COLOUR[..., 0]
LABELS = np.arange(40) % 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def whole(data: Arrays) -> NDArray[np.uint8]:
    """All images as (N, H, W, C), in an order that follows from their pixels."""
    both = torch.cat([data.read("train")[0], data.read("val")[0]]).permute(0, 2, 3, 1)
    return in_order(both.numpy())


def in_order(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images[np.lexsort(images.reshape(len(images), -1).T)]


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("layout", ["grey", "last", "first", "grey last", "grey first"])
def test_every_layout_is_channels_first(layout: str, suffix: str, tmp_path: Path) -> None:
    images = {
        "grey": GREY,
        "last": COLOUR,
        "first": COLOUR.transpose(0, 3, 1, 2),
        "grey last": GREY[..., None],
        "grey first": GREY[:, None],
    }[layout]
    file = tmp_path / f"a.{suffix}"
    np.savez(file, images) if suffix == "npz" else np.save(file, images)
    data = Arrays(file)
    expected = GREY[..., None] if "grey" in layout else COLOUR
    assert np.array_equal(whole(data), in_order(expected))
    assert data.shape == (expected.shape[3], 6, 5)
    assert (len(data.read("train")[0]), len(data.read("val")[0])) == (38, 2)
    assert data.read("train")[0].is_contiguous()
    assert torch.equal(data.read("val")[0], data.read("test")[0])
    assert not data.read("train")[1].any()


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels"), ("samples", "y"), ("mine", "own")])
def test_names_usual_and_given(names: tuple[str, str], tmp_path: Path) -> None:
    arrays: dict[str, Any] = {names[0]: COLOUR, names[1]: LABELS.astype(np.uint8), "captions": np.array(["a"] * 40)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    given = {"images": "mine", "labels": "own"} if names[0] == "mine" else {}
    data = Arrays(tmp_path / "a.npz", held_out=8, **given)  # type: ignore[arg-type]
    images, y = data.read("train")
    assert torch.bincount(data.read("val")[1]).tolist() == [2, 2, 2, 2]
    of_image = {image.tobytes(): label for image, label in zip(COLOUR, LABELS, strict=True)}
    assert [of_image[image.permute(1, 2, 0).numpy().tobytes()] for image in images] == y.tolist()


def test_a_large_file_stays_mapped(tmp_path: Path, own_cache: Path) -> None:
    np.save(tmp_path / "a.npy", COLOUR)
    seen = []
    for memory in (4.0, 0.0, 0.0):
        data = Arrays(tmp_path / "a.npy", max_memory_gib=memory, batch_size=7, flip=True)
        data.setup("fit")
        seen.append(list(data.train_dataloader()))
    assert len(list((own_cache / "pictures").glob("*.bytes"))) == 1
    for others in seen[1:]:
        assert all(torch.equal(x, y) for a, b in zip(seen[0], others, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("arrays", "arguments", "says"),
    [
        ({"images": COLOUR / 255}, {}, r"images of .* holds float64, but images are bytes"),
        ({"images": COLOUR[..., :2]}, {}, r"has shape \[40, 6, 5, 2\], but images are"),
        ({"pictures": COLOUR}, {}, "holds pictures, but images are sought"),
        ({"images": COLOUR}, {"images": "x"}, "holds images, but no x: correct data's images"),
        ({"images": COLOUR}, {"labels": "x"}, "holds images, but no x: correct data's labels"),
        ({"images": COLOUR, "labels": LABELS[:9]}, {}, r"has shape \[9\], but there are 40 images"),
        ({"images": COLOUR, "labels": LABELS * 0.5}, {}, "holds float64, but a label is the whole number of a class"),
        ({"images": COLOUR, "labels": LABELS.astype(str)}, {}, "holds <U21, but a label is the whole number"),
        ({"images": COLOUR, "labels": LABELS - 1}, {}, "holds -1, but classes are numbered from 0"),
        ({"images": COLOUR, "labels": LABELS * 0}, {}, "has one class alone, 0"),
        ({"images": COLOUR}, {"held_out": 40}, "held_out is 40, but there are 40 images"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arrays: dict[str, Any], arguments: dict[str, Any], says: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=says) as caught:
        Arrays(tmp_path / "a.npz", **arguments).prepare_data()
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.npz is no file"):
        Arrays(tmp_path / "a.npz").prepare_data()
    np.save(tmp_path / "floats.npy", COLOUR / 255)
    with pytest.raises(ValueError, match=r"the array of .* holds float64"):
        Arrays(tmp_path / "floats.npy").prepare_data()
    np.save(tmp_path / "a.npy", COLOUR)
    with pytest.raises(ValueError, match="holds one array, but images, labels or captions are named"):
        Arrays(tmp_path / "a.npy", labels="labels").prepare_data()
    for name, make in (("a.npy", np.save), ("a.npz", np.savez)):
        make(tmp_path / name, COLOUR)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-99])
        with pytest.raises(ValueError, match=r"cut short") as caught:
            Arrays(tmp_path / name).prepare_data()
        assert "\n" not in str(caught.value)
