"""Tiny text models of random weights in transformers' own format, with a tokenizer of whole words."""

from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from .captions import Shades, with_captions

WORDS = sorted({word for caption in Shades.captions or [] for word in caption.replace(",", " ,").split()})


def tokenizer(start: bool = True, end: bool = True) -> Tokenizer:
    vocabulary = {word: k for k, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        single = "<start> $A <end>" if start else "$A <end>"
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<start>", 1), ("<end>", 2)]
        )
    return made


def text_model(folder: Path, kind: str, width: int = 16, seed: int = 0) -> Any:
    """Writes a "clip", "t5" or "qwen2" of random weights into a folder, and returns it.

    The tokenizer of "clip" pads with the token that ends a caption, as CLIP's does; that of "qwen2" adds no tokens.
    """
    torch.manual_seed(seed)
    words = len(WORDS) + 4
    some: dict[str, Any] = {"vocab_size": words, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        config: Any = transformers.CLIPTextConfig(
            hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=24, pad_token_id=2, **{**some, "eos_token_id": 2},
        )  # fmt: skip
        model: Any = transformers.CLIPTextModel(config)
    elif kind == "t5":
        config = transformers.T5Config(
            vocab_size=words, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=2, pad_token_id=0
        )
        model = transformers.T5EncoderModel(config)
    else:
        config = transformers.Qwen2Config(
            hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            **some,
        )  # fmt: skip
        model = transformers.Qwen2Model(config)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(kind == "clip", kind != "qwen2"),
        pad_token="<end>" if kind == "clip" else "<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return model.eval()


def with_frozen(folder: Path, source: Path) -> str:
    """A run's config of a frozen text model."""
    path = with_captions(folder)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"]["init_args"]["conditioner"] = {
        "class_path": "PretrainedText",
        "init_args": {"model": str(source), "length": 10},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)
