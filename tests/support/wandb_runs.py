"""What wandb's files hold."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


def inspected(file: Path) -> list[dict[str, Any]]:
    """All that one file of wandb's holds; a killed run's as far as it goes."""
    read = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
    text = subprocess.run(read, capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def records(folder: Path, ended: bool = True) -> list[dict[str, Any]]:
    """All that wandb's files in a run's folder hold, file after file.

    wandb's process may write on for a moment after `finalize`: the last file is waited for, unless the run was killed.
    """
    deadline = time.monotonic() + 60
    while True:
        found = (folder / "wandb").glob("*run-????????_??????-*/run-*.wandb")
        files = sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))
        if files and (not ended or any("exit" in record for record in inspected(files[-1]))):
            break
        assert time.monotonic() < deadline, f"of {files} in {folder} the last never got whole"
        time.sleep(0.1)
    return [record for file in files for record in inspected(file)]


def history(folder: Path, ended: bool = True) -> list[dict[str, Any]]:
    """The rows, with their `_step`, in the order in which they were written."""
    rows = [record for record in records(folder, ended) if "history" in record]
    return [{**row["history"]["item"], "_step": row["history"]["step"]["num"]} for row in rows]


def config(folder: Path) -> dict[str, Any]:
    """The run's config, as the last start left it."""
    found: dict[str, Any] = {}
    for record in records(folder):
        found |= record.get("config", {}).get("update", {}) if record["type"] == "config" else {}
    return found
