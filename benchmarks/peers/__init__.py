"""Other projects' training and sampling as they ship them, on our images and at the size of our network."""

from pathlib import Path

from diffusion_lightning.networks import UNet

from .base import Peer as Peer
from .base import Task as Task


def made(name: str, task: Task, network: UNet, folder: Path) -> Peer:
    """A peer by its short name; what the other does not need is not imported."""
    try:
        if name == "diffusers":
            from .diffusers import Diffusers

            return Diffusers(task, network, folder)
        from .lucidrains import Lucidrains

        return Lucidrains(task, network, folder)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error.name} is not installed: run this by `uv run --group bench`") from error
