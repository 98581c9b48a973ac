"""Two networks against each other in one loss, whose gradient is each one's own for its own weights alone.

    d = ½·(relu(1 - D(x)) + relu(1 + D(sg x̂))),    g = -D̄(x̂),    D̄ with the weights of D held fixed

The discriminator sees a reconstruction that carries no gradient, and the autoencoder a discriminator whose weights have
none. So d + g is one loss of one backward pass, one exchange between devices, one step.

Paper: Geometric GAN. Lim, Ye, 2017, arXiv 1705.02894, equation 17 (hinge); Taming transformers for high-resolution
image synthesis. Esser, Rombach, Ommer, 2020, arXiv 2012.09841, equation 7 (the adaptive weight).
"""

from collections.abc import Callable

import torch
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
