"""`diffusion-lightning app`: a page in the browser to draw with checkpoints, and to edit what they drew."""

import contextlib
import os
import shutil
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..app import server
from ..app.commands import Places
from ..app.work import Studio
from ..distributed import preemption
from . import devices

PREFIX = "diffusion_lightning_app_"


def main(given: Namespace) -> None:
    """Opens the checkpoints, serves the page until Ctrl-C, and removes what was drawn."""
    if find_spec("gradio") is None:
        raise ValueError(
            "the page needs the package gradio, which is not installed: pip install 'diffusion_lightning[app]'"
        )
    with contextlib.closing(server.bound(given.host, given.port)) as listening:
        places = Places(devices.chosen(given.device, ("cuda", "mps")), tuple(given.trust))
        with folder() as own, contextlib.closing(Studio(given.ckpts, places, own)) as studio:
            server.settle()
            from ..app.page import page  # imports Gradio, which takes seconds

            with server.serving(page(studio), listening):
                host = listening.getsockname()[0]
                if not server.is_local(host):
                    print(
                        f"--host is {host}: whoever reaches this address can use the page and this machine's device, "
                        "and no password is asked for"
                    )
                print(f"open {server.address(listening)} in a browser; Ctrl-C ends it", flush=True)
                preemption.keeps(lambda: "the page is closed, and what it drew is removed")
                threading.Event().wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder for what the page draws and is given, as long as the block lasts."""
    own = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(own / "uploads")
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
