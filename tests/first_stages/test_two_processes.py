"""A first stage on two processes: one scale for all, one file, and the training of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lightning.checkpoints import read

from ..support.first_stages import autoencoder, with_stage


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_fault_4_two_processes_measure_and_train_as_one_does(tmp_path: Path) -> None:
    """One with batch 32, and DDP of two with 16, in float32 by gloo: the same scale and weights, but for sums."""
    autoencoder(tmp_path / "vae")
    quiet = {"trainer__logger": False, "trainer__callbacks": None, "trainer__max_steps": 3}
    config = str(with_stage(tmp_path, tmp_path / "vae", scale="measure", **quiet))

    def weights(name: str, *more: str) -> dict[str, torch.Tensor]:
        root = tmp_path / name
        words = ["fit", "--config", config, "--trainer.default_root_dir", str(root), *more]
        subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *words], check=True, capture_output=True, cwd=Path.cwd(),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert len(list(root.glob("checkpoints/frozen/*.safetensors"))) == 1
        return read(root / "checkpoints/last.ckpt")["state_dict"]

    one = weights("one")
    two = weights("two", "--data.init_args.batch_size", "16", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert one.keys() == two.keys()
    for name, x in one.items():
        rtol, atol = (1e-10, 1e-12) if name.startswith("first_stage") else (1e-4, 1e-5)
        torch.testing.assert_close(two[name], x, rtol=rtol, atol=atol, msg=name)
