"""Guidance wraps a denoiser, so that samples show their condition more clearly.

    x̃_0 = x_0' + scale·(x_0 - x_0'),    ε̃ = ε' + scale·(ε - ε')

with x_0', ε' of a worse prediction: of the same network without its condition (`ClassifierFree`), or of a worse network
with it (`AutoGuidance`). `ClassifierGuided` adds the gradient of a classifier of noisy images instead. All of them may
be limited to an interval of the noise's level σ = √(1 - ᾱ_t)/√ᾱ_t, which means the same at any number of steps.

A guidance is an object without a model, so that a configuration can hold it. Called with a denoiser, its conditioner
and the samples' conditions y (B,), it returns what takes the denoiser's place: `(x_t, t, c) -> Prediction`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning.base import Asked, Conditioner, Embedded, joined, rows
from .denoising import Prediction
from .schedules import NO_SIGNAL, Schedule, expand_like

Interval = tuple[float, float]
Denoise = Callable[..., Prediction]


class Guidance(ABC):
    """Wraps a denoiser; a class of the user's own has `__call__` alone."""

    conditioner: Conditioner | None = None  # of the conditions y, if the model itself has none
    shape: tuple[int, ...] | None = None  # (C, H, W) of the images that it guides; None is any
    first_stage: Any = None  # of the model that guides; None is none: it sees pixels

    def prepare(self, load: Callable[[Any], Any]) -> None:  # noqa: B027 most have none
        """Replaces each path of a checkpoint by its model, `load(path)`; called once, before anything is drawn."""

    @abstractmethod
    def __call__(self, denoiser: nn.Module, conditioner: Conditioner, y: Tensor) -> Denoise:
        """What takes the denoiser's place for samples of conditions y (B,).

        Raises:
            ValueError: if this denoiser cannot be guided.
        """


class ClassifierFree(Guidance):
    """ε̃(x_t, c) = ε(x_t, ∅) + scale·(ε(x_t, c) - ε(x_t, ∅)), and x_0 likewise; both evaluated in one batch.

    The scale is 1 + w of the paper: 1 is no guidance, 0 no condition; the larger, the clearer the condition and the
    less samples differ. A predicted variance is that of the conditional half.

    Papers: Classifier-free diffusion guidance. Ho, Salimans, 2022, arXiv 2207.12598, equation 6; Applying guidance in a
    limited interval improves sample and distribution quality in diffusion models. Kynkäänniemi et al., 2024, arXiv
    2404.07724, for the interval; Common diffusion noise schedules and sample steps are flawed. Lin et al., 2023, arXiv
    2305.08891, equations 14 to 16, for the rescaling.

    Args:
        scale: at least 0.
        interval: (low, high) in σ: it guides if low < σ ≤ high, and elsewhere the condition alone is used, in half the
            time; None is everywhere.
        rescale: φ in [0, 1]: the guided output is brought nearer to the deviation of the conditional one, φ being all
            the way; it is the network's raw output that is scaled, and x_0 and ε follow.
        channels: guide the first so many channels alone, as DiT's released code does three of four; None is all.
        negative: a prompt, or a class's number, that takes the place of the null condition: samples are led away from
            it; None is the null condition.

    Raises:
        ValueError: if an argument is out of its range; when it is called, if training never dropped the condition.
    """

    def __init__(
        self,
        scale: float,
        interval: Interval | None = None,
        rescale: float = 0.0,
        channels: int | None = None,
        negative: Asked | None = None,
    ) -> None:
        check(scale, interval)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale is {rescale}, but it is a part of the way: give a number in [0, 1]")
        if channels is not None and channels < 1:
            raise ValueError(f"guidance of {channels} channels guides nothing: give at least 1, or null for all")
        self.scale, self.interval, self.rescale, self.channels = scale, interval, rescale, channels
        self.negative = negative

    def __call__(self, denoiser: nn.Module, conditioner: Conditioner, y: Tensor) -> Denoise:
        null = conditioner.null(1)
        if self.negative is not None:
            null = conditioner.raw(self.negative, 1).to(null.device)
            conditioner.check(null)
        return partial(self._predict, denoiser, conditioner(null))  # embedded once for all steps

    def _predict(self, denoiser: Any, null: Embedded, x_t: Tensor, t: int | Tensor, c: Embedded) -> Prediction:
        if self.scale == 1 or not within(self.interval, denoiser, t):
            return denoiser(x_t, t, c)
        both = joined(c, rows(null, len(x_t)))
        times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        found = denoiser(torch.cat([x_t, x_t]), times, both)
        var_mix = None if found.var_mix is None else found.var_mix[: len(x_t)]
        if self.rescale == 0:
            return Prediction(self._guided(found.x_0), self._guided(found.eps), var_mix)
        output, plain = self._guided(found.output), found.output[: len(x_t)]
        ratio = plain.flatten(1).std(1) / output.flatten(1).std(1)
        output = output * expand_like(1 + self.rescale * (ratio - 1), output)
        made = denoiser.parameterization.prediction(denoiser.schedule, output, x_t, t)
        return made._replace(var_mix=var_mix)

    def _guided(self, of_both: Tensor) -> Tensor:
        with_c, without = of_both.chunk(2)
        guided = torch.lerp(without, with_c, self.scale)
        return (
            guided if self.channels is None else torch.cat([guided[:, : self.channels], with_c[:, self.channels :]], 1)
        )


