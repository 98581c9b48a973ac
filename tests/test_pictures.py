"""Pictures on disk: what is read is what was written, and what cannot be read is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.pictures import Archive, Folder, origin, write_npz, write_png


def test_a_folder_in_the_order_of_its_paths(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8)
    for name, image in zip(("b/1.png", "a.png", "b/0.png", "c.bmp", "b/deep/2.png"), images, strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".a.png.part").write_text("half a picture")
    folder = Folder(tmp_path)
    assert len(folder) == 5
    assert folder.shape == (3, 6, 4)
    assert torch.equal(folder[0:5], images[[1, 2, 0, 4, 3]])
    assert torch.equal(folder[3:9], images[[4, 3]])
    before = folder.digest()
    assert Folder(tmp_path).digest() == before
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    assert Folder(tmp_path).digest() != before


def test_what_kinds_of_pictures_become(tmp_path: Path) -> None:
    """Grey ones three equal channels, palettes their colours, transparency nothing."""
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colour = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(colour).quantize(16).save(tmp_path / "1.png")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "2.png")
    found = Folder(tmp_path)[0:3].permute(0, 2, 3, 1).numpy()
    assert (found[0] == grey[:, :, None]).all()
    assert np.abs(found[1].astype(int) - colour).max() < 100
    assert (found[2] == colour).all()


def test_an_archive_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images)
        archive = Archive(tmp_path / "x.npz")
        assert len(archive) == 9
        assert archive.shape == (3, 5, 4)
        for first, last in ((0, 4), (4, 9), (2, 3), (7, 20)):  # on, back, and beyond the end
            assert torch.equal(archive[first:last], expected[first:last])
    np.savez(tmp_path / "grey.npz", labels=np.zeros(9), images=images[..., 0])
    assert torch.equal(Archive(tmp_path / "grey.npz")[0:9], expected[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(Archive(tmp_path / "grey.npz", channels=1)[0:9], expected[:, :1])


def test_pictures_say_how_they_were_made(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    made = {"seed": 3, "sampler": {"class_path": "DDIM", "init_args": {"steps": 5, "clip": None}}}
    for i, image in enumerate(images):
        write_png(image, tmp_path / f"{i:06d}.png", made)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(3)]
    assert origin(tmp_path / "000001.png") == made
    assert torch.equal(Folder(tmp_path, channels=1)[0:3], images)
    write_npz(tmp_path, tmp_path / "all.npz", made)
    with np.load(tmp_path / "all.npz") as file:  # as guided-diffusion's evaluator reads it
        assert file["arr_0"].dtype == np.uint8
        assert (file["arr_0"] == images.permute(0, 2, 3, 1).numpy()).all()
    assert torch.equal(Archive(tmp_path / "all.npz", channels=1)[0:3], images)
    Image.new("L", (8, 8)).save(tmp_path / "other.png")
    assert origin(tmp_path / "other.png") is None
    assert origin(tmp_path / "all.npz") is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pictures"):
        Folder(tmp_path)
    grey = Image.new("L", (8, 8))
    grey.save(tmp_path / "a.png")
    Image.new("L", (8, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a.png has 8×8 pixels, but .*b.png has 8×9"):
        Folder(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png has more than 8 bits"):
        Folder(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png has colours, but grey images are wanted"):
        Folder(tmp_path, channels=1)
    (tmp_path / "b.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"b.png is no picture"):
        Folder(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    noise.save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ValueError, match=r"b.png is cut short"):
        Folder(tmp_path)[0:2]
    path = tmp_path / "x.npz"
    for arrays, says in (
        ({"weights": np.zeros(3)}, "holds weights, but no images"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"\(N, H, W, 1 or 3\)"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=says):
            Archive(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"damaged or no \.npz"):
        Archive(path)
