"""The curve of the variational bound's terms over t, which says where the bits go."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor


class BoundCurve(Callback):
    """After `test`, writes `bound.csv` (t, bits_per_dim) and `bound.png` into the run's folder and logs the picture.

    Entry t is the term L_{t-1}: the decoder's at t = 1, a KL at each other.
    """

    def on_test_end(self, trainer: Trainer, module: Any) -> None:
        bound = getattr(module, "bound", None)
        if bound is None or not trainer.is_global_zero:
            return
        rows = [(t, bits) for t, bits in enumerate(bound.tolist(), start=1) if bits == bits]  # measured at all
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        with (root / "bound.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("t", "bits_per_dim"), *rows])
        draw(bound, root / "bound.png")
        loggers: list[Any] = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        for logger in loggers:
            logger.log_image("test/bound", [Image.open(root / "bound.png")], step=module.steps_done)


def draw(bound: Tensor, path: Path) -> None:
    """Saves the curve of the terms (T,) as a picture, both axes logarithmic, the decoder no lower than the rest."""
    from matplotlib.figure import Figure  # half a second that only a test has to wait for

    decoder, *between = bound.tolist()
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    lowest = min((bits for bits in between if bits > 0), default=decoder) / 2
    axes.loglog(range(2, len(between) + 2), between, color="tab:blue", label="KL, t = 2 … T")
    axes.loglog([1], [max(decoder, lowest)], "o", color="tab:orange", label=f"decoder, t = 1: {decoder:.2g}")
    axes.set(xlabel="t", ylabel="bits/dim", title="Terms of the variational bound")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
