"""The completion of words, as bash itself makes it."""

import shutil
import subprocess

import pytest

from diffusion_lightning.cli.commands import COMMANDS
from diffusion_lightning.cli.completion import options, script
from diffusion_lightning.cli.options import WORDS


def completed(*words: str) -> set[str]:
    """What bash offers in the place of the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _diffusion_lightning; echo ${{COMPREPLY[@]}}"
    bash = [shutil.which("bash") or "bash", "--norc", "-c", f"{script('bash')}\n{ask}"]
    return set(subprocess.run(bash, capture_output=True, text=True, check=True).stdout.split())


def test_bash_completes_subcommands_and_their_options() -> None:
    assert completed("diffusion-lightning", "") >= set(COMMANDS)
    assert completed("diffusion-lightning", "pre") == {"predict"}
    assert completed("diffusion-lightning", "predict", "--sam") == {"--sampler"}
    assert completed("diffusion-lightning", "edit", "in") == {"interpolate", "inpaint", "invert"}
    assert completed("diffusion-lightning", "edit", "inpaint", "--re") == {"--resample"}
    assert completed("diffusion-lightning", "fit", "--trainer.max") == {"--trainer.max_steps"}
    assert completed("diffusion-lightning", "score", "a", "--kid") == {"--kid_subsets", "--kid_subset_size"}


def test_bash_completes_files_elsewhere() -> None:
    assert "pyproject.toml" in completed("diffusion-lightning", "fit", "--config", "pyproj")


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_is_given_the_same_options(command: str) -> None:
    assert f"{command}) compadd -- {' '.join(options(command))} ;;" in script("zsh")
    assert options(command)
    if command in WORDS:
        assert f"{command}) compadd -- {' '.join(WORDS[command])} ;;" in script("zsh")
