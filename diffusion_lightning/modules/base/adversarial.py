"""Two networks against each other in one loss, whose gradient is each one's own for its own weights alone.

    d = ½·(relu(1 - D(x)) + relu(1 + D(sg x̂))),    g = -D̄(x̂),    D̄ with the weights of D held fixed

The discriminator sees a reconstruction that carries no gradient, and the autoencoder a discriminator whose weights have
none. So d + g is one loss of one backward pass, one exchange between devices, one step.

Paper: Geometric GAN. Lim, Ye, 2017, arXiv 1705.02894, equation 17 (hinge); Taming transformers for high-resolution
image synthesis. Esser, Rombach, Ommer, 2020, arXiv 2012.09841, equation 7 (the adaptive weight).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

LARGEST = 1e4  # of the adaptive weight


def hinge(discriminator: nn.Module, image: Tensor, reconstruction: Tensor) -> Tensor:
    """(B,) d, the discriminator's loss of images and of their reconstructions; it gives the latter no gradient."""
    real, fake = discriminator(torch.cat([image, reconstruction.detach()])).chunk(2)
    return (_mean(torch.relu(1 - real)) + _mean(torch.relu(1 + fake))) / 2


def fooled(discriminator: nn.Module, reconstruction: Tensor) -> Tensor:
    """(B,) g, the autoencoder's loss of its reconstructions; it gives the discriminator's weights no gradient."""
    fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
    return -_mean(functional_call(discriminator, fixed, reconstruction))


class Duel(NamedTuple):
    """(B,) of each example: g, d, and the squared slopes of the discriminator at its real and its fake image."""

    g: Tensor
    d: Tensor
    r1: Tensor
    r2: Tensor


def relativistic(discriminator: nn.Module, image: Tensor, fake: Tensor, *given: Any) -> Duel:
    """G = log(1 + e^-(D̄(x̂) - sg D(x))), d = log(1 + e^-(D(x) - D(sg x̂))), and ‖∇_x D‖² at x and at sg x̂.

    Each fake image has the real one beside which it stands to be better than, so that neither loss is small for all
    images at one place. The gradient of the slopes, R1 and R2, takes a second backward pass; where no gradients are
    wanted they are 0.

    Papers: The GAN is dead; long live the GAN! A modern baseline GAN. Huang et al., 2024, arXiv 2501.05441, equation 2;
    Which training methods for GANs do actually converge? Mescheder, Geiger, Nowozin, 2018, arXiv 1801.04406, equations
    9 and 10.

    Args:
        discriminator: `forward(image, *given) -> (B,)`.
        image: x, real ones (B, C, H, W).
        fake: x̂, made by the generator.
        given: what the discriminator is told beside.
    """
    sloped = torch.is_grad_enabled()
    sides = [x.detach().requires_grad_(sloped) for x in (image, fake)]
    real, made = (discriminator(x, *given) for x in sides)
    fixed = {name: p.detach() for name, p in discriminator.named_parameters()}
    g = functional_call(discriminator, fixed, (fake, *given)) - real.detach()
    r1, r2 = (
        _slope(scores, x) if sloped else torch.zeros_like(scores) for scores, x in zip((real, made), sides, strict=True)
    )
    return Duel(F.softplus(-g), F.softplus(made - real), r1, r2)


def _slope(scores: Tensor, image: Tensor) -> Tensor:
    """(B,) ‖∇_x D(x)‖², which has a gradient of its own."""
    (slope,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
    return slope.square().flatten(1).sum(1)


def untouched(discriminator: nn.Module) -> Tensor:
    """0, with a gradient of 0 for each weight: for a step in which the discriminator has no part, but DDP waits."""
    return sum((0 * p.sum() for p in discriminator.parameters()), torch.zeros(()))


def adaptive_weight(nll: Tensor, g: Tensor, last: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """‖∇nll‖/(‖∇g‖ + 1e-4) at the weights of the last layer, at most 1e4: g then counts about as much as nll.

    Args:
        nll: the reconstruction's loss, a number.
        g: the adversarial loss, a number.
        last: the weights of the decoder's last layer.
        mean: over the ranks, a collective call: all of them have one weight, that of the whole batch.
    """
    of_nll, of_g = (
        mean(torch.autograd.grad(loss, last, retain_graph=True)[0].detach().float()).norm() for loss in (nll, g)
    )
    return (of_nll / (of_g + 1e-4)).clamp(max=LARGEST)


def _mean(logits: Tensor) -> Tensor:
    """(B,) of each image, in float32 at least."""
    return (logits if logits.dtype == torch.float64 else logits.float()).flatten(1).mean(1)
