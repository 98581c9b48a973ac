"""The curve of the variational bound's terms over t, which shows where the bits go."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..modules.base.generative import generative
from .base import save_picture, save_table


class BoundCurve(Callback):
    """After `test`, writes `bound.csv` (t, bits_per_dim) and `bound.png` into the run's folder and logs the picture.

    Entry t is the term L_{t-1}: the decoder's at t = 1, a KL at each other.
    """

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        bound = getattr(module, "bound", None)
        if bound is None or not trainer.is_global_zero:
            return
        rows = [(t, bits) for t, bits in enumerate(bound.tolist(), start=1) if bits == bits]  # measured at all
        save_table(Path(trainer.default_root_dir) / "bound.csv", [("t", "bits_per_dim"), *rows])
        save_picture(trainer, "bound.png", draw(bound), "test/bound", generative(module, self).steps_done)


def draw(bound: Tensor) -> Tensor:
    """The curve of the terms (T,) as bytes (H, W, 3), both axes logarithmic, the decoder no lower than the rest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba()))[..., :3].contiguous()
