"""The autoencoder of latent diffusion, by diffusers' own class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..frozen import installed
from .base.moments import Moments


class KLAutoencoder(nn.Module):
    """Stable Diffusion's family: residual blocks with group normalisation, attention at the smallest size; f4, f8, ….

    The network is diffusers' `AutoencoderKL`, as `model`: `network.model.save_pretrained(folder)` writes what diffusers
    reads, and `network.model.load_state_dict` takes its weights. It needs the optional package,
    `pip install diffusion_lightning[diffusers]`.

    Paper: High-resolution image synthesis with latent diffusion models. Rombach et al., 2021, arXiv 2112.10752,
    appendix G.

    Args:
        in_channels: of the images.
        size: their height and width in pixels, for a module that is given no shape; None is any multiple of the factor.
        channels: features of the first level, a multiple of `groups`.
        multipliers: of the features, one a level; each level but the last halves the height and width.
        blocks: residual blocks at every level.
        latent_channels: of a latent.
        attention: over the pixels at the smallest size.
        groups: of the normalisation.

    Raises:
        ValueError: if the groups do not divide the features, or the levels the size.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int | None = None,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        latent_channels: int = 4,
        attention: bool = True,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.in_channels, self.latent_channels, self.size = in_channels, latent_channels, size
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [channels * m for m in multipliers]
        if not widths or min(widths) < 1 or groups < 1 or any(width % groups for width in widths):
            raise ValueError(
                f"levels of {widths} features cannot be normalised in {groups} groups: make channels divisible by "
                "groups, and give at least one multiplier"
            )
        if size is not None and (size < 1 or size % self.factor):
            raise ValueError(
                f"{len(widths)} levels halve the image {len(widths) - 1} times, which {size} pixels do not allow: use "
                f"a size divisible by {self.factor}, or other multipliers"
            )
        self.model = installed("KLAutoencoder", "diffusers").AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=widths,
            layers_per_block=blocks,
            latent_channels=latent_channels,
            norm_num_groups=groups,
            mid_block_add_attention=attention,
            **({} if size is None else {"sample_size": size}),
        )

    @property
    def conv_out(self) -> nn.Module:
        """The last convolution."""
        return self.model.decoder.conv_out

    def encode(self, image: Tensor) -> Moments:
        """The distribution of the raw latent of images in [-1, 1]."""
        posterior = self.model.encode(image).latent_dist
        return Moments(posterior.mean, posterior.logvar)

    def decode(self, z: Tensor) -> Tensor:
        """Images of raw latents, not clamped."""
        return self.model.decode(z).sample

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction by the mean latent."""
        return self.decode(self.encode(image).mean)

    def set_memory_format(self, device: torch.device, reduced: bool, compiled: bool = False) -> None:
        """Channels last on a GPU, in which its convolutions are fastest."""
        if device.type == "cuda":
            self.to(memory_format=torch.channels_last)
