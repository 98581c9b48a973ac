"""What an earlier version wrote goes on: its names of classes, its configuration, its checkpoint.

`older/digits.ckpt` is of four of six steps, and `older/expected.npz` what that version made of it then: two samples,
and the weights and their average after the six.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from diffusion_lightning import checkpoints, extractors, known, load, metrics, networks, objectives, optim, records
from diffusion_lightning.cli import fit, main
from diffusion_lightning.known import current
from diffusion_lightning.samplers import DDIM

from .conftest import tiny_unet

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
    "diffusion_lightning.objectives.Nothing": objectives.ZeroWeight,
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


def test_an_argument_is_known_by_the_name_that_it_had() -> None:
    """Every one of the table, of a class in the place of another's argument too; no other class's."""
    for short, names in known.RENAMED_ARGUMENTS.items():
        kind = known.find(short, "x", ())
        assert set(names.values()) <= set(known.parameters(kind))
        assert not set(names) & set(known.parameters(kind))
    folder = {"path": "my", "broken": "stop", "memory": 2}
    both = [{"class_path": f"{place}ImageFolder", "init_args": folder} for place in ("", "diffusion_lightning.data.")]
    record = json.dumps({"data": both, "own": {"class_path": "my.ImageFolder", "init_args": folder}})
    found = records.parsed(record, "x.ckpt")
    for data in found["data"]:
        assert data["init_args"] == {"path": "my", "on_error": "raise", "max_memory_gib": 2}
    assert found["own"]["init_args"] == folder


def test_words_and_configurations_of_earlier_names_are_read(tmp_path: Path) -> None:
    """A class by its earlier name alone too, but no other text that happens to be one."""
    (tmp_path / "older.yaml").write_text(
        "data: {class_path: ImageFolder, init_args: {path: Nothing, broken: skip, memory: 2.0}}\n"
        "model:\n  init_args: {weighting: Nothing}\n", encoding="utf-8",
    )  # fmt: skip
    words = ["--config", "configs/digits.yaml", "--config", str(tmp_path / "older.yaml")]
    for more in ([], ["--model.weighting", "Nothing"], ["--model.weighting=diffusion_lightning.objectives.Nothing"]):
        found = yaml.safe_load(fit.described([*words, *more]))
        assert found["model"]["init_args"]["weighting"]["class_path"] == "diffusion_lightning.objectives.ZeroWeight"
        data = found["data"]["init_args"]
        assert (data["path"], data["on_error"], data["max_memory_gib"]) == ("Nothing", "skip", 2.0)


@pytest.mark.parametrize("kind", known.RENAMED_WEIGHTS)
def test_weights_are_known_by_the_names_that_they_had(kind: str) -> None:
    """Those of the table alone, of a network that lies within another module, by whatever class derives from it."""
    network = {"UNet": lambda: tiny_unet(), "DiT": lambda: networks.DiT(1, 8, 2, 16, 1, 2)}[kind]()
    whole = torch.nn.ModuleDict({"net": network, "times": torch.nn.Linear(1, 1)})
    earlier = {new: old for old, new in known.RENAMED_WEIGHTS[kind].items()}
    new = dict(whole.state_dict())
    parts = {name: name.split(".") for name in new}
    old = {".".join([p[0], earlier.get(p[1], p[1]), *p[2:]]) if p[0] == "net" else name: new[name]
           for name, p in parts.items()}  # fmt: skip
    assert len(old.keys() - new.keys()) == 2 * len(earlier)
    for _ in range(2):
        known.rename_weights(whole, old)
        assert old.keys() == new.keys()
        assert all(old[name] is new[name] for name in new)


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
