"""A small autoencoder of plain convolutions and ReLU, without normalisation and attention: fast, and short to read."""

import torch
from torch import Tensor, nn

from .base import Conv2d
from .base.moments import Moments

LOG_VAR = (-30.0, 20.0)  # the range of a latent's log-variance, as diffusers' and LDM's encoders have it
BOUND = 3.0  # beyond which the decoder hardly tells latents apart


class PlainAutoencoder(nn.Module):
    """Images (B, C, H, W) to latents (B, C', H/2^levels, W/2^levels), and back: as TAESD has it.

    Between two halvings lie residual blocks of three convolutions, ReLU((conv, ReLU, conv, ReLU, conv)(x) + x). A
    raw latent z goes into the decoder as 3·tanh(z/3): samples far out do no harm.

    Source: TAESD, tiny autoencoder for Stable Diffusion. Bohan, 2023, github.com/madebyollin/taesd.

    Args:
        in_channels: of the images.
        size: their height and width in pixels, for a module that is given no shape; None is any multiple of 2^levels.
        channels: features of every layer.
        levels: how often the height and width are halved, at least 1.
        latent_channels: of a latent.
        blocks: residual blocks at every level, at least 1.
        variational: predict each latent's log-variance beside its mean; else the latent is what the encoder says.

    Raises:
        ValueError: if there is nothing to halve, or a size that is no multiple of 2^levels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int | None = None,
        channels: int = 64,
        levels: int = 3,
        latent_channels: int = 4,
        blocks: int = 3,
        variational: bool = True,
    ) -> None:
        super().__init__()
        if min(in_channels, channels, levels, latent_channels, blocks) < 1:
            raise ValueError(
                f"in_channels, channels, levels, latent_channels and blocks are {in_channels}, {channels}, {levels}, "
                f"{latent_channels} and {blocks}, but an autoencoder has some of each: give at least 1"
            )
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2**levels
        if size is not None and (size < 1 or size % self.factor):
            raise ValueError(
                f"{levels} levels halve the image {levels} times, which {size} pixels do not allow: use a size "
                f"divisible by {self.factor}, or fewer levels"
            )
        self.size, self.variational = size, variational
        encoder: list[nn.Module] = [Conv2d(in_channels, channels, 3, padding=1), Residual(channels)]
        decoder: list[nn.Module] = [Conv2d(latent_channels, channels, 3, padding=1), nn.ReLU()]
        for _ in range(levels):
            encoder += [Conv2d(channels, channels, 3, padding=1, stride=2, bias=False)]
            encoder += [Residual(channels) for _ in range(blocks)]
            decoder += [Residual(channels) for _ in range(blocks)]
            decoder += [nn.Upsample(scale_factor=2), Conv2d(channels, channels, 3, padding=1, bias=False)]
        outputs = 2 * latent_channels if variational else latent_channels
        self.encoder = nn.Sequential(*encoder, Conv2d(channels, outputs, 3, padding=1))
        self.decoder = nn.Sequential(*decoder, Residual(channels))
        self.conv_out = Conv2d(channels, in_channels, 3, padding=1)

    def encode(self, image: Tensor) -> Moments:
        """The distribution of the raw latent of images in [-1, 1]."""
        encoded = self.encoder(image)
        if not self.variational:
            return Moments(encoded)
        mean, log_var = encoded.chunk(2, dim=1)
        return Moments(mean, log_var.clamp(*LOG_VAR))

    def decode(self, z: Tensor) -> Tensor:
        """Images of raw latents, not clamped."""
        return self.conv_out(self.decoder(torch.tanh(z / BOUND) * BOUND))

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction by the mean latent."""
        return self.decode(self.encode(image).mean)

    def set_memory_format(self, device: torch.device, reduced: bool, compiled: bool = False) -> None:
        """Channels last on a GPU, in which its convolutions are fastest."""
        if device.type == "cuda":
            self.to(memory_format=torch.channels_last)


class Residual(nn.Module):
    """ReLU((conv, ReLU, conv, ReLU, conv)(x) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = (Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.convs = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convs(x) + x)
