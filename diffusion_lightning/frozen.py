"""Frozen parts: networks that a model uses and never trains, such as a text encoder, stored once a run.

A frozen part is a file `HASH.safetensors`: the weights, and in its metadata the description, JSON of plain values. The
hash is that of both, so that a file vouches for itself. What comes from a file is data: the class of a network is
looked up in a table, its configuration is filtered to known keys with plain values, and it names no code.
"""

import hashlib
import json
import math
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import written
from .meta import made_on_meta

KEY = "frozen"  # of a checkpoint: the hashes of its frozen parts, by the names of the modules that hold them
FOLDER = "frozen"  # beside the checkpoints
HASH = re.compile(r"[0-9a-f]{32}")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Part(ABC):
    """Weights that are never trained, and their description, in a file that vouches for itself.

    Args:
        source: a folder, a name on the hub, or a file that `write` wrote.
        precision: in which it computes; None is that of the source.

    Raises:
        ValueError: if the source is not there, or is no part of a known kind. A file's hash is compared when its
            weights are first needed.
    """

    def __init__(self, source: str, precision: str | None = None) -> None:
        self.source = source
        self._verified, self._tensors = False, dict[str, Tensor]()
        self.file = Path(source) if source.endswith(".safetensors") else None
        found = self.described(precision) if self.file is None else _description(self.file)
        if found.get("precision") not in PRECISIONS:
            raise ValueError(
                f"the precision of {source} is {found.get('precision')}, but it is one of {', '.join(PRECISIONS)}: "
                "give one"
            )
        self.description = self.checked(found)
        if self.file is not None and precision not in (None, self.description["precision"]):
            raise ValueError(
                f"{self.file} holds a frozen part in {self.description['precision']}, but precision is {precision}: "
                "give the precision that it has, or its original source"
            )

    def __deepcopy__(self, memo: Any) -> "Part":
        return self  # it never changes

    @abstractmethod
    def described(self, precision: str | None) -> dict[str, Any]:
        """The description of a source that `write` did not write, its `precision` among it; no weights are read."""

    @abstractmethod
    def checked(self, found: dict[str, Any]) -> dict[str, Any]:
        """The same description; raise ValueError if it is none of this kind."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Each weight once, by its name."""

    @cached_property
    def hash(self) -> str:
        """32 hexadecimal digits: the hash of the weights and the description."""
        self.verify()
        return self.file.stem if self.file is not None else _hash(self.weights(), self.description)

    def verify(self) -> None:
        """Raise ValueError if the file is not what its name says; its weights are kept until they are used."""
        if self._verified or self.file is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self._tensors = load_file(self.file)
        except (OSError, SafetensorError) as error:
            raise _changed(self.file) from error
        if _hash(self._tensors, self.description) != self.file.stem:
            raise _changed(self.file)
        self._verified = True

    def write(self, folder: Path) -> Path:
        """Write it as `HASH.safetensors` into a folder, unless it is there."""
        from safetensors.torch import save

        path = folder / f"{self.hash}.safetensors"
        if not path.exists():
            tensors = {name: x.detach().cpu().contiguous() for name, x in self.weights().items()}
            with written(path) as stream:
                stream.write(save(tensors, metadata={"description": json.dumps(self.description, sort_keys=True)}))
        return path


class Frozen(Part):
    """A network in eval mode and without gradients, and its description; subclasses read it from its source.

    It is no `nn.Module`, so that the modules that hold one do not see its weights: neither state_dict, averages and
    optimizers nor DDP and FSDP.
    """

    @abstractmethod
    def fetched(self, dtype: torch.dtype) -> nn.Module:
        """The network with the weights of its source, in this type."""

    @abstractmethod
    def empty(self) -> nn.Module:
        """A network as described, with any weights."""

    @cached_property
    def network(self) -> Any:
        """The network, on the device on which it was last used."""
        dtype = PRECISIONS[self.description["precision"]]
        with torch.device("cpu"):  # also where a model around it is made without memory
            if self.file is None:
                return self.fetched(dtype).eval().requires_grad_(False)
            self.verify()
            tensors, self._tensors = self._tensors, {}
            return _filled(self.empty, dtype, tensors, self.file).eval().requires_grad_(False)

    def weights(self) -> dict[str, Tensor]:
        return _weights(self.network)


