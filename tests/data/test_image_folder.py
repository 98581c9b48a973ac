"""Pictures of every kind in a folder: how they are brought to bytes of one shape, decoded once, and split."""

import errno
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion_lightning.data import ImageFolder
from diffusion_lightning.data.base import ResizeCrop, store

from ..support.pictures import Pixels, noise, with_broken

pytestmark = pytest.mark.usefixtures("own_cache")


def save(folder: Path, files: dict[str, Pixels], **options: Any) -> Path:
    for name, pixels in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name, **options)
    return folder


def fit(path: Path, *shape: int) -> Pixels:
    channels, height, width = shape
    return ResizeCrop((channels, height, width), keep=True)(path)[0]


# One picture.


@pytest.mark.parametrize(("height", "width", "size"), [(24, 24, 8), (24, 33, 8), (36, 24, 4), (7, 9, 7)])
def test_the_central_square_is_averaged_over_areas(height: int, width: int, size: int, tmp_path: Path) -> None:
    pixels = noise(height, width, 3)
    save(tmp_path, {"a.png": pixels})
    found, enlarged, _ = ResizeCrop((3, size, size))(tmp_path / "a.png")
    side = min(height, width)
    top, left, block = (height - side) // 2, (width - side) // 2, side // size
    square = pixels[top : top + side, left : left + side].astype(float)
    expected = square.reshape(size, block, size, block, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(found - expected).max() <= 1  # Pillow rounds after the rows and after the columns
    assert not enlarged


def test_a_part_of_an_area_that_is_no_whole_number_of_pixels(tmp_path: Path) -> None:
    """10 pixels to 4: each is the mean of the 2 or 3 pixels whose centres it covers."""
    save(tmp_path, {"a.png": np.arange(0, 100, 10).astype(np.uint8)[None].repeat(10, 0)})
    found = ResizeCrop((1, 4, 4))(tmp_path / "a.png").pixels
    centres = np.arange(10) + 0.5
    for k in range(4):
        covered = np.arange(0, 100, 10)[(centres > 2.5 * k) & (centres <= 2.5 * (k + 1))]
        assert abs(found[0, 0, k] - covered.mean()) <= 1


def test_a_smaller_one_is_enlarged_and_counted(tmp_path: Path) -> None:
    save(tmp_path / "f", {f"{i}.png": noise(12 - i, 12, 3, seed=i) for i in range(8)})
    with pytest.warns(UserWarning, match="3 of 8 pictures are smaller than 8 pixels and were enlarged"):
        images, _ = ImageFolder(tmp_path / "f", size=8).read("train")
    assert images.shape == (7, 3, 8, 8)


def palette() -> tuple[Image.Image, Pixels]:
    image = Image.fromarray(noise(6, 5, 3)).quantize(16)
    colours = np.array(image.getpalette()[:48], np.uint8).reshape(16, 3)  # type: ignore[index]
    return image, colours[np.asarray(image)]


def test_modes_become_colours(tmp_path: Path) -> None:
    grey, colour = noise(6, 5), noise(6, 5, 3)
    image, expected = palette()
    image.save(tmp_path / "palette.png")
    assert np.array_equal(fit(tmp_path / "palette.png", 3, 6, 5), expected.transpose(2, 0, 1))
    save(tmp_path, {"grey.png": grey, "colour.webp": colour}, lossless=True)
    assert np.array_equal(fit(tmp_path / "grey.png", 3, 6, 5), np.stack([grey] * 3))
    assert np.array_equal(fit(tmp_path / "colour.webp", 3, 6, 5), colour.transpose(2, 0, 1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(fit(tmp_path / "colour.webp", 1, 6, 5)[0] - luma).max() <= 1
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(fit(tmp_path / "bits.png", 1, 6, 5)[0], np.where(grey > 127, 255, 0))
    Image.fromarray(np.full((6, 5, 4), [0, 255, 255, 0], np.uint8), "CMYK").save(tmp_path / "red.jpg", quality=100)
    assert np.abs(fit(tmp_path / "red.jpg", 3, 6, 5).astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    rgba, la = noise(6, 5, 4), noise(6, 5, 2)
    image, colours = palette()
    image.save(tmp_path / "palette.png", transparency=3)
    save(tmp_path, {"rgba.png": rgba, "la.png": la})

    def over(pixels: Pixels) -> NDArray[np.float64]:
        alpha = pixels[..., -1:] / 255
        return (pixels[..., :-1] * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)

    assert np.abs(fit(tmp_path / "rgba.png", 3, 6, 5) - over(rgba)).max() <= 1
    assert np.abs(fit(tmp_path / "la.png", 1, 6, 5) - over(la)).max() <= 1
    expected = np.where((np.asarray(image) == 3)[..., None], 255, colours).transpose(2, 0, 1)
    assert np.array_equal(fit(tmp_path / "palette.png", 3, 6, 5), expected)


def test_16_bits_are_scaled_and_rounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (64, 60), np.uint16)
    expected = np.rint(values / 257)
    assert (expected != values >> 8).any()  # a truncation would be seen
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(fit(tmp_path / name, 1, 64, 60)[0], expected)
    (tmp_path / "grey.pgm").write_bytes(b"P5 60 64 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(fit(tmp_path / "grey.pgm", 1, 64, 60)[0], expected)
    colour = values.reshape(64, 20, 3)
    write_png_16(colour, tmp_path / "colour.png")
    assert np.array_equal(fit(tmp_path / "colour.png", 3, 64, 20), np.rint(colour / 257).transpose(2, 0, 1))


def write_png_16(values: NDArray[np.uint16], path: Path) -> None:
    """A PNG of 16 bits a colour by hand, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end)


TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: np.rot90(x, 2),
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_it_upright(orientation: int, tmp_path: Path) -> None:
    """By the EXIF standard: where the first row and the first column of what is stored are seen."""
    pixels, exif = noise(6, 9, 3), Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path, {"a.png": pixels, "b.png": pixels}, exif=exif)
    data = ImageFolder(tmp_path, held_out=1)
    expected = TURNS[orientation](pixels).transpose(2, 0, 1)
    assert data.shape == expected.shape
    assert np.array_equal(data.read("train")[0][0].numpy(), expected)


# A folder.


def nested(folder: Path, n: int = 40) -> Path:
    """Pictures of three formats in nested folders, and files that are none of them."""
    for i in range(n):
        name = f"{'abc'[i % 3]}/{i % 2}/{i:03}.{('png', 'jpg', 'webp')[i % 3]}"
        save(folder, {name: noise(9 + i % 5, 10, 3, seed=i)})
    (folder / "notes.txt").write_text("not a picture")
    (folder / "a/.hidden.png").write_bytes(b"nothing")
    return folder


def test_the_splits_are_disjoint_whole_and_sorted(tmp_path: Path) -> None:
    folder = nested(tmp_path / "f")
    everything = ImageFolder(folder, size=8, held_out=1)
    order = torch.cat([everything.read("train")[0], everything.read("val")[0]])
    data = ImageFolder(folder, size=8, held_out=0.2)
    train, val = data.read("train")[0], data.read("val")[0]
    assert (len(train), len(val)) == (32, 8)
    both = sorted(x.numpy().tobytes() for x in torch.cat([train, val]))
    assert both == sorted(x.numpy().tobytes() for x in order)
    assert len(set(both)) == 40
    files = sorted((p for p in folder.rglob("*.*") if p.suffix != ".txt" and p.name[0] != "."), key=str)
    expected = [ResizeCrop((3, 8, 8))(file)[0] for file in files]
    held = {(2 * k + 1) * 40 // 16 for k in range(8)}
    assert np.array_equal(val.numpy(), [x for i, x in enumerate(expected) if i in held])
    assert np.array_equal(train.numpy(), [x for i, x in enumerate(expected) if i not in held])


def test_the_first_folder_is_the_class(tmp_path: Path) -> None:
    folder = nested(tmp_path / "f", 60)
    data = ImageFolder(folder, size=8, classes=True, held_out=0.1)
    assert torch.bincount(data.read("train")[1]).tolist() == [18, 18, 18]
    assert torch.bincount(data.read("val")[1]).tolist() == [2, 2, 2]
    of_files = {ResizeCrop((3, 8, 8))(p)[0].tobytes(): p.relative_to(folder).parts[0] for p in folder.rglob("[0-9]*.*")}
    for image, y in zip(*data.read("train"), strict=True):
        assert of_files[image.numpy().tobytes()] == "abc"[y]


def test_a_folders_own_splits_are_taken(tmp_path: Path) -> None:
    names = {"train": 6, "val": 2, "test": 3}
    for split, n in names.items():
        save(tmp_path / "f", {f"{split}/{'xy'[i % 2]}/{i}.png": noise(4, 4, 3, seed=i) for i in range(n)})
    data = ImageFolder(tmp_path / "f", classes=True)
    assert [len(data.read(split)[0]) for split in names] == [6, 2, 3]
    assert data.read("train")[1].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"held_out is 0.1, but the set has its own val and test"):
        ImageFolder(tmp_path / "f", held_out=0.1).prepare_data()
    (tmp_path / "f/val").rename(tmp_path / "elsewhere")
    data = ImageFolder(tmp_path / "f")
    assert torch.equal(data.read("val")[0], data.read("test")[0])
    save(tmp_path / "f", {"test/z/9.png": noise(4, 4, 3)})
    with pytest.raises(ValueError, match=r"z is a class of .*, but has no training images"):
        ImageFolder(tmp_path / "f", classes=True).prepare_data()


def test_with_none_held_out_all_are_trained_on(tmp_path: Path) -> None:
    data = ImageFolder(nested(tmp_path / "f", 9), size=4, held_out=0)
    with pytest.warns(UserWarning, match="held_out is 0"):
        data.prepare_data()
    assert torch.equal(data.read("train")[0], data.read("val")[0])
    assert len(data.read("test")[0]) == 9


def test_a_link_to_a_folder_above_is_no_endless_folder(tmp_path: Path) -> None:
    folder = nested(tmp_path / "f", 6)
    (folder / "a/above").symlink_to(folder)
    elsewhere = save(tmp_path / "g", {"0.png": noise(9, 9, 3)})
    (folder / "d").symlink_to(elsewhere)
    assert len(ImageFolder(folder, size=4, held_out=1).read("train")[0]) == 6


# Decoded once.


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a picture that is opened is an error."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a picture is opened")

    monkeypatch.setattr(Image, "open", refuse)


def test_a_second_start_reads_no_picture_unless_the_folder_has_moved(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nested(tmp_path / "f")
    first = ImageFolder(folder, size=8).read("train")[0]
    assert sorted(p.suffix for p in (own_cache / "pictures").iterdir()) == [".bytes", ".json"]
    assert next((own_cache / "pictures").glob("*.bytes")).stat().st_size == 40 * 3 * 8 * 8
    with monkeypatch.context() as context:
        unread(context)
        assert torch.equal(ImageFolder(folder, size=8).read("train")[0], first)
    folder = folder.rename(tmp_path / "g")  # which is another folder to the cache, with the same pictures
    assert torch.equal(ImageFolder(folder, size=8).read("train")[0], first)
    assert len(list((own_cache / "pictures").glob("*.bytes"))) == 2
    changed = folder / "a/0/000.png"  # the first, and so trained on
    Image.fromarray(noise(9, 9, 3, seed=99)).save(changed)
    assert not torch.equal(ImageFolder(folder, size=8).read("train")[0], first)
    assert ImageFolder(folder, size=8, channels=1).read("train")[0].shape[1] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_mapped_and_in_memory_are_the_same_batches(workers: int, tmp_path: Path) -> None:
    folder = nested(tmp_path / "f")
    seen = []
    for memory in (4.0, 0.0):
        data = ImageFolder(
            folder, size=8, classes=True, max_memory_gib=memory, batch_size=6, flip=True, num_workers=workers
        )
        data.setup("fit")
        seen.append([(image.clone(), y.clone()) for image, y in data.train_dataloader()])
    assert len(seen[0]) == 6
    assert all(torch.equal(x, y) for a, b in zip(*seen, strict=True) for x, y in zip(a, b, strict=True))


def test_a_reference_is_made_in_slices(tmp_path: Path) -> None:
    data = ImageFolder(nested(tmp_path / "f"), size=8, max_memory_gib=0)
    reference, images = data.reference("train"), data.read("train")[0]
    assert len(reference) == len(images) == 38
    assert torch.equal(reference[:], images.float() / 127.5 - 1)
    assert torch.equal(reference[3:7], reference[:][3:7])
    assert torch.equal(reference[[5, 2]], reference[:][[5, 2]])


def start(folder: Path, answers: Any) -> None:
    answers.put(ImageFolder(folder, size=8).read("train")[0].numpy().tobytes())


def test_two_processes_at_once(tmp_path: Path, own_cache: Path) -> None:
    folder, context = nested(tmp_path / "f"), multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    processes = [context.Process(target=start, args=(folder, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join()
    assert first == second
    assert len(list((own_cache / "pictures").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nested(tmp_path / "f")
    expected = ImageFolder(folder, size=8).read("train")[0]
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(folder / "notes.txt"))
    with pytest.warns(UserWarning, match=r"held in memory and not kept for later runs: .*Not a directory"):
        assert torch.equal(ImageFolder(folder, size=8).read("train")[0], expected)
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(own_cache / "full"))
    monkeypatch.setattr(store.Path, "open", lambda self, mode: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.warns(UserWarning, match="No space left on device"):
        assert torch.equal(ImageFolder(folder, size=8).read("train")[0], expected)
    assert not list((own_cache / "full").rglob("*.*"))


# What is wrong.


@pytest.mark.slow
def test_three_broken_ones_among_3000_are_all_named(tmp_path: Path, own_cache: Path) -> None:
    folder = with_broken(tmp_path / "f")
    names = [folder / "1/0001.jpeg", folder / "2/0009.png", folder / "5/0005.webp"]
    with pytest.raises(ValueError, match="3 of 3000 pictures cannot be read") as caught:
        ImageFolder(folder, size=8).prepare_data()
    assert all(str(name) in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)
    assert not list((own_cache / "pictures").iterdir())
    for _ in range(2):  # the second time from the cache
        data = ImageFolder(folder, size=8, on_error="skip", classes=True)
        with pytest.warns(UserWarning, match="3 of 3000 pictures cannot be read and are left out") as told:
            data.prepare_data()
        assert all(str(name) in str(told[0].message) for name in names)
        assert len(data.read("train")[0]) + len(data.read("val")[0]) == 2997
        assert len(data.read("train")[1]) == len(data.read("train")[0])
    images, labels = (torch.cat(both) for both in zip(data.read("train"), data.read("val"), strict=True))
    kept = {image.numpy().tobytes(): int(y) for image, y in zip(images, labels, strict=True)}
    for i in (0, 3, 8, 2999):
        name = next(folder.rglob(f"{i:04}.*"))
        assert kept[ResizeCrop((3, 8, 8))(name)[0].tobytes()] == i % 7
    with pytest.raises(ValueError, match="3 of 3000"):
        ImageFolder(folder, size=8, classes=True).prepare_data()


def test_more_than_ten_are_counted(tmp_path: Path) -> None:
    folder = nested(tmp_path / "f")
    for file in list(folder.rglob("*.png")):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"14 of 40 .* and 4 more"):
        ImageFolder(folder, size=8).prepare_data()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "pixels, but the first picture has .* give the data a size"),
        ({"size": 0}, "size is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"size": 8, "held_out": 40}, "held_out is 40, but there are 40 images"),
        ({"size": 8, "held_out": 1.5}, "held_out is 1.5"),
        ({"size": 8, "held_out": -1}, "held_out is -1"),
        ({"path": "nowhere"}, "nowhere is no folder"),
        ({"path": "empty"}, "empty holds no pictures"),
        ({"path": "one", "classes": True}, "has one class alone, k, but a condition needs two"),
        ({"path": "one/k", "classes": True}, "lies in no class's folder"),
        ({"path": "words"}, "none of the pictures of .* can be read"),
        ({"path": "words", "size": 8, "on_error": "skip"}, "2 of 2 pictures cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    nested(tmp_path / "f")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "one", {"k/1.png": noise(4, 4), "k/2.png": noise(4, 4)})
    for name in ("words/1.png", "words/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    path = tmp_path / arguments.pop("path", "f")
    with pytest.raises(ValueError, match=says) as caught:
        ImageFolder(path, **arguments).prepare_data()
    assert "\n" not in str(caught.value)


def test_a_link_to_nothing_is_a_broken_picture(tmp_path: Path) -> None:
    folder = nested(tmp_path / "f")
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1 of 41 pictures cannot be read .*lost\.png"):
        ImageFolder(folder, size=8).prepare_data()
    with pytest.warns(UserWarning, match=r"left out: .*lost\.png"):
        ImageFolder(folder, size=8, on_error="skip").prepare_data()


def test_what_the_disk_refuses_is_no_broken_picture(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not left out for good because a disk failed once."""
    folder, opened = nested(tmp_path / "f"), Image.open

    def refuse(source: Any, **options: Any) -> Image.Image:
        raise OSError(errno.EIO, "Input/output error", str(source))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ValueError, match=r"could not be read .* which is no fault of the picture"):
        ImageFolder(folder, size=8, on_error="skip").prepare_data()
    assert not list((own_cache / "pictures").iterdir())
    monkeypatch.setattr(Image, "open", opened)
    ImageFolder(folder, size=8, on_error="skip").prepare_data()
