"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main

from .conftest import small_config

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def named(name: str) -> str:
    return next(block for block in PYTHON if block.startswith(f"# {name}"))


def test_the_examples_one_after_the_other() -> None:
    space: dict = {}
    for example in (block for block in PYTHON if not block.startswith("# my_")):
        exec(example, space)
    assert space["x_0"].shape == (4, 1, 8, 8)
    assert torch.isfinite(space["x_0"]).all()
    assert space["between"].shape == (5, 1, 1, 8, 8)
    assert torch.equal(space["filled"][:, :, :4], space["x_0"][:, :, :4])


def test_a_network_and_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class_path, from files in the working directory; the checkpoint then draws samples too."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_network.py", "my_data.py"):
        (tmp_path / name).write_text(named(name))
    main(["fit", "--config", str(small_config(tmp_path)), "--trainer.logger", "false",
          "--model.init_args.network", "my_network.MyNetwork", "--data", "my_data.MyData"])  # fmt: skip
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert any("layers" in key for key in read(last)["state_dict"])
    main(["predict", "--ckpt_path", str(last), "--n", "2", "--out", "drawn", "--trust", "my_network"])
    assert len(list((tmp_path / "drawn").iterdir())) == 2


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/security.md"])
def test_every_file_it_names_exists(page: str) -> None:
    root = Path(__file__).parent.parent
    named = re.findall(
        r"(?:configs|benchmarks|tests|diffusion_lightning)/[\w./-]+\w", (root / page).read_text(encoding="utf-8")
    )
    assert named
    for place in named:
        assert (root / place).exists(), place
