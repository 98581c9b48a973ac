"""MNIST, Fashion-MNIST, CIFAR-10, CelebA: torchvision's download, check and extraction of files in the true format."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from diffusion_lightning.data import CIFAR10, MNIST, CelebA, FashionMNIST

from ..support.torchvision_sets import idx, md5

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("make", [MNIST, FashionMNIST])
def test_idx_files_are_downloaded_once(
    make: type[MNIST] | type[FashionMNIST],
    served: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, url = served
    arrays = {
        "train-images-idx3-ubyte": DRAW.integers(0, 256, (20, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": DRAW.integers(0, 10, 20).astype(np.uint8),
        "t10k-images-idx3-ubyte": DRAW.integers(0, 256, (6, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": DRAW.integers(0, 10, 6).astype(np.uint8),
    }
    for name, values in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    source = getattr(torchvision.datasets, make.__name__)
    monkeypatch.setattr(source, "mirrors", [url])
    monkeypatch.setattr(source, "resources", [(f"{name}.gz", md5(folder / f"{name}.gz")) for name in arrays])
    make(tmp_path / "root").prepare_data()
    for name in arrays:
        (folder / f"{name}.gz").unlink()
    data = make(tmp_path / "root", batch_size=8)
    data.prepare_data()
    data.setup("fit")
    for split, start in (("train", "train"), ("val", "t10k"), ("test", "t10k")):
        images, y = data.read(split)
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy()[:, 0], arrays[f"{start}-images-idx3-ubyte"])
        assert np.array_equal(y.numpy(), arrays[f"{start}-labels-idx1-ubyte"])
        assert y.dtype == torch.int64
        assert images.shape[1:] == data.shape
    image, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert torch.equal(image, data.read("val")[0].float() / 127.5 - 1)


def test_cifar_is_downloaded_checked_and_read(cifar: Path, tmp_path: Path) -> None:
    assert b"T\x04\x00\x00\x00data" in (tmp_path / "made/cifar-10-batches-py/test_batch").read_bytes()  # Python 2's
    data = CIFAR10(tmp_path / "root", batch_size=5)
    data.prepare_data()
    draw = np.random.default_rng(0)  # as the files were made: pixels red, green, blue, row after row, then labels
    batches = [(draw.integers(0, 256, (7, 3072), np.uint8), draw.integers(0, 10, 7)) for _ in range(6)]
    expected = {"train": batches[:5], "val": batches[5:], "test": batches[5:]}
    for split, parts in expected.items():
        images, y = data.read(split)
        assert np.array_equal(images.numpy(), np.concatenate([x for x, _ in parts]).reshape(-1, 3, 32, 32))
        assert np.array_equal(y.numpy(), np.concatenate([labels for _, labels in parts]))
        assert images.is_contiguous()


def test_a_damaged_download_is_refused(cifar: Path, tmp_path: Path) -> None:
    archive = cifar / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"CIFAR10 is not whole in .*: put cifar-10-python.tar.gz of https"):
        CIFAR10(tmp_path / "root").prepare_data()


@pytest.mark.parametrize("make", [MNIST, FashionMNIST, CIFAR10])
def test_without_a_network_it_says_what_to_put_where(
    make: type[MNIST] | type[FashionMNIST] | type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = getattr(torchvision.datasets, make.__name__)
    if make is CIFAR10:
        monkeypatch.setattr(source, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    else:
        monkeypatch.setattr(source, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(ValueError, match=r"could not be downloaded \(.*\): put .* into .*root") as caught:
        make(tmp_path / "root").prepare_data()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is not whole in .*call prepare_data"):
        make(tmp_path / "root").read("train")


def test_faces_are_cut_as_published_and_averaged(celeba: Path, tmp_path: Path) -> None:
    data = CelebA(tmp_path / "root", size=32)
    data.prepare_data()
    assert [len(data.read(split)[0]) for split in ("train", "val", "test")] == [8, 2, 3]
    assert data.read("train")[0].shape[1:] == data.shape == (3, 32, 32)
    for split, first in (("train", 0), ("val", 8), ("test", 10)):
        for i, image in enumerate(data.read(split)[0].double()):
            # Red is the row and green the column: blocks of 4 from row 57 and column 25 on.
            assert (image[0] - (57 + 1.5 + 4 * torch.arange(32))[:, None]).abs().max() <= 2
            assert (image[1] - (25 + 1.5 + 4 * torch.arange(32))).abs().max() <= 2
            assert (image[2] - 8 * (first + i)).abs().max() <= 2
    assert not data.read("train")[1].any()


def test_faces_that_are_not_there_are_asked_for(celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (celeba / "img_align_celeba/000004.jpg").unlink()
    with pytest.raises(ValueError, match=r"000004.jpg is not there, but the list of the splits names it"):
        CelebA(tmp_path / "root").prepare_data()

    def offline(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.celeba, "download_file_from_google_drive", offline)
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"\(no network\): put img_align_celeba.zip, unpacked, and the lists of"):
        CelebA(tmp_path / "root").prepare_data()
    with pytest.raises(ValueError, match="size is 129"):
        CelebA(size=129)
