"""`diffusion-lightning average`: an average of a run's weights whose length is chosen after the training."""

from argparse import Namespace
from pathlib import Path

from .. import checkpoints, frozen
from ..callbacks.checkpoint import AtomicIO
from ..files import check_file
from . import sweep
from .snapshots import Snapshots


def main(given: Namespace) -> None:
    """Writes a checkpoint of one average, which `load`, `predict` and `validate` take, or scores many."""
    if given.sweep:
        return sweep.main(given)
    root, out = Path(given.run), Path(given.out)
    check_file(out)
    last = checkpoints.read(root / "checkpoints/last.ckpt")
    snapshots = Snapshots(root)
    step = snapshots.last if given.step is None else given.step
    snapshots.check(given.sigma_rel, step)
    made = snapshots.checkpoint(last, given.sigma_rel, step)
    frozen.copy(made.get(frozen.KEY), root / "checkpoints", out.parent)
    AtomicIO().save_checkpoint(made, out)
    print(f"wrote {out}: {made[checkpoints.IMPORTED]}, of {len(snapshots.files)} snapshots")
