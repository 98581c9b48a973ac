"""`diffusion-lightning export`: a checkpoint's averaged model for others to use, in a folder with its model card."""

from argparse import Namespace
from pathlib import Path

from ..interop.export import export
from .run_folder import chosen


def main(given: Namespace) -> None:
    """Writes the folder, and says what is in it."""
    folder = Path(given.dir)
    export(chosen(given.ckpt), folder, given.format, given.trust)
    print("\n".join(f"wrote {path}" for path in sorted(folder.rglob("*")) if path.is_file()))
