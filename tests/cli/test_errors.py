"""Long complaints in one sentence."""

import pytest

from diffusion_lightning.cli.errors import fail, sentence


def test_an_argument_that_a_class_does_not_take() -> None:
    said = sentence(
        'Parser key "model": Does not validate\nErrors:\n  - Problem with given class_path '
        "'diffusion_lightning.networks.UNet': Option 'channel' is not accepted\n - Expected a <class 'NoneType'>"
    )
    assert said.startswith(
        "diffusion_lightning.networks.UNet takes no channel (did you mean channels?): it takes in_ch"
    )


def test_an_argument_that_an_optimizer_does_not_take() -> None:
    said = sentence(
        "Parser key \"optimizer\": Type Callable expects a function or a callable class: Option 'lrr' is not accepted. "
        "Got value: Namespace(class_path='torch.optim.AdamW', init_args=Namespace(lrr=1))"
    )
    assert said.startswith("torch.optim.AdamW takes no lrr (did you mean lr?)")


def test_a_class_that_there_is_not() -> None:
    said = sentence('Parser key "model.schedule": Expected a dot import path string: Cosinus', classes=["Cosine"])
    assert said.startswith("there is no class Cosinus for model.schedule (did you mean Cosine?)")


def test_a_value_of_another_type() -> None:
    said = sentence("Parser key \"trainer.max_steps\": Expected a <class 'int'>. Got value: many")
    assert said == "trainer.max_steps is many, but it takes int: correct its value"


def test_a_word_that_is_none_of_the_words() -> None:
    said = sentence("Parser key \"network.release\": Expected a typing.Literal['DDPM', 'IDDPM']. Got value: EDM")
    assert said == "network.release is EDM, but it takes 'DDPM', 'IDDPM': correct its value"


def test_an_option_that_there_is_not() -> None:
    said = sentence("unrecognized arguments: --max_steps 5", ["trainer.max_steps", "ema.decay"])
    assert said == "there is no option max_steps (did you mean trainer.max_steps?): correct or remove it"


def test_what_it_does_not_know_it_repeats_in_one_line() -> None:
    assert sentence("something\n  else") == "something else"


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
