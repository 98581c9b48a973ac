"""Other projects' training and sampling as they ship them, on our images and at the size of our network."""

from pathlib import Path
from typing import Any

from diffusion_lightning.networks import UNet

from .base import Peer as Peer
from .base import Task as Task


def made(name: str, task: Task, network: UNet, folder: Path) -> Peer:
    """A peer by its short name; what the other does not need is not imported."""
    if name == "diffusers":
        from .diffusers import Diffusers

        return Diffusers(task, network, folder)
    from .lucidrains import Lucidrains

    kind: Any = Lucidrains
    return kind(task, network, folder)