class AutoGuidance(Guidance):
    """x̃_0 = x_0' + scale·(x_0 - x_0'), ε̃ likewise, with x_0', ε' of a worse model of the same condition, the guide.

    A guide is, for one, a smaller network, or the same one after a part of the training. It has its own table of
    classes and its own schedule: it is asked at the time whose σ is nearest to the model's, in ln σ.

    Paper: Guiding a diffusion model with a bad version of itself. Karras et al., 2024, arXiv 2406.02507, equation 3.

    Args:
        guide: a checkpoint's path, or a model that makes images.
        scale: at least 0; 1 is the model alone.
        interval: see `ClassifierFree`.

    Raises:
        ValueError: if an argument is out of its range; when it is called, if the guide has no such condition.
    """

    def __init__(self, guide: Any, scale: float, interval: Interval | None = None) -> None:
        check(scale, interval)
        self.guide, self.scale, self.interval = guide, scale, interval

    def prepare(self, load: Callable[[Any], Any]) -> None:
        if not isinstance(self.guide, nn.Module):
            self.guide = load(self.guide)

    @property
    def shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """The guide's."""
        return getattr(self.guide, "shape", None)

    @property
    def first_stage(self) -> Any:
        """The guide's."""
        return getattr(self.guide, "first_stage", None)

    def __call__(self, denoiser: Any, conditioner: Conditioner, y: Tensor) -> Denoise:
        guide = loaded(self.guide, "guide", "denoiser", y)
        if guide.conditioner.conditional and not conditioner.conditional:
            raise ValueError(
                "the guide was trained with a condition, but the model without any: give a guide without a condition"
            )
        if guide.conditioner.conditional:
            guide.conditioner.check(y)
        same = same_table(denoiser.schedule, guide.denoiser.schedule)
        return partial(self._predict, denoiser, guide.denoiser, same, guide.conditioner(y))

    def _predict(
        self, denoiser: Any, guide: Any, same: bool, c_guide: Embedded, x_t: Tensor, t: int | Tensor, c: Any
    ) -> Prediction:
        own = denoiser(x_t, t, c)
        if self.scale == 1 or not within(self.interval, denoiser, t):
            return own
        worse = guide(x_t, t if same else nearest(denoiser.schedule, guide.schedule, t), c_guide)
        eps = worse.eps
        if not same:  # the ε that belongs to its x_0 at the model's σ
            signal, noise = denoiser.schedule.scales(t, x_t)
            eps = (x_t - signal * worse.x_0) / noise
        x_0 = torch.lerp(worse.x_0, own.x_0, self.scale)
        return Prediction(x_0, torch.lerp(eps, own.eps, self.scale), own.var_mix)


class ClassifierGuided(Guidance):
    """ε̃ = ε - scale·√(1 - ᾱ_t)·g and x̃_0 = x_0 + scale·(1 - ᾱ_t)/√ᾱ_t·g, with g = ∇ log p(y | x_t).

    p is a classifier of noisy images (`modules.NoisyClassifier`). With scale 1 and the true p the samples are those of
    class y; the larger, the clearer the class. The model may be unconditional. The classifier has its own schedule: it
    is asked at the time whose σ is nearest to the model's, in ln σ. If no signal is left (ᾱ_t = 0) it does not guide.

    Paper: Diffusion models beat GANs on image synthesis. Dhariwal, Nichol, 2021, arXiv 2105.05233, equation 14.

    Args:
        classifier: a checkpoint's path, or a `NoisyClassifier`.
        scale: at least 0; 0 is the model alone.
        interval: see `ClassifierFree`.

    Raises:
        ValueError: if an argument is out of its range; when it is called, if the classifier has no such class.
    """

    def __init__(self, classifier: Any, scale: float = 1.0, interval: Interval | None = None) -> None:
        check(scale, interval)
        self.classifier, self.scale, self.interval = classifier, scale, interval

    def prepare(self, load: Callable[[Any], Any]) -> None:
        if not isinstance(self.classifier, nn.Module):
            self.classifier = load(self.classifier)

    @property
    def shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """The classifier's."""
        return getattr(self.classifier, "shape", None)

    @property
    def conditioner(self) -> Conditioner | None:  # type: ignore[override]
        """The classifier's: its classes are the conditions of a model without any."""
        return getattr(self.classifier, "conditioner", None)

    def __call__(self, denoiser: Any, conditioner: Conditioner, y: Tensor) -> Denoise:
        classifier = loaded(self.classifier, "classifier", "log_probs", y)
        classifier.conditioner.check(y)
        same = same_table(denoiser.schedule, classifier.schedule)
        return partial(self._predict, denoiser, classifier, same, y)

    def _predict(
        self, denoiser: Any, classifier: Any, same: bool, y: Tensor, x_t: Tensor, t: int | Tensor, c: Any
    ) -> Prediction:
        own = denoiser(x_t, t, c)
        if self.scale == 0 or not within(self.interval, denoiser, t):
            return own
        u = t if same else nearest(denoiser.schedule, classifier.schedule, t)
        # Samples are drawn in inference mode, whose tensors no gradient passes through: copies of them are plain.
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.clone().requires_grad_()
            times = u.clone() if isinstance(u, Tensor) else torch.full((len(x),), u, device=x.device)
            of_y = classifier.log_probs(x, times).gather(1, y.clone()[:, None])
            (gradient,) = torch.autograd.grad(of_y.sum(), x)
        signal, noise = denoiser.schedule.scales(t, x_t)
        seen = signal > 0  # elsewhere x_0 would be infinite
        x_0 = own.x_0 + noise**2 / signal.clamp(min=1e-30) * seen * self.scale * gradient
        return own._replace(x_0=x_0, eps=own.eps - noise * seen * self.scale * gradient, output=None)


