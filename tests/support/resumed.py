"""A run that is stopped and resumed, beside one that is not."""

from pathlib import Path

import torch

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main


def same_when_resumed(config: Path, folder: Path) -> Path:
    """Fit a config, whose run is `folder`/run, and again with a stop after 4 steps: both have the same weights.

    Returns:
        The last checkpoint of the undisturbed run.
    """
    words = ["fit", "--config", str(config), "--trainer.logger", "false"]
    main(words)
    halves = [*words, "--trainer.default_root_dir", str(folder / "halves")]
    main([*halves, "--trainer.max_steps", "4"])
    main([*halves, "--ckpt_path", "last"])
    whole, resumed = (folder / run / "checkpoints/last.ckpt" for run in ("run", "halves"))
    ours, theirs = read(whole)["state_dict"], read(resumed)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name
    return whole