def parts(module: nn.Module) -> dict[str, Part]:
    """The frozen parts that the modules within a module hold as their `frozen`, by those modules' names."""
    found = {name: getattr(part, "frozen", None) for name, part in module.named_modules()}
    return {name: part for name, part in found.items() if isinstance(part, Part)}


def check_same(module: nn.Module, hashes: Any, path: str | Path) -> None:
    """Raise ValueError if a module's frozen parts are not those of a checkpoint; None compares none."""
    if hashes is None:
        return
    own = parts(module)
    for name in sorted({*own, *hashes}):
        here = own[name].hash if name in own else "none"
        if here != hashes.get(name):
            source = f" (from {own[name].source})" if name in own else ""
            raise ValueError(
                f"the frozen part of {name} is {here}{source}, but {path} was trained with {hashes.get(name, 'none')}: "
                "give the same source in the same precision, or the file that lies in the run's checkpoints/frozen"
            )


def beside(spec: Any, hashes: Mapping[str, str] | None, path: str | Path, trust: Any) -> tuple[Any, set[str]]:
    """The record of a model whose frozen parts are read from the files beside its checkpoint, and these files' names.

    Of a part whose file is missing, a source that is in `trust` stays.

    Raises:
        ValueError: if the file of a part is missing and its source is not trusted, or there is no such part.
    """
    named = set()
    for name, found in (hashes or {}).items():
        words, file = str(name).split("."), Path(path).parent / FOLDER / f"{found}.safetensors"
        try:
            led, source = _led(spec, words, str(file))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} keeps a frozen part of {name}, which its configuration does not have: use another checkpoint"
            ) from error
        if file.is_file():
            spec = led
            named.add(str(file))
        elif not isinstance(source, str) or source not in trust:
            raise ValueError(
                f"{path} needs the frozen part of {name}, but {file} is missing: copy it there from the run's "
                f"checkpoints/frozen, or have it read from its source by --trust {source}, or by trust=[{source!r}] in "
                "Python"
            )
    return spec, named


def _led(spec: Any, words: list[str], file: str) -> tuple[Any, Any]:
    """A record in which the class at a place, such as conditioner, conditioners, 1, has another source; and its own."""
    if not words:
        arguments = spec["init_args"]
        return {**spec, "init_args": {**arguments, "model": file}}, arguments["model"]
    if isinstance(spec, list):
        k = range(len(spec))[int(words[0])]
        led, source = _led(spec[k], words[1:], file)
        return [*spec[:k], led, *spec[k + 1 :]], source
    led, source = _led(spec["init_args"][words[0]], words[1:], file)
    return {**spec, "init_args": {**spec["init_args"], words[0]: led}}, source


def stored(source: Any) -> bool:
    """Whether a source is a file that vouches for itself by its name."""
    return isinstance(source, str) and re.fullmatch(rf"(.*/)?{HASH.pattern}\.safetensors", source) is not None


def copy(hashes: Mapping[str, str] | None, source: Path, target: Path) -> None:
    """Copy the files of frozen parts that lie beside one checkpoint beside another; those that are there stay."""
    for found in set((hashes or {}).values()):
        here, there = (folder / FOLDER / f"{found}.safetensors" for folder in (source, target))
        if here.is_file() and not there.exists():
            with here.open("rb") as old, written(there) as new:
                shutil.copyfileobj(old, new)


