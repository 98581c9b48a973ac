"""An autoencoder as a frozen part: one of diffusers', or one that was trained here."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checkpoints, records
from ..frozen import FOLDER, Frozen, check_complete, check_place, installed, plain, quiet
from ..known import parameters
from ..meta import made_on_meta

DIFFUSERS = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny", "VQModel")
PLACES = ("vae", "vqvae", "movq")  # of the autoencoder within a pipeline's folder
PARAMETERS = 4_000  # tensors that a network described by a record may have
# What a configuration states for each level, between which an image's sizes are halved.
LEVELS = (
    "block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "down_block_types",
    "up_block_types",
)  # fmt: skip
LONGEST = 2**16  # characters of a configuration


class Published(NamedTuple):
    """Scale and shift for which an autoencoder was published, each one number or one a channel."""

    scale: list[float]
    shift: list[float]


class Layout(NamedTuple):
    """The sizes of an autoencoder: an image of `factor`·(h, w) pixels has a latent of (h, w)."""

    name: str
    in_channels: int
    latent_channels: int
    factor: int
    published: Published | None
    tiles: bool  # whether it can work in tiles


class FrozenAutoencoder(Frozen):
    """An autoencoder with `encode(image)` and `decode(raw latent)`, whose layout is known before its weights are read.

    Its description is of diffusers, `{"kind": "diffusers", "class", "config", "precision"}`, or of a network of this
    package, `{"kind": "network", "network": record, "precision"}`.
    """

    def described(self, precision: str | None) -> dict[str, Any]:
        if self._trained is not None:
            return {"kind": "network", "network": self._record(), "precision": precision or "float32"}
        _, config = self._place
        return {
            "kind": "diffusers",
            "class": str(config.get("_class_name")),
            "config": config,
            "precision": precision or str(config.get("torch_dtype") or "float32").removeprefix("torch."),
        }

    @cached_property
    def _trained(self) -> Path | None:
        """The checkpoint of a training that is the source; None if it is diffusers'."""
        path = Path(self.source).expanduser()
        if path.suffix == ".ckpt" or (path / "checkpoints").is_dir() or path.name in ("last", "best"):
            return checkpoints.found(path)
        return None

    def _record(self) -> dict[str, Any]:
        path = str(self._trained)
        config = checkpoints.config(checkpoints.read(path), path)
        model = config.get("model")
        network = model.get("init_args", {}).get("network") if isinstance(model, dict) else None
        if not str(model and model.get("class_path")).endswith(".Autoencoder") or not isinstance(network, dict):
            raise ValueError(
                f"{self._trained} is not of an Autoencoder, so it is no first stage: give the checkpoint of one, a "
                "folder of diffusers', or a file of a run's checkpoints/frozen"
            )
        return records.read(network, nn.Module, f"model.network in {self._trained}").spec()

    @cached_property
    def _place(self) -> tuple[str, dict[str, Any]]:
        """The folder within the source that holds an autoencoder, and its config."""
        diffusers = installed(f"the first stage {self.source}", "diffusers")
        check_place("the first stage", self.source, ", or train it there first")
        root = Path(self.source).expanduser()
        within = next((place for place in PLACES if (root / place / "config.json").is_file()), None)
        try:
            place = str(root) if root.exists() else self.source
            with quiet(diffusers):
                config = dict(diffusers.AutoencoderKL.load_config(place, subfolder=within))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"the first stage {self.source} is neither a folder of an autoencoder here, nor a run or a checkpoint "
                "of an Autoencoder, nor in the cache of diffusers, nor to be had from the network: give its folder, "
                f"train one first, or give the file in checkpoints/{FOLDER} of a run that has used it"
            ) from error
        return str(root / (within or "")) if root.exists() else self.source, config

    def checked(self, found: dict[str, Any]) -> dict[str, Any]:
        kinds = {name: type(x) for name, x in found.items()}
        if kinds == {"kind": str, "network": dict, "precision": str} and found["kind"] == "network":
            part = records.read(found["network"], nn.Module, f"the network of {self.source}")
            if not (hasattr(part.kind, "encode") and hasattr(part.kind, "decode")):
                raise ValueError(f"{self.source} holds a {part.kind.__name__}, which is no autoencoder: give one")
            return found
        if kinds != {"kind": str, "class": str, "config": dict, "precision": str} or found["kind"] != "diffusers":
            raise ValueError(f"{self.source} describes no frozen part of this version: use the version that wrote it")
        if found["class"] not in DIFFUSERS:
            raise ValueError(
                f"{self.source} is a {found['class']} of diffusers, but known autoencoders are {', '.join(DIFFUSERS)}: "
                "use one of these"
            )
        kind = getattr(installed(f"the first stage {self.source}", "diffusers"), found["class"])
        if found["precision"] == "float16" and found["config"].get("force_upcast"):
            raise ValueError(
                f"precision is float16, but numbers within {self.source} pass the largest of float16 (its config has "
                "force_upcast): give bfloat16 or float32"
            )
        config = plain(found["config"], parameters(kind), self.source)
        if len(json.dumps(config)) > LONGEST:
            raise ValueError(
                f"the configuration of {self.source} is longer than {LONGEST:,} characters, which that of no "
                "autoencoder is: use another model"
            )
        return {**found, "config": config}

    def fetched(self, dtype: torch.dtype) -> nn.Module:
        if self._trained is not None:
            network = self.empty().to(dtype)
            checkpoint = checkpoints.read(self._trained)
            tensors = {**checkpoint["state_dict"], **checkpoints.averaged(checkpoint)}
            own = {k.removeprefix("network."): x for k, x in tensors.items() if k.startswith("network.")}
            try:
                network.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(f"the weights of {self._trained} are not those of its network: use another") from error
            return network
        from safetensors import SafetensorError

        diffusers = installed(f"the first stage {self.source}", "diffusers")
        kind = getattr(diffusers, self.description["class"])
        try:
            with quiet(diffusers):
                made, loaded = kind.from_pretrained(
                    self._place[0], torch_dtype=dtype, use_safetensors=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if not (Path(self._place[0]) / "diffusion_pytorch_model.safetensors").is_file():
                raise ValueError(
                    f"the weights of {self.source} are not safetensors in a folder here, nor to be had from the "
                    "network: download them where there is one, and give the folder as the model"
                ) from error
            raise ValueError(
                f"the weights of {self.source} are cut, or not those of its config.json: copy it again"
            ) from error
        check_complete(loaded, self.source)
        return made

    def empty(self) -> nn.Module:
        if self.description["kind"] == "network":
            return records.read(self.description["network"], nn.Module, f"the network of {self.source}").make()
        kind = getattr(installed(f"the first stage {self.source}", "diffusers"), self.description["class"])
        return kind(**self.description["config"])

    @cached_property
    def compiled(self) -> dict[str, Any]:
        """What torch.compile makes of `encode` and `decode`."""
        options: Any = {"dynamic": False, "options": {"deterministic": True}}
        return {name: torch.compile(getattr(self.network, name), **options) for name in ("encode", "decode")}

    @cached_property
    def layout(self) -> Layout:
        """Its sizes, of its description alone."""
        made = made_on_meta(self.empty, PARAMETERS, f"the first stage {self.source}")
        if self.description["kind"] == "network":
            sizes: list[Any] = [getattr(made, name, None) for name in ("in_channels", "latent_channels", "factor")]
            if not all(isinstance(n, int) and n > 0 for n in sizes):
                raise ValueError(
                    f"the network of {self.source} states in_channels, latent_channels and factor as {sizes}, but each "
                    "is a whole number from 1 on: use another autoencoder"
                )
            in_channels, latent, factor = sizes
            return Layout(type(made).__name__, in_channels, latent, factor, published=None, tiles=False)
        has = made.config
        levels = [has[name] for name in LEVELS if has.get(name) is not None]
        factor, latent = 2 ** (len(levels[0]) - 1), has.get("vq_embed_dim") or has["latent_channels"]
        ways = {len(of) for of in levels}, has.get("out_channels", has["in_channels"]) - has["in_channels"]
        if ways != ({len(levels[0])}, 0) or has.get("upsampling_scaling_factor", 2) != 2:
            raise ValueError(
                f"the configuration of {self.source} describes an encoder and a decoder of different sizes, but an "
                "image has to come back as it was: use another autoencoder"
            )
        # Tiles of AutoencoderTiny are cut for 2^channels, whatever its factor is.
        tiles = hasattr(made, "use_tiling") and getattr(made, "spatial_scale_factor", factor) == factor
        published = _published(has, latent, self.source)
        return Layout(self.description["class"], has["in_channels"], latent, factor, published, tiles)


def _published(has: Any, channels: int, source: str) -> Published:
    """The scale and shift that a configuration of diffusers' states."""
    stated = [has.get(name) for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")]
    try:
        scale, shift = float(stated[0]), float(stated[1] or 0.0)
        mean, std = (list(map(float, x or [])) for x in stated[2:])
        found = Published([scale / x for x in std], mean) if mean and std else Published([scale], [shift])
        good = all(len(of) in (1, channels) and all(map(math.isfinite, of)) for of in found) and all(found.scale)
    except (TypeError, ValueError, ArithmeticError):
        good = False
    if not good:
        raise ValueError(
            f"the configuration of {source} states scaling_factor, shift_factor, latents_mean and latents_std as "
            f"{stated!s:.200}, but each is a finite number, or one for each of {channels} channels, and the scale is "
            "not 0: use another autoencoder"
        )
    return found
