"""Files of a reference: a metric's statistics of the real images, as arrays in one `.npz`.

Those of a Fréchet distance are the ones of pytorch-fid and of guided-diffusion's evaluator: `mu` (d,), `sigma` (d, d).
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import written

Arrays = dict[str, Tensor]


def write_arrays(path: str | Path, arrays: Arrays, **texts: str) -> None:
    """Writes the whole file or none, the texts beside the arrays."""
    with written(path) as file:
        np.savez(file, **{name: x.cpu().numpy() for name, x in arrays.items()}, **texts)  # type: ignore[arg-type]


def keep(path: Path, arrays: Arrays, of: str) -> None:
    """Writes a file for `kept`, with a text that identifies what the arrays are made of, and a hash of all of it.

    One with a number that is not finite is not written: each later run would have it in its values.
    """
    if all(x.isfinite().all() for x in arrays.values()):
        write_arrays(path, arrays, made_of=of, hash=_hash(arrays, of))


def kept(path: Path, of: str) -> Arrays | None:
    """What `keep` wrote of this; None if there is no file, or one of an earlier version, without a hash.

    Raises:
        ValueError: in words that follow the file's name, if it is damaged or of something else.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except Exception as error:  # zip, numpy and pickle each have their own
        raise ValueError("is cut short or damaged") from error
    texts = {name: str(held.pop(name, "")) for name in ("made_of", "hash")}
    if not texts["hash"]:
        return None
    if texts["made_of"] != of:
        raise ValueError("is made of other images, or by another network")
    try:
        arrays = {name: torch.from_numpy(x) for name, x in held.items()}
    except TypeError as error:
        raise ValueError("is damaged") from error
    if texts["hash"] != _hash(arrays, of):
        raise ValueError("has another hash than what was written")
    if not all(x.isfinite().all() for x in arrays.values()):
        raise ValueError("holds numbers that are not finite")
    return arrays


def _hash(arrays: Arrays, of: str) -> str:
    found = hashlib.blake2b(of.encode(), digest_size=16)
    for name, x in sorted(arrays.items()):
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_arrays(path: str | Path, names: Collection[str] | None = None) -> Arrays:
    """The file's numbers, or those of these names, on the CPU; runs nothing that the file may hold.

    Raises:
        ValueError: if there is no such file, or it is no `.npz` of arrays.
    """
    if not Path(path).is_file():
        raise ValueError(f"the statistics {path} do not exist: give the path of an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if names is None or name in names}
    except Exception as error:  # zip, numpy and pickle each have their own
        raise ValueError(f"{path} is cut short, damaged or no .npz file of arrays: make it again") from error
    return {name: torch.from_numpy(x) for name, x in arrays.items() if x.dtype.kind in "fiub"}


def read_statistics(path: str | Path, num_features: int) -> Arrays:
    """`mu` and `sigma` of a Fréchet distance, float64.

    Raises:
        ValueError: if the file has none, or they are of another number of features, or not finite numbers.
    """
    arrays = read_arrays(path, ("mu", "sigma", "n", "shape"))  # beside these there may be gigabytes of images
    if "mu" not in arrays or "sigma" not in arrays:
        raise ValueError(
            f"{path} does not hold both mu and sigma, which statistics are: give a file that "
            "pytorch-fid, guided-diffusion's evaluator or `diffusion-lightning score --save` wrote"
        )
    mu, sigma = arrays["mu"].double(), arrays["sigma"].double()
    if mu.shape != (num_features,) or sigma.shape != (num_features, num_features):
        raise ValueError(
            f"the statistics {path} are of {len(mu)} features, but the extractor gives {num_features}: use those of "
            "the same extractor"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(
            f"the statistics {path} hold numbers that are not finite, but a distance to them would be none: make them "
            "again"
        )
    return {**arrays, "mu": mu, "sigma": sigma}
