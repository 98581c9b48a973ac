"""A frozen autoencoder as a first stage, with its published scale and shift or measured ones."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..denoising import tensor_of
from ..networks.base.moments import Moments, moments
from .autoencoder import FrozenAutoencoder
from .base import FirstStage


class Pretrained(FirstStage):
    """A frozen autoencoder: one of diffusers', or one that `modules.Autoencoder` trained.

    Its weights are no part of a checkpoint: they are stored once a run, see `frozen`. One of diffusers' needs the
    optional package, `pip install diffusion_lightning[diffusers]`.

    Args:
        model: a folder of diffusers' (`AutoencoderKL`, `AutoencoderTiny`, `AutoencoderDC`, `VQModel`, or a pipeline
            with one), a name on the hub, a checkpoint or a run's folder of an `Autoencoder`, or a file of a run's
            `checkpoints/frozen`.
        scale: one number, or one a channel; "measure" takes 1/std of each channel over the training set, once, and
            keeps it in the checkpoint. None is the published one, and "measure" if there is none.
        shift: one number, or one a channel; None is the published one, the measured mean of each channel, or 0.
        pixels: the range of pixels that the autoencoder takes, (-1, 1) or (0, 1).
        precision: in which it computes; None is that of its file in a run's folder, else float32.
        slices: images that are encoded or decoded at a time; None is all.
        tile: decode images in overlapping tiles, as diffusers' autoencoders can: less memory, and faint differences.
            Images are encoded whole.
        compile: let torch.compile make code of it.

    Raises:
        ValueError: if it is no autoencoder of a known kind, or scale, shift or pixels are not those for which it was
            published.
    """

    scale: Tensor
    shift: Tensor
    _measured = False  # as far as was seen: to look again, a step would wait for the device

    def __init__(
        self,
        model: str,
        scale: float | Sequence[float] | Literal["measure"] | None = None,
        shift: float | Sequence[float] | None = None,
        pixels: tuple[float, float] = (-1.0, 1.0),
        precision: Literal["float32", "bfloat16", "float16"] | None = "float32",
        slices: int | None = 16,
        tile: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = FrozenAutoencoder(model, precision)
        self.layout = self.frozen.layout
        if tuple(pixels) not in ((-1.0, 1.0), (0.0, 1.0)):
            raise ValueError(f"pixels is {list(pixels)}, but autoencoders take [-1, 1] or [0, 1]: give one of these")
        if slices is not None and slices < 1:
            raise ValueError(f"slices is {slices}, but images are encoded one at a time at least: give at least 1")
        if tile and not self.layout.tiles:
            raise ValueError(f"tile is true, but {self.layout.name} of {model} cannot decode in tiles: leave tile out")
        self.pixels, self.slices, self.tile, self.compiles = tuple(pixels), slices, tile, compile
        found_scale, found_shift = self._settled(scale, shift)
        for name, value in (("scale", found_scale), ("shift", found_shift)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64).view(-1, 1, 1))

    def _settled(self, scale: Any, shift: Any) -> tuple[list[float], list[float]]:
        """Scale and shift as lists of one number or one a channel; NaN is to be measured."""
        published, model, channels = self.layout.published, self.frozen.source, self.layout.latent_channels
        for name, given in (("scale", scale), ("shift", shift)):
            numbers = _numbers(given)
            if len(numbers) not in (0, 1, channels) or not all(map(math.isfinite, numbers)) or (
                name == "scale" and not all(numbers)
            ):  # fmt: skip
                raise ValueError(
                    f"the first stage's {name} is {given}, but {model} has latents of {channels} channels: give one "
                    f"number, or {channels}" + (", none of them 0" if name == "scale" else "")
                )
        if published is None and scale is None:
            scale = "measure"
        if scale == "measure":
            if shift is not None:
                raise ValueError(
                    f"scale is to be measured, but shift is {shift}: leave shift out, and it is measured with the scale"
                )
            return [math.nan] * channels, [math.nan] * channels
        if published is not None and len(set(_numbers(scale))) <= 1:
            if self.pixels != (-1.0, 1.0):
                raise ValueError(
                    f"pixels is {list(self.pixels)}, but the published scale of {model}, {_few(published.scale)}, is "
                    "for pixels in [-1, 1]: leave pixels out, or give a scale of its own for each channel, or measure"
                )
            for name, given, known in (("scale", scale, published.scale), ("shift", shift, published.shift)):
                of = _numbers(given)
                if any(abs(a - x) > 1e-6 * abs(x) for a in of for x in known):
                    raise ValueError(
                        f"the first stage's {name} is {given}, but {model} was published with {_few(known)}: leave "
                        f"{name} out, or give scale: measure"
                    )
            return published.scale, published.shift
        if published is not None and shift is None and any(published.shift):
            raise ValueError(
                f"the first stage has a scale of its own for each channel and no shift, but {model} was published with "
                f"the shift {_few(published.shift)}: give the shift that belongs to this scale, or scale: measure"
            )
        return _numbers(scale), _numbers(shift) or [0.0]

    def _apply(self, fn: Any, recurse: bool = True) -> "Pretrained":
        """Scale and shift move to a device, but stay float64 in whatever type the model is."""
        kept = {name: x for name, x in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, x in kept.items():
            self._buffers[name] = x.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        channels, height, width = shape
        own = self.layout
        if channels != own.in_channels or height % own.factor or width % own.factor:
            raise ValueError(
                f"images have shape {list(shape)}, but {self.frozen.source} takes {own.in_channels} channels and sizes "
                f"that are multiples of {own.factor}: give the data such a size, or take another first stage"
            )
        return own.latent_channels, height // own.factor, width // own.factor

    def image_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        channels, height, width = shape
        own = self.layout
        if channels != own.latent_channels:
            raise ValueError(
                f"the network takes latents of {channels} channels, but those of {self.frozen.source} have "
                f"{own.latent_channels}: give the network in_channels: {own.latent_channels}, or take another first "
                "stage"
            )
        return own.in_channels, height * own.factor, width * own.factor

    @torch.no_grad()
    def moments(self, image: Tensor) -> Moments:
        x = image if self.pixels == (-1.0, 1.0) else (image + 1) / 2
        made = [moments(part).float() for part in self._sliced("encode", x)]
        log_vars = [part.log_var for part in made if part.log_var is not None]
        return Moments(torch.cat([part.mean for part in made]), torch.cat(log_vars) if log_vars else None)

    def scaled(self, raw: Tensor) -> Tensor:
        self._check_measured()
        return ((raw - self.shift) * self.scale).to(raw.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        self._check_measured()
        if not z.isfinite().all():
            raise ValueError(
                "the latents that are to be decoded are not finite, so the model that made them has diverged: use an "
                "earlier checkpoint, or a smaller learning rate"
            )
        raw = (z / self.scale + self.shift).to(z.dtype)
        dtype = torch.promote_types(z.dtype, torch.float32)
        image = torch.cat([tensor_of(part).to(dtype) for part in self._sliced("decode", raw)])
        if not image.isfinite().all():
            raise ValueError(
                f"{self.frozen.source} decodes to what is not finite in {self.frozen.description['precision']}: give "
                "its precision as bfloat16 or float32"
            )
        return (image if self.pixels == (-1.0, 1.0) else 2 * image - 1).clamp(-1, 1)

    def _check_measured(self) -> None:
        if not self._measured and self.measures:
            raise ValueError(
                f"the scale of {self.frozen.source} is to be measured, and no training has done so: fit the model, or "
                "give a scale"
            )
        self._measured = True

    def _sliced(self, verb: str, x: Tensor) -> list[Any]:
        """What the autoencoder makes of x, in its own precision, some at a time."""
        network = self.frozen.network
        own = next(network.parameters())
        if own.device != x.device:
            network.to(x.device, memory_format=torch.channels_last if x.device.type == "cuda" else None)
        if self.layout.tiles:
            network.use_tiling = self.tile and verb == "decode"
        made = self.frozen.compiled[verb] if self.compiles else getattr(network, verb)
        with torch.autocast(x.device.type, enabled=False):
            return [made(part) for part in x.to(own.dtype).split(self.slices or len(x))]

    def same(self, other: FirstStage | None) -> bool:
        return (
            isinstance(other, Pretrained)
            and (other.frozen.hash, other.pixels) == (self.frozen.hash, self.pixels)
            and all(
                torch.allclose(a.cpu(), b.cpu(), equal_nan=True)
                for a, b in zip(self.buffers(), other.buffers(), strict=True)
            )
        )

    def key(self) -> str:
        """Of the weights, their precision and the pixels' range: scale and shift come after the moments."""
        return hashlib.blake2b(f"{self.frozen.hash} {list(self.pixels)}".encode(), digest_size=16).hexdigest()

    @property
    def measures(self) -> bool:
        return bool(self.scale.isnan().any())

    def measure(self, of: Iterable[Tensor | Moments], total: Callable[[Tensor], Tensor]) -> None:
        """Of each channel the mean, and 1/std, E[z²] = E[mean² + exp(log_var)]: exact, without a draw.

        Raises:
            ValueError: if a channel is constant.
        """
        sums = torch.zeros(3, self.layout.latent_channels, dtype=torch.float64)
        for x in of:
            mean, log_var = x if isinstance(x, Moments) else self.moments(x)
            mean = mean.double()
            square = mean.square() + (0 if log_var is None else log_var.double().exp())
            one = torch.ones_like(mean)
            sums += torch.stack([part.sum((0, 2, 3)) for part in (one, mean, square)]).cpu()
        n, first, second = total(sums)
        mean = first / n
        std = (second / n - mean.square()).clamp(min=0).sqrt()
        if not std.isfinite().all() or (std == 0).any():
            raise ValueError(
                f"the latents of {self.frozen.source} over the training set have standard deviations {std.tolist()}: "
                "give its scale, or take another first stage"
            )
        for name, value in (("scale", 1 / std), ("shift", mean)):
            getattr(self, name).copy_(value.view(-1, 1, 1))


def _numbers(given: Any) -> list[float]:
    if given is None or given == "measure":
        return []
    return [float(given)] if isinstance(given, int | float) else [float(x) for x in given]


def _few(numbers: Sequence[float]) -> str:
    return ", ".join(f"{x:g}" for x in numbers)
