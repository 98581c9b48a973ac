"""Bytes and floats."""

import torch

from diffusion_lightning import images


def test_all_256_levels_come_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(images.to_uint8(images.from_uint8(levels)), levels)


def test_rounds_and_clamps() -> None:
    x = torch.tensor([-2.0, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 1.01])
    assert images.to_uint8(x).tolist() == [0, 0, 1, 128, 255, 255]


def test_grid_shows_every_image_in_its_place() -> None:
    batch = torch.arange(1, 8, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 1, 8, 8)
    sheet = images.grid(batch)
    assert sheet.shape == (3 * 72 + 8, 3 * 72 + 8, 1)
    for i in range(7):
        top, left = 8 + i // 3 * 72, 8 + i % 3 * 72
        assert (sheet[top : top + 64, left : left + 64] == i + 1).all()
    assert sheet[:8].eq(255).all()


def test_large_images_are_shown_as_they_are() -> None:
    batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    sheet = images.grid(batch)
    assert torch.equal(sheet[8:72, 80:144], batch[1].permute(1, 2, 0))
