"""Captions as conditions by a text model of transformers that is frozen: CLIP, T5, and decoders such as Qwen.

Raw conditions are token ids, and -1 for padding, since some tokenizers pad with the token that ends a caption:

    [token, token, …, end, -1, …, -1],    the null condition is the caption ""
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..files import cache_folder, written
from .base import Condition
from .captions import COUNTED, Captions, warn_cut
from .text_model import TextModel

PAD = -1
SUM = 16  # bytes of an entry's checksum


class PretrainedText(Captions):
    """A frozen text model's hidden states as tokens, and its pooled output as a vector where it has one.

    Trained are two linear layers alone: of the normalised tokens to the network's `token_width`, and of the vector to
    its `condition_width`. Published models, such as Stable Diffusion, attend to the hidden states as they are, those at
    padding too: `project: false` and `attend_padding: true`. The model itself is no part of a checkpoint: it is stored
    once a run, see `frozen`. It needs the optional package, `pip install diffusion_lightning[transformers]`.

    Papers: Learning transferable visual models from natural language supervision. Radford et al., 2021, arXiv
    2103.00020; Photorealistic text-to-image diffusion models with deep language understanding. Saharia et al., 2022,
    arXiv 2205.11487, section 2.1 (a frozen T5).

    Args:
        model: a folder, a name on the hub, or a file of a run's `checkpoints/frozen`. CLIP and OpenCLIP, T5 and
            flan-T5, Qwen and Llama.
        length: tokens of a caption, its special tokens among them; longer ones are cut.
        precision: in which the frozen model computes; None is that in which it is stored. T5 takes no float16.
        dropout: fraction of training captions replaced by the null condition, in [0, 1).
        vector: also add the pooled output to the time's embedding, if model and network have one.
        cache: keep embeddings in the user's cache, so that each caption is embedded once. A caption is then embedded
            alone, so that its bits do not depend on what is kept.
        layer: whose hidden states are taken: -1 is the model's output, -2 the states before its last layer.
        project: train the tokens' norm and linear layer; else they are given as they are, of the network's token_width.
        attend_padding: fill captions up to `length` with the tokenizer's own token for it, and let the frozen model and
            the network attend to all of them alike; else padding is masked in both.

    Raises:
        ValueError: if the model is not there or of no known kind, or the arguments do not fit it.
    """

    padding = PAD

    def __init__(
        self,
        model: str,
        length: int = 77,
        precision: Literal["float32", "bfloat16", "float16"] | None = "float32",
        dropout: float = 0.1,
        vector: bool = True,
        cache: bool = False,
        layer: int = -1,
        project: bool = True,
        attend_padding: bool = False,
    ) -> None:
        if length < 1 or layer > -1 or not 0 <= dropout < 1:
            raise ValueError(
                f"length = {length}, layer = {layer}, dropout = {dropout} describe no encoder: give length ≥ 1, "
                "layer ≤ -1 and dropout in [0, 1)"
            )
        super().__init__(length, dropout)
        self.frozen = TextModel(model, precision)
        self.vector, self.cache, self.layer = vector, cache, layer
        self.project, self.attend_padding = project, attend_padding
        config = self.frozen.description["config"]
        self.ids_known = int(config["vocab_size"])
        layers = config.get("num_hidden_layers", config.get("num_layers", 0))
        if -layer > layers + 1:
            raise ValueError(f"layer is {layer}, but {model} has {layers} layers: give -1 … {-layers - 1}")
        most = config.get("max_position_embeddings", length)
        if length > most:
            raise ValueError(f"length is {length}, but {model} takes at most {most} tokens: give at most {most}")
        self.width = int(config.get("hidden_size") or config["d_model"])
        if not self.examples.is_meta:
            self.examples.copy_(self.rows([self.nothing()]))
        self.proj_tokens: nn.Linear | None = None
        self.proj: nn.Linear | None = None
        self._joined = False

    def join(self, network: nn.Module) -> None:
        """Makes tokens and vector as wide as the network takes them.

        Raises:
            ValueError: if the network takes no tokens, or not of this width where they are not projected.
        """
        if self._joined:
            return
        self._joined = True
        width = getattr(network, "token_width", None)
        if width is None:
            raise ValueError(
                f"PretrainedText gives tokens, and {type(network).__name__} states no token_width to attend to them: "
                "give the network a token_width, or take another network"
            )
        if not self.project and width != self.width:
            raise ValueError(
                f"project is false, but {self.frozen.source} gives tokens of {self.width} features and the network "
                f"takes {width}: give the network token_width: {self.width}, or leave project out"
            )
        if self.project:
            self.norm, self.proj_tokens = nn.LayerNorm(self.width), nn.Linear(self.width, width)
        pooled = self.frozen.description["model_type"] == "clip_text_model"
        vector = getattr(network, "condition_width", None) if self.vector and pooled else None
        if vector is not None:
            self.proj = nn.Linear(self.width, vector)

    def forward(self, y: Tensor) -> Condition:
        """Tokens (B, length, token_width), their mask, and the vector, of token ids (B, length)."""
        x, pooled = self.embedded(y)
        if self.proj_tokens is not None:
            x = self.proj_tokens(self.norm(x.to(self.proj_tokens.weight.dtype)))
        vector = None if self.proj is None or pooled is None else self.proj(pooled.to(self.proj.weight.dtype))
        return Condition(vector, x, None if self.attend_padding else y != PAD)

    # The frozen model

    @torch.no_grad()
    def embedded(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The frozen model's tokens (B, length, width), and its pooled output (B, width) or None.

        They are zero at padding, unless that is attended to.
        """
        if not self.cache:
            return self._embedded(y)
        found = [self._cached(row) for row in y]
        pooled = [p for _, p in found if p is not None]
        return torch.cat([x for x, _ in found]), torch.cat(pooled) if pooled else None

    def _embedded(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        network = self.frozen.network
        if network.device != y.device:
            network.to(y.device)
        mask = y != PAD
        # The precision is this model's own: under autocast a T5 would compute in float16 after all.
        with torch.autocast(y.device.type, enabled=False):
            ids = y.masked_fill(~mask, self.frozen.description["pad"])
            options = (
                {"use_cache": False} if self.frozen.description["model_type"] in ("qwen2", "qwen3", "llama") else {}
            )
            attended = None if self.attend_padding else mask.long()
            out = network(input_ids=ids, attention_mask=attended, output_hidden_states=self.layer != -1, **options)
        x = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        if not self.attend_padding:
            x = x.masked_fill(~mask[:, :, None], 0)
        return x, getattr(out, "pooler_output", None)

    def _cached(self, row: Tensor) -> tuple[Tensor, Tensor | None]:
        """One row's embedding, from the cache or into it; a damaged entry is made again."""
        from safetensors import SafetensorError
        from safetensors.torch import load, save

        ids = row.cpu()
        asked = f"{self.layer} {ids.tolist()}" + (" attended" if self.attend_padding else "")
        name = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
        path = Path(cache_folder()) / "text" / self.frozen.hash / name[:2] / name
        with suppress(OSError, SafetensorError, KeyError):
            content = path.read_bytes()
            if content[:SUM] == hashlib.blake2b(content[SUM:], digest_size=SUM).digest():
                kept = load(content[SUM:])
                pooled = kept.get("vector")
                return kept["tokens"].to(row.device), None if pooled is None else pooled.to(row.device)
        x, pooled = self._embedded(row[None])
        kept = {"tokens": x.cpu()} | ({} if pooled is None else {"vector": pooled.cpu()})
        content = save(kept)
        with written(path, sync=False) as stream:
            stream.write(hashlib.blake2b(content, digest_size=SUM).digest() + content)
        return x, pooled

    # Captions to token ids and back

    def _ids(self, caption: str) -> list[int]:
        """All token ids of a caption, at least one."""
        return self.frozen.tokenizer.encode(caption).ids or [self.frozen.description["eos"]]

    def ids(self, caption: str) -> list[int]:
        ids = self._ids(caption)
        if len(ids) <= self.length:
            return ids
        marks = self.frozen.tokenizer.encode(caption).special_tokens_mask
        end = ids[-1:] if marks[-1] and self.length > 1 else []  # the token that ends a caption stays
        return ids[: self.length - len(end)] + end

    def nothing(self) -> list[int]:
        return self.ids("")

    def texts(self, y: Tensor) -> list[str]:
        """The captions again, as the tokenizer writes them; "" is the null condition."""
        return [self.frozen.tokenizer.decode([k for k in row if k != PAD]).strip() for row in y.tolist()]

    # The data

    def learn(self, captions: Sequence[str]) -> None:
        """Warns if captions are cut."""
        warn_cut((len(self._ids(caption)) for caption in captions[:COUNTED]), self.length)
