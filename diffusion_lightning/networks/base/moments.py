"""What an autoencoder makes of an image: a latent, or the Gaussian from which one is drawn."""

from typing import Any, NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """q(z | image) = N(mean, exp(log_var)·I), both (B, C, H, W); without a log_var the latent is the mean.

    Paper: Auto-encoding variational Bayes. Kingma, Welling, 2013, arXiv 1312.6114, section 3.
    """

    mean: Tensor
    log_var: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """A latent z = mean + exp(log_var/2)·noise, for standard normals of the mean's shape."""
        return self.mean if self.log_var is None else self.mean + (self.log_var / 2).exp() * noise

    def kl(self) -> Tensor:
        """(B,) KL(q(z | image) ‖ N(0, I)) in nats, a sum over the dimensions; 0 without a log_var.

        Paper: Kingma, Welling, 2013, appendix B.
        """
        if self.log_var is None:
            return self.mean.new_zeros(len(self.mean))
        return (self.mean.square() + self.log_var.exp() - 1 - self.log_var).flatten(1).sum(1) / 2

    def float(self) -> "Moments":
        """The same in float32."""
        return Moments(self.mean.float(), None if self.log_var is None else self.log_var.float())


def moments(encoded: Any) -> Moments:
    """What an autoencoder's `encode` returns, ours or one of diffusers', as `Moments`."""
    if isinstance(encoded, Moments):
        return encoded
    if (posterior := getattr(encoded, "latent_dist", None)) is not None:
        return Moments(posterior.mean, posterior.logvar)
    latents = getattr(encoded, "latents", None)
    return Moments(encoded.latent if latents is None else latents)
