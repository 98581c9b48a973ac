"""`--print_completion bash|zsh`: a script that completes the subcommands, their actions and options in a shell.

Files are completed as the shell itself does. Nothing here needs torch.
"""

from contextlib import suppress

from .commands import COMMANDS
from .errors import Arguments
from .options import PAGES, WORDS

SHELLS = ("bash", "zsh")
GENERAL = ("--help", "--version", "--print_completion")

BASH = """_diffusion_lightning() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if (( COMP_CWORD == 1 )); then
        words="{first}"
    elif (( COMP_CWORD == 2 )) && [[ $word != -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{seconds}
        esac
    elif [[ $word == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    if [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _diffusion_lightning diffusion-lightning"""

ZSH = """#compdef diffusion-lightning
_diffusion_lightning() {{
    if (( CURRENT == 2 )); then
        compadd -- {first}
    elif (( CURRENT == 3 )) && [[ $PREFIX != -* ]]; then
        case $words[2] in
{seconds}
            *) _files ;;
        esac
    elif [[ $PREFIX == -* ]]; then
        case $words[2] in
{cases}
        esac
    else
        _files
    fi
}}
compdef _diffusion_lightning diffusion-lightning"""


def script(shell: str) -> str:
    """The script for a shell, to be read by `eval "$(…)"` or from a file.

    Raises:
        ValueError: if it is for another shell than these.
    """
    if shell not in SHELLS:
        raise ValueError(f"--print_completion is {shell or 'without a shell'}, but it takes {' or '.join(SHELLS)}")
    line, text = ('words="{}"', BASH) if shell == "bash" else ("compadd -- {}", ZSH)
    cases = "\n".join(f"            {name}) {line.format(' '.join(options(name)))} ;;" for name in COMMANDS)
    seconds = "\n".join(f"            {name}) {line.format(' '.join(words))} ;;" for name, words in WORDS.items())
    return text.format(first=" ".join([*COMMANDS, *GENERAL]), seconds=seconds, cases=cases)


def options(command: str) -> list[str]:
    """The options of a subcommand, as one writes them."""
    if command in PAGES:
        return [*(f"--{option.name}" for group in PAGES[command] for option in group), "--help", "--help_all"]
    parser, takes = Arguments(), COMMANDS[command].takes
    with suppress(ValueError):  # of the words that it wants and is not given
        if takes is not None:
            takes(parser, [])
    return [name for name in parser._option_string_actions if name.startswith("--")]
