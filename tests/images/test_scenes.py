"""The sentences of scenes, read back by a grammar of the test's own."""

import re
from collections import Counter

from diffusion_lightning.images.scenes import SCENES, Scene

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SENTENCE = re.compile(r"(an?) (\w+)(?: (to the left of|to the right of|above|below) (an?) (\w+))?")


def read_back(sentence: str) -> Scene:
    found = SENTENCE.fullmatch(sentence)
    assert found is not None, sentence
    article, first, relation, other_article, second = found.groups()
    assert article == ("an" if first == "eight" else "a")
    one = NAMES.index(first)
    if relation is None:
        return Scene((one,), ((8, 8),))
    assert other_article == ("an" if second == "eight" else "a")
    two = NAMES.index(second)
    digits = (two, one) if relation in ("to the right of", "below") else (one, two)
    return Scene(digits, ((0, 8), (16, 8)) if relation in ("above", "below") else ((8, 0), (8, 16)))


def test_every_sentence_says_what_its_scene_is() -> None:
    assert len(SCENES) == 10 + 10 * 4 * 10
    for sentence, scene in SCENES.items():
        assert read_back(sentence) == scene


def test_the_same_scene_in_other_words() -> None:
    assert SCENES["a seven to the left of a three"] == SCENES["a three to the right of a seven"]
    assert SCENES["a seven above an eight"] == SCENES["an eight below a seven"]
    assert set(Counter(SCENES.values()).values()) == {1, 2}


def test_20_of_100_pairs_are_unseen_and_every_digit_is_in_four_of_them() -> None:
    unseen = {scene.digits for scene in SCENES.values() if not scene.seen}
    assert len(unseen) == 20
    for place in (0, 1):
        assert Counter(pair[place] for pair in unseen) == dict.fromkeys(range(10), 2)
    assert all(scene.seen == (scene.digits not in unseen) for scene in SCENES.values())
