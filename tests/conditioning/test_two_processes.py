"""Captions on two processes: each takes its own, and what is drawn and dropped follows an image's number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lightning.checkpoints import read

from ..support.captions import with_captions
from ..support.text_models import text_model, with_frozen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained along", "frozen"])
def test_two_processes_train_on_captions_as_one_does(kind: str, tmp_path: Path) -> None:
    """One with batch 8, and DDP of two with 4, in float32 by gloo: the same words and weights, but for sums."""
    config = str(with_captions(tmp_path))
    if kind == "frozen":
        text_model(tmp_path / "source", "clip")
        config = with_frozen(tmp_path, tmp_path / "source")

    def weights(name: str, *more: str) -> dict[str, torch.Tensor]:
        root = tmp_path / name
        words = ["fit", "--config", config, "--trainer.logger", "false", "--trainer.default_root_dir", str(root), *more]
        subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *words], check=True, capture_output=True, cwd=Path.cwd(),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert len(list(root.glob("checkpoints/frozen/*.safetensors"))) == (kind == "frozen")
        return read(root / "checkpoints/last.ckpt")["state_dict"]

    one = weights("one", "--data.init_args.batch_size", "8")
    two = weights("two", "--data.init_args.batch_size", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert one.keys() == two.keys()
    for name, x in one.items():
        if x.is_floating_point():
            torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert torch.equal(two[name], x), name
