"""CLIP's score against its own two embeddings, by a tiny CLIP of random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from diffusion_lightning.metrics import CLIPScore
from diffusion_lightning.metrics.evaluation import Evaluation

CAPTIONS = ["a b", "b", "a a a a a a a a a a a a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    letters = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config={**small, "vocab_size": 6, "max_position_embeddings": 8, "bos_token_id": 4, "eos_token_id": 5},
            vision_config={**small, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).save_pretrained(path)
    sizes: Any = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    tokenizer = CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=8)
    CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer).save_pretrained(path)
    return path


def test_equals_the_cosine_of_the_embeddings(folder: Path) -> None:
    images = torch.randint(0, 255, (3, 1, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = Evaluation([CLIPScore(str(folder))], None)
    found.expect(3)
    found.generated(images[:2], 0, CAPTIONS[:2])
    found.generated(images[2:], 2, CAPTIONS[2:])
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    said = processor(text=CAPTIONS, return_tensors="pt", padding=True, truncation=True)
    seen = processor(images=list(images.expand(-1, 3, -1, -1)), return_tensors="pt")
    with torch.no_grad():
        output = model(**said, **seen)
    cosine = (output.text_embeds * output.image_embeds).sum(1)
    assert float(found.values()["clip_score"]) == pytest.approx(float(100 * cosine.mean().clamp(min=0)), abs=1e-4)


def test_images_without_captions_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="these have none: leave CLIPScore out"):
        CLIPScore(str(folder)).update(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None)


def test_a_model_that_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are neither safetensors in a folder here"):
        CLIPScore(str(tmp_path))


def test_a_model_without_its_processor_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(ValueError, match="has weights, but no processor"):
        CLIPScore(str(tmp_path))
