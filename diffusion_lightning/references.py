"""Files of a reference: what a metric has made of the real images, as arrays in one `.npz`.

Those of a Fréchet distance are the ones of pytorch-fid and of guided-diffusion's evaluator: `mu` (d,), `sigma` (d, d).
"""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, Tensor]


def write_arrays(path: str | Path, arrays: Arrays) -> None:
    """Writes beside the file and renames, so that there is the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **{name: x.cpu().numpy() for name, x in arrays.items()})  # type: ignore[arg-type]
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: str | Path, names: Collection[str] | None = None) -> Arrays:
    """The file's numbers, or those of these names, on the CPU; runs nothing that the file may hold.

    Raises:
        ValueError: where there is no such file, or it is none of arrays.
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
        ValueError: where the file has none, or of another number of features.
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
    return {**arrays, "mu": mu, "sigma": sigma}