def installed(what: str, package: str = "transformers", extra: str | None = None) -> Any:
    """An optional package, which `what` needs; `extra` brings it, by default the one of its name."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{what} needs the package {package}, which is not installed: pip install "
            f"'diffusion_lightning[{extra or package}]'"
        ) from error


def check_place(what: str, source: str, other: str = "") -> None:
    """Raise ValueError if a source can only be a place here, and there is nothing: no hub is asked for it.

    A name on a hub is one word, or two with a slash between, of which the first is no folder here, nor `runs`.
    """
    path, (first, *more) = Path(source).expanduser(), source.split("/")
    local = first in ("", ".", "..", "~", "runs") or Path(first).is_dir()
    named = not more or (len(more) == 1 and not local)
    if not path.exists() and not (named and path.suffix not in (".ckpt", ".safetensors")):
        raise ValueError(f"{what} {source} does not exist: correct the path{other}")


def pretrained(kind: str, source: str, dtype: torch.dtype) -> Any:
    """A model of transformers with its weights, of a folder or a name on the hub, in eval mode, without gradients."""
    transformers = installed(f"the model {source}")
    from safetensors import SafetensorError

    try:
        with quiet(transformers):
            made, loaded = getattr(transformers, kind).from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the weights of {source} are neither safetensors in a folder here, nor in the cache of transformers, nor "
            "to be had from the network: download them where there is one, and give the folder as the model"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {source} are cut, or not those of its config.json: copy it again") from error
    check_complete(loaded, source)
    return made.eval().requires_grad_(False)


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without the bars and reports of transformers or diffusers: what is wrong is raised."""
    logging = import_module(f"{library.__name__}.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub = getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(ERROR)  # which counts its attempts to reach the network
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            logging.enable_progress_bar()


def check_complete(loaded: Mapping[str, Any], source: str) -> None:
    """Raise ValueError if a library made weights up that a source does not have, and says so."""
    if missing := sorted(loaded.get("missing_keys") or ()):
        raise ValueError(f"the weights of {source} lack {missing[0]}, which its config.json describes: copy it again")


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Each weight once, under the first of its names."""
    state, first = network.state_dict(), dict[int, str]()
    for name, x in sorted(state.items()):
        first.setdefault(x.data_ptr() if x.numel() else id(x), name)
    return {name: state[name] for name in first.values()}


def _hash(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> str:
    found = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    for name, x in sorted(tensors.items()):
        found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _changed(file: Path) -> ValueError:
    return ValueError(
        f"{file} is not the frozen part that its name says, since it was changed, damaged or renamed: copy it again "
        "from where it was written"
    )


def _description(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"the frozen part {file} does not exist: copy it there, or give a folder or a name of the hub")
    try:
        with safe_open(file, "pt") as stream:
            found = json.loads((stream.metadata() or {})["description"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise _changed(file) from error
    if not HASH.fullmatch(file.stem) or not isinstance(found, dict):
        raise _changed(file)
    return found


def plain(config: Mapping[str, Any], known: Any, source: str) -> dict[str, Any]:
    """The entries of a configuration that are known, do not begin with _, and are plain values."""
    kept = {k: v for k, v in config.items() if k in known and not k.startswith("_")}
    try:
        return json.loads(json.dumps(kept, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the configuration of {source} holds more than plain values: use another model") from error


def _filled(make: Callable[[], Any], dtype: torch.dtype, tensors: dict[str, Tensor], file: Path) -> Any:
    """The network that `make` makes, with these weights, compared before any memory is taken."""
    other = f"the configuration in {file} and its weights are not of one model: copy the file again"
    try:
        shapes = {name: x.shape for name, x in made_on_meta(make, len(tensors), str(file)).state_dict().items()}
    except ValueError as error:
        raise ValueError(other) from error
    fit = all(shapes.get(name) == x.shape for name, x in tensors.items())
    if not fit or sum(map(math.prod, shapes.values())) > 2 * sum(x.numel() for x in tensors.values()):
        raise ValueError(other)
    made = nn.Module.to(make(), dtype)  # diffusers' own warns
    if _weights(made).keys() != tensors.keys():
        raise ValueError(other)
    made.load_state_dict(tensors, strict=False)  # a weight of several names is stored once
    return made
