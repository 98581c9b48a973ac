"""Edits: pictures changed, or explained, by a diffusion model that was trained to draw.

    interpolate   x_T of either image by the sampler run backwards; images of the noises on the great circle between
    inpaint       unknown pixels drawn beside the known ones, each step taken several times (RePaint)
    vary          noise added up to a time t, and taken away again (SDEdit)
    invert        the noise x_T of an image, and the image that it makes
    denoise       E[x_0 | x_t], one prediction, of an image with known noise
    film          the way of samples from noise to image

Everything goes through the model's `generate`: conditions, guidance, first stage and the samples' seeds are those of
samples that are drawn.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random
from .conditioning.base import Asked
from .guidance import Guided
from .modules.base.generative import Generative
from .samplers import Sampler
from .samplers.base import Watch, slerp
from .samplers.spacing import even

AT_ONCE = 64  # images that are made at once, at most
ACTIONS = ("interpolate", "inpaint", "vary", "invert", "denoise", "film")
GREY = 127.5  # grey levels in one unit of [-1, 1]


def rms(a: Tensor, b: Tensor) -> float:
    """The root mean square of the difference of images in [-1, 1], in grey levels of 0 … 255."""
    return float(((a.double() - b.double()) * GREY).square().mean().sqrt())


def check_known(known: Tensor, size: Sequence[int]) -> None:
    """Raise ValueError if a mask (1, H, W) of what is known is not of 0 and 1, of this size, and of both."""
    if known.shape != (1, *size) or not ((known == 0) | (known == 1)).all():
        raise ValueError(
            f"known has shape {list(known.shape)}, but it is a 0 or 1 for each pixel of the image: give "
            f"{[1, *size]} of these"
        )
    if known.all():
        raise ValueError(
            "the mask keeps every pixel, so that there is none to draw: paint white what is to be drawn anew"
        )
    if not known.any():
        raise ValueError(
            "the mask keeps no pixel, so that there is nothing to fit to: leave black what is to stay, or use predict"
        )


class Edits:
    """Edits by one model, one sampler and one condition. Images are (C, H, W) in [-1, 1], of the model's shape.

    Sample number i of `inpaint`, `vary` and `film` is a function of the seed and i: bitwise at the same n, else to
    rounding.

    Args:
        model: a `Generative`; all but `film` need one that is a denoiser at all times, such as a `Diffusion`.
        sampler: the reverse loop; None is the one that `predict` takes, DDIM of 50 steps.
        y: the condition of all images, as `generate` takes it. None is the null condition, so that the picture alone
            says what it shows; for `film` it is the conditioner's choice by the samples' numbers, as for `generate`.
        guidance: the scale of `ClassifierFree`, or a `Guidance`; None is none.
        seed: of all noise.
        watch: called with t and x_t where each step of a loop starts, and at its end; see `calls`.

    Raises:
        ValueError: if the model has no way from noise to image, or the sampler or the guidance is none for it.
    """

    def __init__(
        self,
        model: Generative,
        sampler: Sampler | None = None,
        y: Asked | None = None,
        guidance: Guided = None,
        seed: int = 0,
        watch: Watch | None = None,
    ) -> None:
        if (own := model.drawn_by()) is None:
            raise ValueError(
                f"{type(model).__name__} makes an image in one go, so that there is no way from noise to image to "
                "edit on: give the checkpoint of a Diffusion"
            )
        kind, arguments = own
        self.model, self.y, self.guidance, self.watch = model, y, guidance, watch
        self.sampler: Sampler = kind(**arguments) if sampler is None else sampler
        self.seed = random.check_seed(seed)
        model.check(self.sampler, guidance)

    # What an action needs, before any work

    def check(self, action: str) -> None:
        """Raise ValueError if the model, or the sampler, cannot do one of `ACTIONS`."""
        name = type(self.model).__name__
        if action == "film":
            if len(self.model.angles(self.sampler)) < 3:
                raise ValueError(
                    f"the sampler makes an image in one step, which is no film: give {type(self.sampler).__name__} "
                    "more steps"
                )
            return
        if not self.model.has_bound:
            raise ValueError(
                f"{name} is a student that knows the way to an image in few steps alone, but an edit starts from any "
                "noise: give the checkpoint of a Diffusion, such as its teacher's"
            )
        if action in ("interpolate", "invert") and not self.sampler.deterministic:
            raise ValueError(
                f"{type(self.sampler).__name__} adds noise of its own, so that no one x_T belongs to an image: "
                f"{action} by a sampler without, such as DDIM(eta=0)"
            )
        if action == "denoise" and tuple(self._latent_shape) != tuple(self.model.shape):
            raise ValueError(
                "the model diffuses latents, and noise of pixels is no such noise of latents: denoise by a model of "
                "pixels"
            )
        self._condition(1)

    def calls(
        self, action: str, n: int = 1, frames: int = 2, strength: float = 1.0, resample: int = 10, sigma: float = 1.0
    ) -> int:
        """How often `watch` is called: once a step and once at the end of each loop, for a bar over an action."""
        schedule, loops = self._schedule, -(-n // AT_ONCE)
        whole = len(self.sampler.times(schedule))
        if action == "interpolate":
            return whole * (1 + -(-frames // AT_ONCE))
        if action == "inpaint":
            return loops * len(self.sampler.times_again(schedule, resample))
        if action == "vary":
            times = len(self.sampler.times_from(schedule, strength))
            return loops * times if times > 1 else 0
        if action == "denoise":
            return 2 if self.time(sigma)[0] else 0
        return 2 * whole if action == "invert" else whole

    # The actions

    def interpolate(self, a: Tensor, b: Tensor, frames: int = 8) -> Tensor:
        """Images from a to b, (frames, C, H, W), the first and the last being a and b as their noises make them again.

        Both are inverted by the deterministic sampler. Frame k is made of the noise on the great circle between the two
        at k/(frames - 1) of the way, so that it is as long as noise is.

        Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, section 4.3 and appendix
        D.5.

        Raises:
            ValueError: if frames is below 2, or the sampler adds noise of its own.
        """
        if frames < 2:
            raise ValueError(f"frames is {frames}, but a way from one image to another has two ends: give at least 2")
        self.check("interpolate")
        start, end = self._noise(self._encoded(torch.stack([self._image(a), self._image(b)]))).split(1)
        x_T = torch.cat([slerp(start, end, k / (frames - 1)) for k in range(frames)])
        return self._again(x_T)

    def inpaint(self, image: Tensor, known: Tensor, n: int = 4, resample: int = 10) -> Tensor:
        """Images (n, C, H, W) that are `image` where `known` is 1, and drawn anew beside it where it is 0.

        Of latents, those are known of which all pixels are; the known pixels of the result are the image's own.

        Paper: RePaint: inpainting using denoising diffusion probabilistic models. Lugmayr et al., 2022, arXiv
        2201.09865, algorithm 1.

        Args:
            image: (C, H, W) in [-1, 1].
            known: (1, H, W) of 0 and 1.
            n: how many, at least 1.
            resample: how often each step is taken, at least 1; one that is taken once is drawn without a look at what
                surrounds it.

        Raises:
            ValueError: if all or none of the pixels are known, or a number is out of its range.
        """
        image = self._image(image)
        known = torch.as_tensor(known, device=image.device).to(image)
        check_known(known, image.shape[1:])
        self.check("inpaint")
        self.sampler.times_again(self._schedule, resample)
        x_0 = self._encoded(image[None])
        of_latent = 1 - F.adaptive_max_pool2d(1 - known[None], x_0.shape[2:])

        def loop(denoise: Any, schedule: Any, x_T: Tensor, c: Any, seeds: Any) -> Tensor:
            given = x_0.expand_as(x_T)
            return self.sampler.inpaint(
                denoise, schedule, x_T, given, of_latent, c, seeds, resample=resample, watch=self.watch
            )

        return torch.where(known.bool(), image, self._made(n, loop))

    def vary(self, image: Tensor, strength: float, n: int = 4) -> Tensor:
        """Images (n, C, H, W) like one: as much noise is added as `strength` says, and taken away again.

        Paper: SDEdit: guided image synthesis and editing with stochastic differential equations. Meng et al., 2021,
        arXiv 2108.01073.

        Args:
            image: (C, H, W) in [-1, 1].
            strength: in [0, 1], the angle of noise and signal as a part of that at T, as `Sampler.times_from` takes it;
                0, or what is nearer to it than to the sampler's first angle, gives the image itself, bit for bit, and
                1 new samples, which `generate` makes of the same seed.
            n: how many, at least 1.

        Raises:
            ValueError: if a number is out of its range.
        """
        image = self._image(image)
        random.check_numbers(0, n)
        self.check("vary")
        if len(self.times(strength)) == 1:
            return image.expand(n, *image.shape).clone()
        x_0 = self._encoded(image[None])

        def loop(denoise: Any, schedule: Any, x_T: Tensor, c: Any, seeds: Any) -> Tensor:
            return self.sampler.vary(denoise, schedule, x_0, x_T, strength, c, seeds, self.watch)

        return self._made(n, loop)

    def invert(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The noise x_T of an image, in the shape that the model diffuses, and the image that it makes, (C, H, W).

        Paper: Denoising diffusion implicit models. Song, Meng, Ermon, 2020, arXiv 2010.02502, section 4.3.

        Raises:
            ValueError: if the sampler adds noise of its own.
        """
        self.check("invert")
        x_T = self._noise(self._encoded(self._image(image)[None]))
        return x_T[0], self._again(x_T)[0]

    def denoise(self, image: Tensor, sigma: float) -> Tensor:
        """E[x_0 | x_0 + σ·ε = image], (C, H, W): the model's one prediction at the time t of `time`, of √ᾱ_t·image.

        This is the image of least squared error, and a blurred one where much noise hides which of several it was.

        Args:
            image: (C, H, W), x_0 + sigma·noise with x_0 in [-1, 1].
            sigma: at least 0; what is nearer to 0 than to σ_1 gives the image itself.

        Raises:
            ValueError: if sigma is below 0 or not finite, or the model diffuses latents.
        """
        t, _ = self.time(sigma)
        image = self._image(image)
        self.check("denoise")
        if t == 0:
            return image.clone()

        def loop(denoise: Any, schedule: Any, x_T: Tensor, c: Any, seeds: Any) -> Tensor:
            x_t = schedule.scales(t, image[None])[0] * image[None]
            x_0 = denoise(x_t, t, c).x_0
            if self.watch is not None:
                self.watch(t, x_t)
                self.watch(0, x_0)
            return x_0

        return self._made(1, loop)[0]

    def time(self, sigma: float) -> tuple[int, float]:
        """The time t in 0 … T whose σ_t = √(1 - ᾱ_t)/√ᾱ_t is nearest to sigma, and that σ_t.

        Raises:
            ValueError: if sigma is below 0 or not finite.
        """
        if not 0 <= sigma < math.inf:
            raise ValueError(
                f"sigma is {sigma}, but it is the deviation of noise in pixels of [-1, 1]: give a number of at least 0"
            )
        levels = self._schedule.log_sigma(torch.arange(self._schedule.T + 1)).exp()
        t = int((levels - sigma).abs().argmin())
        return t, float(levels[t])

    def times(self, strength: float) -> list[int]:
        """The times that `vary` visits, from the one that its noise belongs to: see `Sampler.times_from`."""
        return self.sampler.times_from(self._schedule, strength)

    def film(self, n: int, frames: int) -> list[Tensor]:
        """The way of samples number 0 … n - 1 from noise to image: each frame is (n, C, H, W), decoded.

        Frames are those of the sampler's x_t whose angles φ are nearest to evenly spaced ones (see `spacing.even`); the
        first is x_T, the last what `generate` returns. Where the sampler visits fewer times, all are frames.

        Raises:
            ValueError: if n is below 1 or frames below 2, or the sampler takes one step.
        """
        if frames < 2:
            raise ValueError(f"frames is {frames}, but a film goes from noise to image: give at least 2")
        random.check_numbers(0, n)
        self.check("film")
        shown, found = set(even(self.model.angles(self.sampler), frames)), list[Tensor]()

        def watch(t: int, x_t: Tensor) -> None:
            if t in shown:
                found.append(self.model.decoded(x_t))
            if self.watch is not None:
                self.watch(t, x_t)

        self.model.generate(n, partial(self.sampler, watch=watch), self.y, self.guidance, self.seed)
        return found

    # How they are made

    @property
    def _schedule(self) -> Any:
        return self.model.schedule

    @property
    def _latent_shape(self) -> Any:
        return getattr(self.model, "latent_shape", self.model.shape)

    def _image(self, image: Tensor) -> Tensor:
        """The image on the model's device; raise ValueError if it is none for the model."""
        if image.shape != tuple(self.model.shape) or not image.is_floating_point():
            raise ValueError(
                f"the image has shape {list(image.shape)} and type {image.dtype}, but the model's are floats of shape "
                f"{list(self.model.shape)}: bring it to these, in [-1, 1]"
            )
        return image.to(self.model.device)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        return self.model.encoded(images)

    def _condition(self, n: int) -> Any:
        """What `generate` is asked for n images: y, the null condition where none is given, None without conditions."""
        labels = self.model.labels(self.guidance)
        if self.y is not None or not labels.conditional:
            return self.y
        try:
            return labels.null(n)
        except ValueError as error:
            raise ValueError(
                "the model takes a condition and was never trained without one, so it must be told what the picture "
                "shows: give y, in a command --y or --prompt"
            ) from error

    def _made(self, n: int, loop: Callable[..., Tensor]) -> Tensor:
        """Samples number 0 … n - 1 of a loop that is called as a sampler, decoded."""
        random.check_numbers(0, n)
        return self.model.generate(n, loop, self._condition(n), self.guidance, self.seed, batch_size=min(n, AT_ONCE))

    def _noise(self, x_0: Tensor) -> Tensor:
        """x_T of each x_0 (B, …), by the sampler run backwards."""
        found = list[Tensor]()

        def loop(denoise: Any, schedule: Any, x_T: Tensor, c: Any, seeds: Any) -> Tensor:
            found.append(self.sampler.invert(denoise, schedule, x_0, c, self.watch))
            return found[-1]

        self._made(len(x_0), loop)
        return found[0]

    def _again(self, x_T: Tensor) -> Tensor:
        """The images (B, C, H, W) of given noises."""
        made = list[Tensor]()
        for first, size in random.blocks(0, len(x_T), AT_ONCE):

            def loop(
                denoise: Any, schedule: Any, own: Tensor, c: Any, seeds: Any, x_T: Tensor = x_T[first : first + size]
            ) -> Tensor:
                return self.sampler(denoise, schedule, x_T, c, seeds, self.watch)

            made.append(self._made(size, loop))
        return torch.cat(made)
