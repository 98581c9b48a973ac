"""The page of what was tried: that it is of these tests, and what it makes of them."""

import pytest

from benchmarks.tried import COMMAND, HEADINGS, PAGE, Tried, collected, page, sentence


def test_the_page_is_what_the_command_makes() -> None:
    tests = collected()
    assert len(tests) > 20
    assert PAGE.read_text(encoding="utf-8") == page(tests), f"the page is of other tests than these: {COMMAND}"


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([()], "A cut file is refused (test_x.py)"),
        ([("a",), ("b c",)], "A cut file is refused: a; b c (test_x.py)"),
        ([("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")], "A cut file is refused: a; b × 1; 2 (test_x.py)"),
        ([("a", "1"), ("b", "2")], "A cut file is refused: a, 1; b, 2 (test_x.py)"),
        ([("y_t * [2]",)], r"A cut file is refused: y\_t \* \[2\] (test_x.py)"),
        ([("Stra\\xdfe",), ("\\u1fb1\\n",)], "A cut file is refused: Straße; ᾱ (test_x.py)"),
    ],
    ids=["none", "one parameter", "a product", "no product", "marks of Markdown", "letters beyond ASCII"],
)
def test_a_name_and_its_cases_are_a_sentence(cases: list[tuple[str, ...]], says: str) -> None:
    test = Tried(HEADINGS[0], "tests/test_x.py", "test_a_cut_file_is_refused", tuple(cases))
    assert sentence(test) == says


def test_headings_are_in_their_order_and_no_other_is_known() -> None:
    tests = [Tried(heading, "tests/test_x.py", "test_x", ()) for heading in (HEADINGS[2], HEADINGS[0])]
    text = page(tests)
    assert text.index(HEADINGS[0]) < text.index(HEADINGS[2])
    assert HEADINGS[1] not in text
    with pytest.raises(ValueError, match=r"test_x of tests/test_x\.py is marked 'Resumming': give one of Pictures"):
        page([Tried("Resumming", "tests/test_x.py", "test_x", ())])