Guided = float | Guidance | Callable[..., Denoise] | None  # what `generate` takes; a number is a scale


def prepare(guidance: Guided, load: Callable[[Any], Any]) -> None:
    """Have `load(path)` load the checkpoints that a guidance names; it is kept with their models."""
    if isinstance(guidance, Guidance):
        guidance.prepare(load)


def guided(denoiser: nn.Module, conditioner: Conditioner, y: Tensor, guidance: Guided) -> Denoise:
    """The denoiser wrapped by its guidance, a number being the scale of `ClassifierFree`; None wraps nothing."""
    if guidance is None:
        return denoiser
    if not callable(guidance):  # a number of any kind
        guidance = ClassifierFree(float(guidance))
    return guidance(denoiser, conditioner, y)


def at_scales(denoiser: nn.Module, conditioner: Conditioner, scale: Tensor) -> Denoise:
    """What takes the denoiser's place for samples that are guided classifier-free at scales (B,) of their own."""
    null = conditioner(conditioner.null(1))

    def denoise(x_t: Tensor, t: Tensor, c: Embedded) -> Prediction:
        found = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), joined(c, rows(null, len(x_t))))
        weight = expand_like(scale, x_t).to(x_t)

        def mixed(of_both: Tensor) -> Tensor:
            with_c, without = of_both.chunk(2)
            return torch.lerp(without, with_c, weight)

        return Prediction(mixed(found.x_0), mixed(found.eps))

    return denoise


def check(scale: float, interval: Interval | None) -> None:
    """Raise ValueError if a scale or an interval is out of its range."""
    if not 0 <= scale < float("inf"):
        raise ValueError(f"the scale of guidance is {scale}, but it is a finite number of at least 0: give such a one")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"the interval of guidance is {list(interval)} in σ: give [low, high], 0 ≤ low < high")


def within(interval: Interval | None, denoiser: Any, t: int | Tensor) -> bool:
    """Whether σ at a time lies in (low, high].

    Raises:
        ValueError: if only a part of several times does; a sampler's steps have one time for all samples.
    """
    if interval is None:
        return True
    sigma = denoiser.schedule.log_sigma(t).exp()
    inside = (interval[0] < sigma) & (sigma <= interval[1])
    if bool(inside.all()) != bool(inside.any()):
        raise ValueError("the interval of guidance takes one time for all samples of a call: give t as an int")
    return bool(inside.all())


def same_table(own: Schedule, other: Schedule) -> bool:
    """Whether two schedules have the same times."""
    return torch.equal(own.alpha_bar.cpu(), other.alpha_bar.cpu())


def nearest(own: Schedule, other: Schedule, t: int | Tensor) -> int | Tensor:
    """The other schedule's time in 1 … T whose ln σ is nearest to that of this one's t.

    x_t needs no scaling: its variance is ᾱ·var(x_0) + 1 - ᾱ on every schedule.
    """
    every = torch.arange(1, other.T + 1, device=other.alpha_bar.device)
    theirs = other.log_sigma(every).clamp(max=NO_SIGNAL)
    here = torch.as_tensor(own.log_sigma(t), device=theirs.device).clamp(max=NO_SIGNAL)
    found = (theirs - here[..., None]).abs().argmin(-1) + 1
    return found if isinstance(t, Tensor) else int(found)


def loaded(model: Any, name: str, has: str, y: Tensor) -> Any:
    """A guide or classifier, on the device of y.

    Raises:
        ValueError: if it is still a path, or has not what guides.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the {name} is {model}, which nobody has loaded yet: give a loaded model")
    if not hasattr(model, has):
        wanted = "a NoisyClassifier" if has == "log_probs" else "a model that makes images"
        raise ValueError(f"the {name} is a {type(model).__name__}, but it has to be {wanted}: give a checkpoint of one")
    with torch.inference_mode(False):  # else weights that are moved could give no gradient later
        return model.eval().to(y.device)
