"""The short help says what the parser takes, in one page."""

from typing import Any

import pytest

from diffusion_lightning.cli import edit, evaluate, fit, main, predict
from diffusion_lightning.cli.options import PAGES, page

# Set by this program itself, or of no use in its words.
HIDDEN = {"help", "subcommand", "weights_only", "verbose"}


class Stop(Exception):  # noqa: N818
    """A parser is made, and nothing is read by it."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parser that a command reads its words with."""
    found: list[Any] = []

    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(self)
        raise Stop

    for module in (edit, fit, evaluate, predict):
        monkeypatch.setattr(module.Parser, "parse_args", stop)
    with pytest.raises(Stop):
        {"fit": fit, "predict": predict, "edit": edit}.get(command, evaluate).main([command, "--help"])
    subcommands = [action.choices for action in found[0]._actions if isinstance(action.choices, dict)]
    return subcommands[0][command] if subcommands else found[0]


@pytest.mark.parametrize("command", PAGES)
def test_it_lists_every_option_of_this_program_with_the_parsers_default(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(command, monkeypatch)
    actions = {action.dest: action for action in parser._actions}
    listed = {option.name: option for group in PAGES[command] for option in group}
    groups = {name.partition(".")[0] for name in actions if "." in name}  # a file of several options
    own = {name for name, action in actions.items() if action.option_strings and not name.startswith("trainer.")}
    own = {name for name in own - groups if not name.endswith(".help")}
    assert own - HIDDEN - set(listed) == set()
    kept_aside = {"config", "print_config", "model", "data"}  # of the words that evaluate passes on
    assert set(listed) - set(actions) <= kept_aside
    for name, option in listed.items():
        if name in actions and option.default:
            default = actions[name].default
            assert option.default == (str(default).lower() if isinstance(default, bool) else str(default)), name


@pytest.mark.parametrize("command", PAGES)
def test_it_is_one_page(command: str) -> None:
    text = page(command, "What it does.")
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 140
    own, trainer = PAGES[command]
    assert len(trainer) <= 10
    assert text.index(f"--{own[0].name}") < text.index(f"--{trainer[0].name}")


def test_help_all_lists_the_trainers_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help_all"])
    assert "--trainer.reload_dataloaders_every_n_epochs" in capsys.readouterr().out
