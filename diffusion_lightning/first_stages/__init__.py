"""First stages: from images to the latents that a model diffuses, and back. `base` has the interface."""

from .base import FirstStage as FirstStage
from .base import PixelSpace as PixelSpace
from .pretrained import Pretrained as Pretrained
