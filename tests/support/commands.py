"""A command that must fail in one line."""

import pytest

from diffusion_lightning.cli import main


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a command ends with; it must be one line, and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code not in (0, None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1, lines
    return lines[-1]
