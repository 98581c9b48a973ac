"""The sentences of scenes of one or two digits, and which digit stands where in a scene of each.

A canvas has 32×32 pixels, a digit a cell of 16×16: in the middle if it is alone, else two cells side by side or one
above the other. It is drawn with 14×14 of them, so that digits do not touch.
"""

from typing import NamedTuple

CELL = 16  # pixels of a digit's height and width, half a canvas
DRAWN = 14  # of these, what the digit itself covers: a dark frame of one pixel is left
SIZE = 2 * CELL
WORDS = ("a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven", "an eight", "a nine")
MIDDLE = ((8, 8),)  # top left corners of the cells
ACROSS, DOWN = ((8, 0), (8, 16)), ((0, 8), (16, 8))
RELATIONS = {"to the left of": ACROSS, "to the right of": ACROSS, "above": DOWN, "below": DOWN}
REVERSED = ("to the right of", "below")  # the digit that is named first is the right or the lower one
UNSEEN = (3, 6)  # second - first, modulo 10, of the pairs of digits that no training scene has: 20 of 100


class Scene(NamedTuple):
    """One or two digits, the left or the upper one first, and the top left corners of their cells."""

    digits: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]

    @property
    def seen(self) -> bool:
        """Whether training may have such a scene: a single digit, or a pair that is not kept for the test."""
        return len(self.digits) == 1 or (self.digits[1] - self.digits[0]) % 10 not in UNSEEN


def _every() -> dict[str, Scene]:
    """Ten sentences of one digit, then 10 · 4 · 10 of two, by (named first, relation, named second)."""
    found = {word: Scene((digit,), MIDDLE) for digit, word in enumerate(WORDS)}
    for a, first in enumerate(WORDS):
        for relation, corners in RELATIONS.items():
            for b, second in enumerate(WORDS):
                digits = (b, a) if relation in REVERSED else (a, b)
                found[f"{first} {relation} {second}"] = Scene(digits, corners)
    return found


SCENES = _every()
