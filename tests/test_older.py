"""What an earlier version wrote goes on: its names of classes, its configuration, its checkpoint.

`older/digits.ckpt` is of four of six steps, and `older/expected.npz` what that version made of it then: two samples,
and the weights and their average after the six.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lightning import checkpoints, extractors, load, metrics, networks, optim
from diffusion_lightning.cli import fit, main
from diffusion_lightning.known import current
from diffusion_lightning.samplers import DDIM

OLDER = Path(__file__).parent / "older"
CKPT = OLDER / "digits.ckpt"
RENAMED = {
    "diffusion_lightning.metrics.DigitsNet": extractors.DigitsNet,
    "diffusion_lightning.metrics.digits.DigitsNet": extractors.DigitsNet,
    "diffusion_lightning.metrics.Inception": extractors.InceptionV3,
    "diffusion_lightning.metrics.InceptionV3": extractors.InceptionV3,
    "diffusion_lightning.metrics.FrechetDistance": metrics.FrechetDistance,
    "diffusion_lightning.schedulers.LinearWarmup": optim.LinearWarmup,
    "diffusion_lightning.networks.unet.UNet": networks.UNet,
}


def test_a_class_is_known_by_every_name_that_it_had() -> None:
    for name, kind in RENAMED.items():
        module, _, short = current(name).rpartition(".")
        assert getattr(__import__(module, fromlist=[short]), short) is kind


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "my.Net", "diffusion_lightning.data", "diffusion_lightning.a.Nobody", "a text.", ""]
)
def test_every_other_text_stays(name: str) -> None:
    assert current(name) == name


def test_a_configuration_of_an_earlier_version_is_read_by_words_and_by_file(tmp_path: Path) -> None:
    text = checkpoints.read(CKPT)["config"]
    assert "diffusion_lightning.metrics.DigitsNet" in text
    (tmp_path / "older.yaml").write_text(text, encoding="utf-8")
    words = [
        "--config",
        str(tmp_path / "older.yaml"),
        "--trainer.callbacks+",
        "diffusion_lightning.callbacks.Throughput",
    ]
    found = fit.described([*words, "--model.lr_scheduler=diffusion_lightning.schedulers.LinearWarmup",
                           "--model.lr_scheduler.steps", "3"])  # fmt: skip
    for name in ("extractors.DigitsNet", "optim.LinearWarmup"):
        assert f"diffusion_lightning.{name}" in found
    assert "schedulers" not in found.replace("lr_schedulers", "")


def test_a_checkpoint_of_an_earlier_version_loads_draws_and_goes_on(tmp_path: Path) -> None:
    with np.load(OLDER / "expected.npz") as held:
        expected = {name: torch.from_numpy(held[name]) for name in held.files}
    torch.testing.assert_close(load(CKPT).generate(2, DDIM(4)), expected["samples"], atol=1e-5, rtol=0)
    (tmp_path / "older.yaml").write_text(checkpoints.read(CKPT)["config"], encoding="utf-8")
    main(["fit", "--config", str(tmp_path / "older.yaml"), "--ckpt_path", str(CKPT), "--trainer.max_steps", "6",
          "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    last = checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")
    for name, tensors in (("weights", last["state_dict"]), ("average", checkpoints.averaged(last))):
        found = torch.cat([x.flatten().float() for x in tensors.values()])
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0)
