"""Where a run comes from: the commit of the code and the images themselves."""

import hashlib
import subprocess
from typing import Any

from ..metrics.evaluation import digest


def git_commit() -> str | None:
    """The commit checked out in the working folder, with `-dirty` where tracked files differ from it; None outside."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            encoding="utf-8",
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def fingerprint(data: Any) -> str | None:
    """A hash of the training images of a data module, None for one that cannot show them."""
    return digest(data.reference("train")) if hasattr(data, "reference") else None


def contents(data: Any) -> dict[str, str]:
    """Hashes of the images and labels that a data module holds now, by their names."""
    found = {}
    for split, (_, y) in getattr(data, "splits", {}).items() if hasattr(data, "reference") else ():
        found[f"{split} images"] = digest(data.reference(split))
        found[f"{split} labels"] = hashlib.blake2b(y.cpu().contiguous().numpy().data, digest_size=16).hexdigest()
    return found
