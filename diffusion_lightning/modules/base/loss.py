"""The loss of an example: a weighted squared error of the network's output, and a term of the variational bound."""

import torch.nn.functional as F
from torch import Tensor

from ...denoising import Denoiser, Prediction
from ...likelihood import VLB, bits_per_dim
from ...objectives import Weighting

LEVELS = 256  # of latents in L_0, whatever the images have
# The bound as a loss: nothing is clipped, so that every error has a gradient.
TRAINED = VLB(clip=None)


class Loss:
    """w·‖target - output‖² + λ·T·L_{t-1}, the first a mean over the dimensions, the second in bits/dim.

    If the error trains the mean, the second trains the predicted variance alone: its mean is held fixed.

    Latents have no levels, yet L_0 takes each for one of 256 on [-1, 1], and those outside for the outermost, as DiT's
    released code does: it is one time in T, and weighs the variance of the last step, which no sampler uses.

    Paper: Improved denoising diffusion probabilistic models. Nichol, Dhariwal, 2021, arXiv 2102.09672, equation 16.

    Args:
        weighting: w.
        vlb_weight: λ, at least 0; None is 0.001 if a variance is predicted (L_hybrid), 1 if the error trains no mean
            (L_vlb), and 0 otherwise.
        predicts_variance: whether the network does.

    Raises:
        ValueError: if nothing would be trained.
    """

    def __init__(self, weighting: Weighting, vlb_weight: float | None, predicts_variance: bool) -> None:
        if vlb_weight is None:
            vlb_weight = 1.0 if not weighting.trains_mean else 0.001 if predicts_variance else 0.0
        if not 0 <= vlb_weight < float("inf") or (vlb_weight == 0 and not weighting.trains_mean):
            raise ValueError(
                f"vlb_weight is {vlb_weight} and the weighting {type(weighting).__name__}, which leaves nothing to "
                "train: give a finite vlb_weight above 0, or another weighting"
            )
        self.weighting, self.vlb_weight = weighting, vlb_weight

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction, levels: int
    ) -> Tensor:
        """(B,) the losses of examples x_0, ε (B, C, H, W) at times t (B,), given the denoiser's prediction."""
        schedule, parameterization = denoiser.schedule, denoiser.parameterization
        assert prediction.output is not None
        target = parameterization.target(schedule, x_0, eps, t)
        error = F.mse_loss(prediction.output, target, reduction="none")
        losses = self.weighting(schedule, parameterization, t).to(error) * error.flatten(1).mean(1)
        if self.vlb_weight == 0:
            return losses
        if self.weighting.trains_mean:
            prediction = prediction._replace(x_0=prediction.x_0.detach(), eps=prediction.eps.detach())
        bits = bits_per_dim(TRAINED.term(schedule, x_0, t, prediction, levels), x_0[0].numel())
        return losses + self.vlb_weight * schedule.T * bits
