"""Scenes of digits: which digits and pairs a split has, and that a scene is a function of its number."""

from functools import cache

import pytest
import torch
from torch import Tensor

from diffusion_lightning.data import Digits, DigitScenes
from diffusion_lightning.data.digit_scenes import enlarged
from diffusion_lightning.images.scenes import CELL, SCENES


@cache
def read(split: str) -> tuple[Tensor, Tensor]:
    return DigitScenes().read(split)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_scene_is_a_function_of_its_split_and_its_number(split: str) -> None:
    images, y = read(split)
    some, its = DigitScenes(n=100, held_out=100, seed=7).read(split)
    assert torch.equal(some, images[:100])
    assert torch.equal(its, y[:100])
    assert len(torch.unique(images[:100].flatten(1), dim=0)) == 100


def test_the_scenes_of_the_splits_are_others() -> None:
    train, val, test = (read(split)[1][:1000] for split in ("train", "val", "test"))
    for one, other in ((train, val), (train, test), (val, test)):
        assert (one == other).double().mean() < 0.05


def test_sizes_types_and_sentences() -> None:
    for split, n in (("train", 20_000), ("val", 1000), ("test", 1000)):
        images, y = read(split)
        assert images.shape == (n, *DigitScenes.shape)
        assert images.dtype == torch.uint8
        assert y.shape == (n,)
        assert y.dtype == torch.int64
        assert y.min() >= 0
        assert y.max() < len(SCENES)
    data = DigitScenes(n=128)
    assert data.captions == list(SCENES)
    data.setup("fit")
    assert data.reference()[:].aminmax() == (-1, 1)


def test_no_scene_of_train_or_val_has_an_unseen_pair_and_half_of_test_has_one() -> None:
    seen = torch.tensor([scene.seen for scene in SCENES.values()])
    assert seen[read("train")[1]].all()
    assert seen[read("val")[1]].all()
    assert torch.equal(seen[read("test")[1]], torch.arange(1000) % 2 == 0)


def test_every_seen_sentence_is_trained_on_and_every_unseen_one_is_tested() -> None:
    scenes = list(SCENES.values())
    assert {i for i, scene in enumerate(scenes) if scene.seen} == set(read("train")[1].tolist())
    assert {i for i, scene in enumerate(scenes) if not scene.seen} <= set(read("test")[1].tolist())
    y = read("train")[1]
    assert 0.09 < (y < 10).double().mean() < 0.11  # 0.1 ± 5 standard errors


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_scene_is_its_split_s_digits_in_their_cells_and_dark_elsewhere(split: str) -> None:
    """Every pixel is compared with the digits that the sentence names; held-out digits are none of the training's."""
    levels = 255 / 16
    own, digit = Digits().read("train" if split == "train" else "val")
    known = {pixels.numpy().tobytes(): d for pixels, d in zip(enlarged(own * levels), digit.tolist(), strict=True)}
    other = enlarged(Digits().read("val" if split == "train" else "train")[0] * levels)
    assert not known.keys() & {pixels.numpy().tobytes() for pixels in other}
    images, y = read(split)
    scenes, rest = list(SCENES.values()), images.clone()
    for i, sentence in enumerate(y.tolist()):
        for d, (top, left) in zip(*scenes[sentence], strict=True):
            cell = (slice(None), slice(top, top + CELL), slice(left, left + CELL))
            assert known[images[i][cell].numpy().tobytes()] == d
            rest[i][cell] = 0
    assert not rest.any()


def test_digits_have_full_contrast_no_halo_and_a_dark_frame() -> None:
    """Where the small digit is 0 in a pixel and around it, so is the large one; strokes reach the full 255."""
    small = Digits().read("train")[0]
    large = enlarged(small * (255 / 16))
    assert large.flatten(1).max(1).values.min() > 230
    frame = torch.ones(CELL, CELL, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert not large[..., frame].any()
    near = torch.nn.functional.max_pool2d(small.float(), 5, stride=1, padding=2)
    dark = torch.nn.functional.interpolate(near, (CELL - 2, CELL - 2), mode="nearest-exact") == 0
    assert dark.any()
    assert not large[..., 1:-1, 1:-1][dark].any()


@pytest.mark.parametrize("name", ["n", "held_out"])
def test_a_split_without_scenes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, but a split needs a scene"):
        DigitScenes(**{name: 0})
