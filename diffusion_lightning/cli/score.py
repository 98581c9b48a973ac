"""`diffusion-lightning score GENERATED REFERENCE`: what images are worth, without a model."""

import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchmetrics import Metric
from tqdm import tqdm

from ..extractors import InceptionV3
from ..files import cache_folder, check_file, write_text, written
from ..images import SUFFIXES, Archive, Folder, contents, readable
from ..metrics import (
    KID,
    ClassCoverage,
    FrechetDistance,
    InceptionScore,
    NearestNeighbours,
    PrecisionRecall,
    frechet_distance,
)
from ..metrics.evaluation import Evaluation
from ..metrics.statistics import read_statistics, write_arrays
from . import devices
from .commands import EXTRACTORS


def main(options: Namespace) -> None:
    """Scores generated images against real ones and prints the figures."""
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}, which is no batch: give at least 1")
    for path in filter(None, (options.json, options.save, options.pairs)):  # before an hour is spent
        check_file(path)
    if options.pairs and Path(options.pairs).suffix.lower() not in SUFFIXES:
        raise ValueError(f"--pairs {options.pairs} is no name of a picture: end it in .png")
    device = devices.chosen(options.device)
    extractor = _extractor(options.extractor, options.weights, options.precision)
    generated, reference = (_Side(path, extractor) for path in (options.generated, options.reference))
    name = options.extractor if options.precision == "float32" else f"{options.extractor} in {options.precision}"
    found = {**_scores(generated, reference, extractor, device, options), "extractor": name}
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    print("\n".join(_lines(found)))


class _Side:
    """Images, or their statistics, or both, as one path gives them."""

    def __init__(self, path: str, extractor: nn.Module) -> None:
        self.path, self.images, self.statistics = Path(path), None, None
        channels = getattr(extractor, "channels", 3)
        if self.path.is_dir():
            self.images = Folder(
                self.path, channels, lambda does, files: tqdm(files, f"{does} {path}", unit=" pictures", delay=2)
            )
        elif self.path.is_file():
            names = contents(self.path)
            if "mu" in names:
                for name in {"mu", "sigma"} & names.keys():
                    readable(self.path, name, names[name])
                self.statistics = read_statistics(self.path, extractor.num_features)  # type: ignore[arg-type]
            if "arr_0" in names or self.statistics is None:
                self.images = Archive(self.path, channels)
        else:
            what = "is neither a folder nor a file" if self.path.exists() else "does not exist"
            raise ValueError(f"{path} {what}: give a folder of pictures, or an .npz of images or statistics")

    images: Folder | Archive | None
    statistics: dict[str, torch.Tensor] | None

    @property
    def shape(self) -> list[int] | None:
        """Of an image, where it is known."""
        if self.images is not None:
            return list(self.images.shape)
        shape = (self.statistics or {}).get("shape")
        return None if shape is None else shape.tolist()


def _scores(
    generated: _Side, reference: _Side, extractor: nn.Module, device: torch.device, options: Any
) -> dict[str, Any]:
    if None not in (generated.shape, reference.shape) and generated.shape != reference.shape:
        raise ValueError(
            f"the images of {generated.path} have shape {generated.shape}, but those of {reference.path} "
            f"{reference.shape}, and resizing changes a distance: make both of one size first"
        )
    distance = FrechetDistance(extractor, allow_few=options.few)
    if generated.images is None:
        if reference.statistics is None:
            raise ValueError(
                f"{generated.path} holds statistics and {reference.path} images: give the statistics as the reference"
            )
        a, b = generated.statistics, reference.statistics
        assert a is not None
        return {distance.name: float(frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"]))}
    distance.reference = reference.statistics
    metrics: list[Metric] = [distance]
    n = len(generated.images)
    neighbours = NearestNeighbours(extractor)
    if reference.images is not None:
        most = min(n, len(reference.images), options.kept)
        size = options.kid_subset_size or min(1000, most)
        subsets = 1 if size == n == len(reference.images) else options.kid_subsets
        metrics.append(KID(extractor, subsets, size, max(options.kept, size)))
        metrics += [PrecisionRecall(extractor, kept=options.kept), neighbours]
    if hasattr(extractor, "classify"):
        metrics += [InceptionScore(extractor)] if n >= 10 else []
        metrics += [ClassCoverage(extractor)] if reference.images is not None else []
    evaluation = Evaluation(
        metrics,
        reference.images,
        batch_size=options.batch_size,
        device=device,
        cache=cache_folder() / "references",
    )
    with torch.inference_mode():
        values = evaluation.score(generated.images, uncertainty=True, watch=_bar)
    if options.save:
        assert distance.reference is not None
        kept = {key: x for key, x in distance.reference.items() if key in ("mu", "sigma", "n")}
        write_arrays(options.save, {**kept, "shape": torch.tensor(generated.shape)})
    if options.pairs and neighbours.picture is not None:
        with written(options.pairs) as stream:
            Image.fromarray(neighbours.picture.squeeze(-1).numpy()).save(
                stream, Image.registered_extensions()[Path(options.pairs).suffix.lower()]
            )
    return {key: float(value) for key, value in values.items()}


def _extractor(name: str, weights: str | None, precision: Any) -> nn.Module:
    if name == "inception":
        return InceptionV3(weights, precision)
    if weights is not None:
        raise ValueError(f"weights are Inception's, but the extractor is {name}: leave --weights out")
    if precision != "float32":
        raise ValueError(f"a precision is Inception's, but the extractor is {name}: leave --precision out")
    module, _, kind = EXTRACTORS.get(name, name).rpartition(".")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"there is no extractor {name}: give {', '.join(EXTRACTORS)}, or a class by its path, such as "
            "my_file.MyExtractor"
        ) from error
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be made without arguments ({error}), but an extractor is named by its class alone: derive "
            "a class of your own that gives them"
        ) from error
    return found()


def _bar(name: str, blocks: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(desc=name, total=sum(size for _, size in blocks), unit=" images", mininterval=interval) as bar:
        for first, size in blocks:
            yield first, size
            bar.update(size)


def _lines(found: dict[str, Any]) -> Iterable[str]:
    """The figures for a person: the distance with its error and number of samples, then the others, one a line."""
    name = next(iter(found))
    beside = {key.removeprefix(f"{name}_"): found[key] for key in found if key.startswith(f"{name}_")}
    rows = [(name, found[name], "")]
    if "samples" in beside:
        error = f"± {beside['error']:.2g} " if "error" in beside else ""
        rows = [(name, found[name], f"{error}({beside['samples']:.0f} samples)")]
    if "infinity" in beside:
        rows.append(("  N → ∞", beside["infinity"], "what infinitely many samples would have, by extrapolation"))
    if "few" in beside:
        rows.append(
            ("  FEW", beside["samples"], "samples are no more than the features: mostly bias, compare with nothing")
        )
    others = [key for key in found if key != name and key.removeprefix(f"{name}_") not in beside]
    rows += [(key, found[key], "") for key in others if isinstance(found[key], float)]
    width = max(len(key) for key, _, _ in rows) + 2
    for key, value, text in rows:
        yield f"{key:<{width}}{value:<10.5g} {text}".rstrip()
