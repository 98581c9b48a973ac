"""First stages: the way from images to the latents that a model diffuses, and back.

    z = (z_raw - shift)·scale,  z_raw ~ q(z_raw | image);        image = decode(z/scale + shift), clamped to ±1

Scale and shift make latents of a standard deviation near 1, for which the schedules are made. Pixels need no stage:
`PixelSpace` is the identity.

Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752, section
3.1 and appendix G.
"""

import hashlib
import json
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..frozen import parts
from ..networks.base.moments import Moments
from ..random import Draw

UNIT = (0.5, 2.0)  # of a latent's standard deviation; beyond it a schedule sees too much noise or too little


class FirstStage(nn.Module, ABC):
    """Images (B, C, H, W) in [-1, 1] to latents (B, C', H', W'), and back."""

    latent = True  # whether latents are no pixels: not within ±1, and of no levels
    _looked = False

    @abstractmethod
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the latent of an image (C, H, W); raise ValueError if there is none."""

    @abstractmethod
    def image_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the image of a latent (C', H', W')."""

    @abstractmethod
    def moments(self, image: Tensor) -> Moments:
        """The distribution of raw latents, before scale and shift, of images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def scaled(self, raw: Tensor) -> Tensor:
        """Latents of raw ones."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of latents."""

    def sample(self, of: Moments, draw: Draw) -> Tensor:
        """Latents of moments, a fresh one at each draw."""
        if of.log_var is None:
            return self.scaled(of.mean)
        return self.scaled(of.sample(draw.normal("latent", of.mean)))

    def encode(self, image: Tensor | Moments, draw: Draw) -> Tensor:
        """Latents of images, or of moments that were computed before; warns if the first ones are not of unit scale.

        Raises:
            ValueError: if the first ones are not finite.
        """
        z = self.sample(image if isinstance(image, Moments) else self.moments(image), draw)
        if self.latent and not self._looked:
            self._looked = True
            if not z.isfinite().all():
                raise ValueError(
                    "the latents of the first batch are not finite, but its images are: give the first stage's "
                    "precision as bfloat16 or float32"
                )
            if not UNIT[0] <= (std := float(z.std(correction=0))) <= UNIT[1]:
                warnings.warn(
                    f"the latents of the first batch have a standard deviation of {std:.3g}, but the schedules are "
                    "made for 1: give the first stage scale: measure, or its own scale",
                    stacklevel=2,
                )
        return z

    def same(self, other: "FirstStage | None") -> bool:
        """Whether another stage's latents are these; None has none, as pixels have."""
        return other is self

    def key(self) -> str:
        """32 hexadecimal digits: a hash of what `moments` follows from, by which latents are kept in the cache.

        Here the class and its file, its frozen parts, and all of its tensors.
        """
        kind = type(self)
        frozen = {name: part.hash for name, part in parts(self).items()}
        found = hashlib.blake2b(json.dumps([kind.__module__, kind.__qualname__, frozen]).encode(), digest_size=16)
        if (source := getattr(sys.modules.get(kind.__module__), "__file__", None)) is not None:
            found.update(Path(source).read_bytes())
        for name, x in sorted(self.state_dict().items()):
            found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
            found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def measures(self) -> bool:
        """Whether its scale and shift are still to be measured on the training set."""
        return False

    def measure(self, of: Iterable[Tensor | Moments], total: Callable[[Tensor], Tensor]) -> None:
        """Measures scale and shift on images, or on their moments, those of one rank; `total` adds up the ranks'."""


class PixelSpace(FirstStage):
    """The identity: the model diffuses pixels."""

    latent = False

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        channels, height, width = shape
        return channels, height, width

    image_shape = latent_shape

    def moments(self, image: Tensor) -> Moments:
        return Moments(image)

    def scaled(self, raw: Tensor) -> Tensor:
        return raw

    def decode(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)

    def same(self, other: FirstStage | None) -> bool:
        return other is None or not other.latent
