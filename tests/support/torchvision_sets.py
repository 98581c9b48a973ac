"""Small data sets in the files of the real ones, and a server that has them."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from benchmarks.loader import write_cifar10


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where its files are to be had."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """Bytes in the IDX format: two zeros, type 8, the number of dimensions, these, the values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def cifar(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is served: six batches of 7 images in one archive."""
    folder, url = served
    made = tmp_path / "made"
    checks = write_cifar10(made, n=7)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(made / "cifar-10-batches-py", "cifar-10-batches-py")
    checks |= {"url": f"{url}cifar-10-python.tar.gz", "tgz_md5": md5(folder / "cifar-10-python.tar.gz")}
    for name, value in checks.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    return folder


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its files, with 8 faces to train, 2 and 3 held out."""
    folder = tmp_path / "root/celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(1, 14)]
    for i, name in enumerate(names):
        rows, columns = np.mgrid[:218, :178]
        pixels = np.stack([rows, columns, np.full_like(rows, 8 * i)], 2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name, quality=95, subsampling=0)
    lists = {
        "list_attr_celeba.txt": ["13", "Bald Young", *(f"{name} -1  1" for name in names)],
        "identity_CelebA.txt": [f"{name} {i}" for i, name in enumerate(names)],
        "list_bbox_celeba.txt": ["13", "image_id x_1 y_1 width height", *(f"{name} 1 2 3 4" for name in names)],
        "list_landmarks_align_celeba.txt": ["13", "lefteye_x lefteye_y", *(f"{name} 69 109" for name in names)],
        "list_eval_partition.txt": [f"{name} {(i >= 8) + (i >= 10)}" for i, name in enumerate(names)],
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    files = [("", md5(folder / name), name) for name in lists]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", files)
    return folder
