"""Frozen parts on disk: written once, read as data, refused when changed, and found beside a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_lightning import frozen
from diffusion_lightning.conditioning.text_model import TextModel
from diffusion_lightning.frozen import Frozen

from .support.text_models import text_model


class Holds(nn.Module):
    def __init__(self, part: Frozen) -> None:
        super().__init__()
        self.within = nn.ModuleList([nn.Identity(), nn.Identity()])
        holder: Any = self.within[1]
        holder.frozen = part


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "t5"
    text_model(folder, "t5")
    return str(folder)


@pytest.mark.parametrize("kind", ["clip", "t5", "qwen2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_file_is_the_model_that_was_written(kind: str, precision: str, tmp_path: Path) -> None:
    text_model(tmp_path / "source", kind)
    part = TextModel(str(tmp_path / "source"), precision)
    again = TextModel(str(part.write(tmp_path)))
    assert again.hash == part.hash
    assert again.description == part.description
    ids = torch.tensor([[1, 5, 6, 2]])
    one, other = (x.network(input_ids=ids).last_hidden_state for x in (part, again))
    assert torch.equal(one, other)
    assert again.tokenizer.encode("a grey image").ids == part.tokenizer.encode("a grey image").ids
    assert not any(p.requires_grad for p in again.network.parameters())
    assert frozen._hash(frozen._weights(again.network), again.description) == part.hash


def test_the_hash_is_of_weights_precision_and_tokenizer(source: str, tmp_path: Path) -> None:
    part = TextModel(source)
    assert TextModel(source).hash == part.hash
    assert TextModel(source, "bfloat16").hash != part.hash
    other = TextModel(source)
    next(other.network.parameters()).data[0, 0] += 1e-3
    assert other.hash != part.hash
    third = TextModel(source)
    third.description = {**third.description, "tokenizer": third.description["tokenizer"].replace("grey", "gray")}
    assert third.hash != part.hash


def test_a_file_is_written_once(source: str, tmp_path: Path) -> None:
    part = TextModel(source)
    first = part.write(tmp_path).stat()
    again = part.write(tmp_path).stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


FAULTS: dict[str, tuple[str, bytes, str]] = {
    "no tokenizer": ("tokenizer.json", b"", "is neither a folder of model and tokenizer here"),
    "a tokenizer that is none": ("tokenizer.json", b"{}", "is neither a folder of model and tokenizer here"),
    "a configuration that is cut": ("config.json", b"{", "is neither a folder of model and tokenizer here"),
    "a configuration that is a list": ("config.json", b"[]", "is neither a folder of model and tokenizer here"),
    "a model of pictures": ("config.json", b'{"model_type": "vit"}', "is a model of type vit, but known"),
    "weights that are cut": ("model.safetensors", b"\0" * 500, "are cut, or not those of its config.json"),
    "weights of another size": (
        "config.json", b'{"model_type": "t5", "vocab_size": 99, "d_model": 8, "num_layers": 2}', "are cut, or not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_text_model_is_one_sentence(source: str, tmp_path: Path, fault: str) -> None:
    name, content, says = FAULTS[fault]
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        _ = TextModel(str(tmp_path / "model")).network


@pytest.mark.parametrize("where", [-1, 200])
def test_a_changed_byte_is_refused(source: str, tmp_path: Path, where: int) -> None:
    path = TextModel(source).write(tmp_path)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the frozen part that its name says"):
        _ = TextModel(str(path)).network


def altered(path: Path, **changes: Any) -> Path:
    """The same file with another description, under the name of its own hash."""
    with safe_open(path, "pt") as stream:
        description = {**json.loads(stream.metadata()["description"]), **changes}
    tensors = load_file(path)
    made = path.with_name(f"{frozen._hash(tensors, description)}.safetensors")
    save_file(tensors, made, metadata={"description": json.dumps(description, sort_keys=True)})
    return made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "os.system"}, "is a model of type os.system, but known text models are"),
        ({"kind": "pickle"}, "describes no frozen part"),
        ({"precision": "int4"}, "is int4, but it is one of float32"),
        ({"precision": "float16"}, "a T5, pass the largest of float16"),
        ({"pad": "0"}, "describes no frozen part"),
        ({"config": {"num_layers": 10**9}}, "are not of one model"),
        ({"config": {"num_layers": 2, "d_model": 2**20}}, "are not of one model"),
    ],
)
def test_a_description_that_is_none_is_refused(source: str, tmp_path: Path, changes: dict, says: str) -> None:
    path = altered(TextModel(source).write(tmp_path), **changes)
    with pytest.raises(ValueError, match=says):
        _ = TextModel(str(path)).network


def test_a_configuration_names_no_code(source: str, tmp_path: Path) -> None:
    named = {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "someone/kernels", "quantization_config":
             {"quant_method": "evil"}, "attn_implementation": "someone/kernels", "unheard_of": 1}  # fmt: skip
    part = TextModel(source)
    again = TextModel(str(altered(part.write(tmp_path), config={**part.description["config"], **named})))
    assert not set(named) & set(again.description["config"])


def test_parts_are_found_and_compared_by_name(source: str) -> None:
    part = TextModel(source)
    module = Holds(part)
    assert frozen.parts(module) == {"within.1": part}
    frozen.check_same(module, {"within.1": part.hash}, "x.ckpt")
    frozen.check_same(module, None, "x.ckpt")
    for hashes in ({"within.1": "0" * 32}, {}, {"within.1": part.hash, "other": "0" * 32}):
        with pytest.raises(ValueError, match=r"x\.ckpt was trained with"):
            frozen.check_same(module, hashes, "x.ckpt")


def record(source: str) -> dict[str, Any]:
    text = {"class_path": "PretrainedText", "init_args": {"model": source}}
    conditioner = {"class_path": "Several", "init_args": {"conditioners": [{"class_path": "ClassLabels"}, text]}}
    return {"class_path": "Diffusion", "init_args": {"conditioner": conditioner}}


def test_a_record_is_led_to_the_file_beside_its_checkpoint(source: str, tmp_path: Path) -> None:
    hashes = {"conditioner.conditioners.1": TextModel(source).hash}
    spec, path = record("/of/another/machine"), tmp_path / "last.ckpt"
    with pytest.raises(ValueError, match=r"is missing: copy it there from the run's checkpoints/frozen, or .* --trust"):
        frozen.beside(spec, hashes, path, ())
    assert frozen.beside(spec, hashes, path, ["/of/another/machine"]) == (spec, set())
    file = TextModel(source).write(tmp_path / "frozen")
    assert frozen.beside(spec, hashes, path, ()) == (record(str(file)), {str(file)})
    assert spec == record("/of/another/machine")
    with pytest.raises(ValueError, match="which its configuration does not have"):
        frozen.beside(spec, {"conditioner.nothing": "0" * 32}, path, ())
