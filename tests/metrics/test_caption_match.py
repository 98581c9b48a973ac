"""Real scenes match their captions; scenes made wrong by hand do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_lightning import images, random
from diffusion_lightning.data import Digits, DigitScenes
from diffusion_lightning.data.digit_scenes import enlarged
from diffusion_lightning.extractors import DigitsNet
from diffusion_lightning.images.scenes import ACROSS, CELL, DOWN, MIDDLE, SCENES
from diffusion_lightning.metrics import CaptionMatch

Cells = dict[tuple[int, int], Tensor]


def match(scenes: Tensor, captions: list[str]) -> dict[str, float]:
    metric = CaptionMatch()
    for first in range(0, len(scenes), 700):  # in batches, of which one is not whole
        metric.update(scenes[first : first + 700], captions[first : first + 700])
    return {key: value.item() for key, value in metric.compute().items()}


def drawn(split: str, n: int = 1000) -> tuple[Tensor, list[str]]:
    data = DigitScenes(n=n, held_out=n)
    scenes, y = data.read(split)
    return scenes, [(data.captions or [])[i] for i in y]


@pytest.fixture(scope="module")
def every_digit() -> tuple[Tensor, Tensor]:
    """All digits, enlarged, and what they are."""
    train, val = Digits().read("train"), Digits().read("val")
    return enlarged(torch.cat([train[0], val[0]]) * (255 / 16)), torch.cat([train[1], val[1]])


def canvas(cells: Cells) -> Tensor:
    found = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    for (top, left), cell in cells.items():
        found[..., top : top + CELL, left : left + CELL] = cell
    return found


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_real_scenes_match_as_often_as_all_their_digits_are_read(split: str) -> None:
    """Read from the 8×8 originals, a digit of rate a: a single one matches at a, a pair at a²; within 1.5%."""
    data = Digits()
    small, digits = data.read("train" if split == "train" else "val")
    rate = (DigitsNet().classify(images.to_uint8(data.scaled(small)))[1].argmax(1) == digits).double().mean().item()
    found = match(*drawn(split))
    assert found["caption_match"] == pytest.approx(0.1 * rate + 0.9 * rate**2, abs=0.015)
    assert found["caption_match_seen"] > 0.96
    assert ("caption_match_unseen" in found) == (split == "test")
    assert found.get("caption_match_unseen", 1) > 0.96


def test_other_captions_match_by_chance() -> None:
    """Of 410 sentences a scene has two, or one of a single digit: 1/205 to 1/410."""
    scenes, _ = drawn("test", 2000)
    which = random.integers(0, len(SCENES), 0, "other captions", 0, torch.arange(2000))
    assert match(scenes, [list(SCENES)[i] for i in which])["caption_match"] < 0.0125


def test_seen_and_unseen_are_counted_apart() -> None:
    scenes, captions = drawn("test", 40)
    scenes[1::2] = 0
    found = match(scenes, captions)
    assert found["caption_match_unseen"] == 0
    assert found["caption_match_seen"] == 2 * found["caption_match"] > 0.8


def test_noise_that_is_hardly_visible_changes_little() -> None:
    scenes, captions = drawn("train")
    noise = 20 * random.normal((1, 32, 32), 0, "noise", 0, torch.arange(1000))
    assert match((scenes + noise).round().clamp(0, 255).byte(), captions)["caption_match"] > 0.98


SEVEN, THREE = "a seven to the left of a three", "a seven above a three"
WRONG: dict[str, tuple[str, Callable[[Tensor, Tensor], Cells]]] = {
    "swapped across": (SEVEN, lambda seven, three: {ACROSS[0]: three, ACROSS[1]: seven}),
    "swapped down": (THREE, lambda seven, three: {DOWN[0]: three, DOWN[1]: seven}),
    "down instead of across": (SEVEN, lambda seven, three: {DOWN[0]: seven, DOWN[1]: three}),
    "across instead of down": (THREE, lambda seven, three: {ACROSS[0]: seven, ACROSS[1]: three}),
    "no left digit": (SEVEN, lambda seven, three: {ACROSS[1]: three}),
    "no right digit": (SEVEN, lambda seven, three: {ACROSS[0]: seven}),
    "no upper digit": (THREE, lambda seven, three: {DOWN[1]: three}),
    "no lower digit": (THREE, lambda seven, three: {DOWN[0]: seven}),
    "another digit": (SEVEN, lambda seven, three: {ACROSS[0]: seven, ACROSS[1]: seven}),
    "another single digit": ("a seven", lambda seven, three: {MIDDLE[0]: three}),
    "a single digit at the left": ("a seven", lambda seven, three: {ACROSS[0]: seven}),
    "a single digit below": ("a three", lambda seven, three: {DOWN[1]: three}),
    "blank": (SEVEN, lambda seven, three: {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_scenes_do_not_match(name: str, every_digit: tuple[Tensor, Tensor]) -> None:
    large, digits = every_digit
    seven, three = (large[(digits == digit).nonzero()[0, 0]] for digit in (7, 3))
    caption, cells = WRONG[name]
    right = {SEVEN: ACROSS, THREE: DOWN, "a seven": MIDDLE, "a three": MIDDLE}[caption]
    its = (three,) if caption == "a three" else (seven, three)
    assert match(canvas(dict(zip(right, its, strict=False))), [caption])["caption_match"] == 1
    assert match(canvas(cells(seven, three)), [caption])["caption_match"] == 0


def test_an_extra_digit_is_wrong_whichever_it_is(every_digit: tuple[Tensor, Tensor]) -> None:
    """All 1,797 digits, laid over the scene so that the cells of the caption stay as they were."""
    large, digits = every_digit
    extra = {SEVEN: (ACROSS, DOWN), THREE: (DOWN, ACROSS), "a seven": (MIDDLE, ACROSS), "a three": (MIDDLE, DOWN)}
    metric = CaptionMatch()
    for caption, (right, others) in extra.items():
        cells = [large[(digits == digit).nonzero()[0, 0]] for digit in SCENES[caption].digits]
        for top, left in others:
            scenes = torch.zeros(len(large), 1, 32, 32, dtype=torch.uint8)
            scenes[..., top : top + CELL, left : left + CELL] = large
            for (y, x), cell in zip(right, cells, strict=True):
                scenes[..., y : y + CELL, x : x + CELL] = cell
            metric.update(scenes, [caption] * len(scenes))
    assert metric.compute()["caption_match"] == 0


def test_a_blank_canvas_matches_no_caption_at_all() -> None:
    """Although the classifier reads some digit in every blank cell."""
    for value in (0, 255):
        blank = torch.full((len(SCENES), 1, 32, 32), value, dtype=torch.uint8)
        assert match(blank, list(SCENES))["caption_match"] == 0


def test_what_is_no_scene_is_refused() -> None:
    metric = CaptionMatch()
    good = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="'seven' is no caption of DigitScenes"):
        metric.update(good, ["seven"])
    for bad, captions in ((good.float(), ["a seven"]), (good[..., :8, :8], ["a seven"]), (good, ["a seven"] * 2)):
        with pytest.raises(ValueError, match="one for each caption"):
            metric.update(bad, captions)
    with pytest.raises(ValueError, match="these have none: leave it out"):
        metric.update(good, None)
    with pytest.raises(ValueError, match="there were none"):
        metric.compute()
