"""`diffusion-lightning export`: a checkpoint's averaged model for others to use, in a folder with its model card."""

from argparse import Namespace
from pathlib import Path

from ..interop.export import export


def main(given: Namespace) -> None:
    """Writes the folder, and says what is in it."""
    folder = Path(given.dir)
    export(given.ckpt, folder, given.format, given.trust)
    print("\n".join(f"wrote {path}" for path in sorted(folder.rglob("*")) if path.is_file()))
