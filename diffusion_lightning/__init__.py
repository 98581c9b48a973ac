"""Denoising diffusion probabilistic models as reproducible PyTorch Lightning experiments.

schedule → denoiser → sampler
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load as load

__version__ = version("diffusion_lightning")
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Loads on first use: the mathematics does not wait for Lightning."""
    if name == "load":
        return import_module(".loading", __name__).load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
