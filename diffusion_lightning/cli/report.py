"""`diffusion-lightning report RUN …`: a page of a run's figures and pictures, or of several runs side by side."""

import contextlib
import json
import sys
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from ..distributed import preemption
from ..files import check_writable, write_text
from ..report import page
from ..report.run import ABOUT, Run, is_run

PAGE = "report.html"
LONG = 2**24  # bytes of tables from which on their reading takes seconds


def main(given: Namespace) -> None:
    """Writes the page, or with `--png` the charts alone as pictures."""
    folders = [Path(run) for run in given.runs]
    for k, folder in enumerate(folders):
        _check(folder, folders[:k])
    out = Path(given.out) if given.out else folders[0] / PAGE if len(folders) == 1 else Path(PAGE)
    tables = [folder / name for folder in folders for name in ("metrics.csv", "validate.csv", "test.csv")]
    total = sum(table.stat().st_size for table in tables if table.is_file())
    with tqdm(desc="read", total=total, unit="B", unit_scale=True, leave=False, disable=total < LONG) as bar:
        runs = [Run(folder, watch=lambda size: bar.update(min(size, total - bar.n))) for folder in folders]
        if given.out is not None or given.png is None:
            page.check(runs, out)
            page.write(runs, out)
            print(f"report      {out}")
        if given.png is not None:
            check_writable(given.png)
            drawn = page.pictures(runs, Path(given.png))
            print(f"charts      {len(drawn)} in {given.png}")
            if not drawn:
                print("note: there are no figures to draw yet", file=sys.stderr)


def ended(root: Path, steps: int) -> None:
    """Writes down that a run came to its end, after so many steps, and was not stopped."""
    with contextlib.suppress(OSError):  # of a disk that is full, about which the training has warned
        write_text(root / ABOUT, json.dumps({**Run(root).about, "ended": True, "steps": steps}, indent=1) + "\n")


def at_the_end(root: Path) -> None:
    """The report of a run whose command has done its work: if it fails, that is a note and costs nothing else."""
    preemption.finish()  # what a signal would interrupt now has been done
    try:
        page.write([Run(root)], root / PAGE)
        print(f"report      {root / PAGE}")
    except Exception as error:  # whatever a run's folder holds
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"note: the report could not be written ({reason}); all else is there", file=sys.stderr)


def _check(folder: Path, earlier: list[Path]) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}, but a report is of a run's folder: give one, such as runs/digits")
    if not is_run(folder):
        raise ValueError(
            f"{folder} holds no metrics.csv, config.yaml or checkpoints/last.ckpt, so it is no run's folder: give one; "
            f"diffusion-lightning runs {folder} lists those below it"
        )
    if any(folder.samefile(other) for other in earlier):
        raise ValueError(f"{folder} is given twice, but a report compares different runs: give it once")
