"""Where an autoencoder comes from: folders, files and checkpoints are data, and what is none is one sentence."""

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_lightning import frozen
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.first_stages.autoencoder import FrozenAutoencoder

from ..support.first_stages import KINDS, autoencoder, pictures


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "vae"
    autoencoder(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_autoencoder_that_was_written(kind: str, tmp_path: Path) -> None:
    autoencoder(tmp_path / "source", kind)
    one = Pretrained(str(tmp_path / "source"))
    file = one.frozen.write(tmp_path)
    other = Pretrained(str(file))
    assert other.frozen.hash == one.frozen.hash == file.stem
    assert other.layout == one.layout
    image = pictures(2)
    assert torch.equal(other.moments(image).mean, one.moments(image).mean)
    assert not any(p.requires_grad for p in other.frozen.network.parameters())


def test_the_layout_is_known_before_any_weight_is_read(source: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    shutil.copy(source / "config.json", tmp_path / "vae")
    layout = FrozenAutoencoder(str(tmp_path / "vae")).layout
    assert layout[:4] == ("AutoencoderKL", 1, 4, 2)
    assert layout.published == ([0.18215], [0.0])


@pytest.mark.parametrize("place", ["vae", "vqvae", "movq"])
def test_a_pipelines_folder_gives_its_autoencoder(source: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(source, tmp_path / "pipeline" / place)
    assert FrozenAutoencoder(str(tmp_path / "pipeline")).hash == FrozenAutoencoder(str(source)).hash


FOLDERS: dict[str, tuple[str, bytes | None, str]] = {
    "no configuration": ("config.json", None, "is neither a folder of an autoencoder here"),
    "a configuration that is cut": ("config.json", b"{", "is neither a folder of an autoencoder here"),
    "a configuration that is a list": ("config.json", b"[1]", "is neither a folder of an autoencoder here"),
    "a class that is unknown": ("config.json", b'{"_class_name": "UNet2DModel"}', "but known autoencoders are"),
    "no class": ("config.json", b"{}", "but known autoencoders are"),
    "no weights": ("diffusion_pytorch_model.safetensors", None, "are not safetensors in a folder here"),
    "weights that are cut": ("diffusion_pytorch_model.safetensors", b"\0" * 500, "are cut, or not those of its config"),
    "weights of another size": (
        "config.json", b'{"_class_name": "AutoencoderKL", "block_out_channels": [32]}', "are cut, or not those",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_folder_that_is_no_autoencoder_is_one_sentence(source: Path, tmp_path: Path, fault: str) -> None:
    name, content, says = FOLDERS[fault]
    shutil.copytree(source, tmp_path / "vae")
    (tmp_path / "vae" / name).unlink()
    if content is not None:
        (tmp_path / "vae" / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        _ = Pretrained(str(tmp_path / "vae")).frozen.network


def test_a_pickle_is_not_opened(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "vae")
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save(load_file(source / "diffusion_pytorch_model.safetensors"), tmp_path / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="are not safetensors in a folder here"):
        _ = Pretrained(str(tmp_path / "vae")).frozen.network


def test_a_name_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("stabilityai/sd-vae-ft-mse", "no such name", ""):
        with pytest.raises(ValueError, match=r"is neither a folder of an autoencoder here"):
            Pretrained(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "runs/my_stage", "./stage", "~/stage", "a/b/c", "here/stage"])
def test_a_path_at_which_there_is_nothing_asks_no_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As that of a stage which was not trained yet: a hub would be asked for half a minute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("diffusers.AutoencoderKL.load_config", lambda *_, **__: pytest.fail("asks the hub"))
    with pytest.raises(ValueError, match=f"the first stage {name} does not exist: correct the path, or train it"):
        Pretrained(name)


def test_a_missing_package_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(frozen, "import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'diffusion_lightning\[diffusers\]'"):
        Pretrained(str(source))


def test_a_checkpoint_that_is_no_autoencoders_is_one_sentence(run: Path) -> None:
    for model in (run, run / "checkpoints/last.ckpt"):
        with pytest.raises(ValueError, match=r"is not of an Autoencoder, so it is no first stage"):
            Pretrained(str(model))
    with pytest.raises(ValueError, match=r"does not exist"):
        Pretrained(str(run / "checkpoints/none.ckpt"))


# A frozen file is data


@pytest.mark.parametrize("where", [-1, 200])
def test_a_changed_byte_is_refused(source: Path, tmp_path: Path, where: int) -> None:
    path = FrozenAutoencoder(str(source)).write(tmp_path)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the frozen part that its name says"):
        _ = FrozenAutoencoder(str(path)).hash


def altered(path: Path, **changes: Any) -> Path:
    """The same file with another description, under the name of its own hash."""
    with safe_open(path, "pt") as stream:
        found = json.loads(stream.metadata()["description"])
    description = {**found, **changes}
    if "config" in changes and isinstance(changes["config"], dict):
        description["config"] = {**found.get("config", {}), **changes["config"]}
    tensors = load_file(path)
    made = path.with_name(f"{frozen._hash(tensors, description)}.safetensors")
    save_file(tensors, made, metadata={"description": json.dumps(description, sort_keys=True)})
    return made


SYSTEM = {"class_path": "os.system", "init_args": {"command": "touch harmed"}}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a class of the system": ({"class": "os.system"}, "but known autoencoders are"),
    "another class of diffusers": ({"class": "UNet2DModel"}, "but known autoencoders are"),
    "a kind of its own": ({"kind": "pickle"}, "describes no frozen part of this version"),
    "a configuration that is a text": ({"config": "x"}, "describes no frozen part of this version"),
    "a precision that is none": ({"precision": "int4"}, "is int4, but it is one of"),
    "half precision that overflows": ({"precision": "float16"}, "has force_upcast"),
    "a billion layers": ({"config": {"layers_per_block": 10**9}}, "more parameters than"),
    "a width of a billion": ({"config": {"block_out_channels": [10**9, 10**9]}}, "are not of one model|cannot be made"),
    "a width past any": ({"config": {"block_out_channels": [10**40, 10**40]}}, "cannot be made"),
    "a hundred thousand levels": ({"config": {"block_out_channels": [0] * 10**5}}, "longer than 65,536 characters"),
    "ten thousand levels": ({"config": {"block_out_channels": [2] * 10**4}}, "of different sizes|cannot be made"),
    "ten thousand blocks": (
        {"config": {"down_block_types": ["DownEncoderBlock2D"] * 2000, "block_out_channels": [2] * 2000}},
        "more parameters than|different sizes|cannot be made",
    ),
    "a width of 0": ({"config": {"block_out_channels": [0, 0]}}, "are not of one model|cannot be made"),
    "widths of another kind": ({"config": {"block_out_channels": None}}, "cannot be made"),
    "an activation of another kind": ({"config": {"act_fn": 5}}, "cannot be made"),
    "a block of the system": ({"config": {"down_block_types": ["os.system"] * 2}}, "cannot be made"),
    "groups of 0": ({"config": {"norm_num_groups": 0}}, "cannot be made"),
    "a scale of 0": ({"config": {"scaling_factor": 0}}, "the scale is not 0"),
    "a scale of a text": ({"config": {"scaling_factor": "os.system"}}, "each is a finite number"),
    "no scale": ({"config": {"scaling_factor": None}}, "each is a finite number"),
    "deviations of 0": (
        {"config": {"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}}, "each is a finite number",
    ),
    "means of 3 for 4 channels": (
        {"config": {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}}, "one for each of 4 channels",
    ),
    "other channels out than in": ({"config": {"out_channels": 3}}, "of different sizes"),
    "an encoder longer than the decoder": (
        {"config": {"up_block_types": ["UpDecoderBlock2D"] * 3, "block_out_channels": [4, 8]}},
        "of different sizes|cannot be made",
    ),
    "a network of the system": ({"kind": "network", "network": SYSTEM}, "describes no frozen part|os.system"),
}  # fmt: skip


@pytest.mark.tried("Checkpoints")
@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_one_sentence_and_takes_no_memory(source: Path, tmp_path: Path, attack: str) -> None:
    changes, says = HOSTILE[attack]
    path = altered(FrozenAutoencoder(str(source)).write(tmp_path), **changes)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=says):
        _ = Pretrained(str(path)).frozen.network
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert not Path("harmed").exists()


def networks(path: Path, record: Any) -> Path:
    """A file that describes a network of the package."""
    description = {"kind": "network", "network": record, "precision": "float32"}
    tensors = load_file(path)
    made = path.with_name(f"{frozen._hash(tensors, description)}.safetensors")
    save_file(tensors, made, metadata={"description": json.dumps(description, sort_keys=True)})
    return made


@pytest.mark.tried("Checkpoints")
@pytest.mark.parametrize(
    ("record", "says"),
    [
        (SYSTEM, "os"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**6, "out_features": 10**6}},
            "no autoencoder",
        ),
        ({"class_path": "diffusion_lightning.networks.UNet", "init_args": {}}, "no autoencoder"),
        ({}, "class_path"),
    ],
)
def test_a_network_that_is_no_autoencoder_is_refused(source: Path, tmp_path: Path, record: Any, says: str) -> None:
    path = networks(FrozenAutoencoder(str(source)).write(tmp_path), record)
    with pytest.raises(ValueError, match=says):
        Pretrained(str(path))


def test_unknown_entries_of_a_configuration_are_left_out(source: Path, tmp_path: Path) -> None:
    named = {"auto_map": {"AutoModel": "evil.Model"}, "_name_or_path": "evil", "quantization_config": {"x": 1}}
    path = altered(FrozenAutoencoder(str(source)).write(tmp_path), config=named)
    assert not set(named) & set(FrozenAutoencoder(str(path)).description["config"])
