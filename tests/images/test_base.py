"""Bytes and floats."""

import pytest
import torch

from diffusion_lightning import images
from diffusion_lightning.images import resize_tf1


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


def test_the_resize_of_tensorflow_1_by_hand() -> None:
    """Pixel i of 6 is read at 4·i/6 of 4, and of 2 at 2·i: no half-pixel centres, no antialiasing, rows and columns."""
    ramp = torch.tensor([0.0, 30.0, 60.0, 90.0])
    wide = torch.tensor([0.0, 20.0, 40.0, 60.0, 80.0, 90.0])
    image = (ramp[:, None] + 100 * ramp)[None, None]
    torch.testing.assert_close(resize_tf1(image, 6)[0, 0], wide[:, None] + 100 * wide)
    torch.testing.assert_close(resize_tf1(image, 2)[0, 0], image[0, 0, ::2, ::2])
    bytes_ = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(resize_tf1(bytes_, 5), bytes_.float())
    assert resize_tf1(bytes_, 7).shape == (2, 3, 7, 7)


def test_captions_stand_below_their_images_and_leave_them_as_they_are() -> None:
    batch = torch.randint(0, 255, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain, said = images.grid(batch, columns=2), images.grid(batch, columns=2, captions=["a", "a long one " * 9, ""])
    assert said.shape[1:] == plain.shape[1:]
    lines = (said.shape[0] - plain.shape[0]) // 2
    assert 4 * 11 < lines < 80
    for i, image in enumerate(batch):
        top, left = 8 + i // 2 * (72 + lines), 8 + i % 2 * 72
        assert torch.equal(said[top : top + 64, left : left + 64].permute(2, 0, 1), image)
    short, long = said[72 : 72 + lines, 8:72], said[72 : 72 + lines, 80:144]
    assert 0 < (short < 128).sum() < (long < 128).sum() / 10  # ink
    assert (said[-lines:, 8:72] == 255).all()  # of an empty caption none


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 70), (3, 64, 64), (1, 9, 3)])
def test_the_size_of_a_grid_is_known_before(n: int, shape: tuple[int, int, int]) -> None:
    assert images.grid(torch.zeros(n, *shape, dtype=torch.uint8)).shape[:2] == images.grid_size(n, shape)
