"""A text model of transformers and its tokenizer as a frozen part."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..frozen import FOLDER, Frozen, check_place, installed, plain, pretrained

# Types of models, as transformers names them, and the class that makes hidden states of token ids.
KINDS = {
    "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model", "llama": "LlamaModel",
}  # fmt: skip
# Keys of a configuration that choose code, kernels or files; those that begin with _ do too.
NOT_DATA = {
    "architectures", "attn_implementation", "auto_map", "dtype", "name_or_path", "quantization_config", "torch_dtype",
    "transformers_version", "model_type", "experts_implementation",
}  # fmt: skip


class TextModel(Frozen):
    """A text model of transformers, which makes hidden states of token ids, and its tokenizer.

    In the folder of a diffusers pipeline they are `text_encoder` and `tokenizer`.
    """

    def _place(self, name: str) -> str:
        """The folder of the model or the tokenizer; the source itself if it is no pipeline's."""
        within = Path(self.source).expanduser() / name
        return str(within) if within.is_dir() else self.source

    def described(self, precision: str | None) -> dict[str, Any]:
        check_place("the text model", self.source, f", or give a run's file in checkpoints/{FOLDER}")
        transformers = installed(f"the text model {self.source}")
        try:
            config = transformers.AutoConfig.from_pretrained(self._place("text_encoder"), trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._place("tokenizer"), trust_remote_code=False)
            backend = tokenizer.backend_tokenizer
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the text model {self.source} is neither a folder of model and tokenizer here, nor in the cache of "
                "transformers, nor to be had from the network: give its folder, or of a run that has used it the file "
                f"in checkpoints/{FOLDER}"
            ) from error
        config = getattr(config, "text_config", config) if config.model_type == "clip" else config
        backend.no_padding()
        backend.no_truncation()
        stored = str(config.dtype or torch.float32).removeprefix("torch.")
        eos = next((k for k in (tokenizer.eos_token_id, tokenizer.pad_token_id) if k is not None), 0)
        return {
            "kind": "transformers",
            "model_type": config.model_type,
            "config": config.to_dict(),
            "tokenizer": backend.to_str(),
            "eos": eos,
            "pad": eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            "precision": precision or stored,
        }

    def checked(self, found: dict[str, Any]) -> dict[str, Any]:
        kinds = {
            "kind": str, "model_type": str, "config": dict, "tokenizer": str, "eos": int, "pad": int, "precision": str,
        }  # fmt: skip
        if {name: type(x) for name, x in found.items()} != kinds or found["kind"] != "transformers":
            raise ValueError(f"{self.source} describes no frozen part of this version: use the version that wrote it")
        kind = found["model_type"]
        if kind not in KINDS:
            raise ValueError(
                f"{self.source} is a model of type {kind}, but known text models are {', '.join(KINDS)}: use one of "
                "these"
            )
        if kind in ("t5", "umt5") and found["precision"] == "float16":
            raise ValueError(
                f"precision is float16, but numbers within {self.source}, a T5, pass the largest of float16: give "
                "bfloat16 or float32"
            )
        installed(f"the text model {self.source}")
        return {**found, "config": plain(found["config"], _known(kind), self.source)}

    def fetched(self, dtype: torch.dtype) -> nn.Module:
        return pretrained(KINDS[self.description["model_type"]], self._place("text_encoder"), dtype)

    def empty(self) -> nn.Module:
        import transformers

        kind = self.description["model_type"]
        return getattr(transformers, KINDS[kind])(transformers.CONFIG_MAPPING[kind](**self.description["config"]))

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer of the package tokenizers, with neither padding nor truncation."""
        from tokenizers import Tokenizer

        self.verify()
        return Tokenizer.from_str(self.description["tokenizer"])


def _known(model_type: str) -> set[str]:
    """The keys of a configuration that are known to a type of model, and data."""
    import transformers

    return set(transformers.CONFIG_MAPPING[model_type]().to_dict()) - NOT_DATA
