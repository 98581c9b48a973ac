"""What is answered before the imports that take seconds."""

import subprocess
import sys

import pytest

import diffusion_lightning

CODE = """
import runpy, sys
try:
    runpy.run_module("diffusion_lightning", run_name="__main__")
finally:
    print(sorted({"torch", "lightning"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--version"], 0, f"diffusion_lightning {diffusion_lightning.__version__}"),
        (["--help"], 0, "  predict    Draw samples from a checkpoint's averaged model."),
        ([], 2, "error: no subcommand is given: give one of fit, validate,"),
        (["fitt"], 2, "error: there is no subcommand fitt (did you mean fit?): give one of fit, validate,"),
        (["fit", "--help"], 0, "--trainer.max_steps"),
        (["predict", "--ckpt_path", "x", "-h"], 0, "diffusion-lightning predict --help_all lists every option"),
        (["--print_completion", "bash"], 0, "complete -o filenames -F _diffusion_lightning diffusion-lightning"),
        (["--print_completion", "fish"], 1, "error: --print_completion is fish, but it takes bash or zsh"),
        (["score", "--help"], 0, "inception, digits, mnist, or a class by its path"),
        (["export", "--help"], 0, "{pipeline,weights,lora,program}"),
        (["import", "--help"], 0, "--new_attention_order"),
        (["selftest", "--help"], 0, "--device DEVICE"),
        (["score", "a", "b", "--kept", "all"], 1, "error: argument --kept: invalid int value: 'all': see diffusion-"),
        (["export", "a", "b", "--format", "onnx"], 1, "error: argument --format: invalid choice: 'onnx'"),
    ],
)
def test_help_and_mistakes_do_not_wait_for_torch_and_lightning(words: list[str], status: int, says: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout.endswith("[]\n")
    if status:
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1
    else:
        assert says in done.stdout
        assert not done.stderr
