"""Long complaints in one sentence."""

import pytest

from diffusion_lightning.cli.errors import fail, sentence


def test_an_option_that_there_is_not() -> None:
    said = sentence("unrecognized arguments: --max_steps 5", ["trainer.max_steps", "ema.decay"])
    assert said == "there is no option max_steps (did you mean trainer.max_steps?): correct or remove it"


def test_what_it_does_not_know_it_repeats_in_one_line() -> None:
    assert sentence("something\n  else") == "something else"


def test_what_it_repeats_holds_no_value_of_the_parsers_own_and_is_short() -> None:
    assert sentence("got Namespace(a=Namespace(b=1), c=2) there") == "got a value that does not fit"
    assert sentence("of NestedArg(key='a', val=1)") == "of a value that does not fit"
    assert len(sentence("word " * 200)) == 380


def test_a_name_that_several_classes_have() -> None:
    said = sentence(
        "class_path 'lightning.Callback': Option 'metrics' is not accepted "
        'Parser key "extractor": Multiple subclasses with name Inception. Give the full class path to avoid ambiguity: '
        "torchvision.models.googlenet.Inception, my.Inception. - Not a valid subclass"
    )
    assert said == (
        "there are several classes Inception for extractor: give one by its full path, "
        "torchvision.models.googlenet.Inception or my.Inception"
    )


def test_a_terminal_obeys_nothing_that_a_message_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("no class \x1b]0;owned\x07 in\tdie Straße\u202e")
    assert capsys.readouterr().err == "error: no class \\x1b]0;owned\\x07 in die Straße\\u202e\n"
