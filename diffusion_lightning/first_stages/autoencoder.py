"""An autoencoder as a frozen part: one of diffusers', or one that was trained here."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checkpoints, records
from ..frozen import FOLDER, Frozen, check_complete, installed, made_on_meta, plain, quiet
from ..known import parameters

DIFFUSERS = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny", "VQModel")
PLACES = ("vae", "vqvae", "movq")  # of the autoencoder within a pipeline's folder
PARAMETERS = 10_000  # tensors that a network described by a record may have


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
        root = Path(self.source).expanduser()
        within = next((place for place in PLACES if (root / place / "config.json").is_file()), None)
        try:
            config = diffusers.AutoencoderKL.load_config(str(root) if root.exists() else self.source, subfolder=within)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the first stage {self.source} is neither a folder of an autoencoder here, nor a checkpoint, nor in "
                "the cache of diffusers, nor to be had from the network: give its folder, or of a run that has used it "
                f"the file in checkpoints/{FOLDER}"
            ) from error
        return str(root / (within or "")) if root.exists() else self.source, dict(config)

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
        return {**found, "config": plain(found["config"], parameters(kind), self.source)}

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
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the weights of {self.source} are not safetensors in a folder here, nor to be had from the network: "
                "download them where there is one, and give the folder as the model"
            ) from error
        except (RuntimeError, SafetensorError) as error:
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
    def layout(self) -> Layout:
        """Its sizes, of its description alone."""
        made = made_on_meta(self.empty, PARAMETERS, f"the first stage {self.source}")
        if self.description["kind"] == "network":
            sizes = (made.in_channels, made.latent_channels, made.factor)
            return Layout(type(made).__name__, *sizes, None, False)
        has = made.config
        widths = has.get("block_out_channels") or has["encoder_block_out_channels"]
        latent = has.get("vq_embed_dim") or has["latent_channels"]
        scale, shift = float(has["scaling_factor"]), float(has.get("shift_factor") or 0.0)
        mean, std = has.get("latents_mean"), has.get("latents_std")
        published = Published([scale], [shift])
        if mean and std:
            published = Published([scale / x for x in std], list(map(float, mean)))
        sizes = (has["in_channels"], latent, 2 ** (len(widths) - 1))
        return Layout(self.description["class"], *sizes, published, hasattr(made, "enable_tiling"))
