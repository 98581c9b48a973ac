"""A discriminator of patches: how real each part of an image is."""

import torch
from torch import Tensor, nn

from .base import Conv2d, GroupNorm


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) to logits (B, 1, h, w), one for each overlapping patch: PatchGAN, of 70×70 pixels by default.

    Convolutions of 4×4 with LeakyReLU(0.2) between them, `layers` of stride 2, then two of stride 1. Where the papers
    have batch normalisation it has group normalisation: an image's logits then depend on no other image, so that they
    are the same on any number of devices and at any number of accumulated batches, and nothing runs along beside the
    weights.

    Paper: Image-to-image translation with conditional adversarial networks. Isola et al., 2016, arXiv 1611.07004,
    section 3.2.2; weights start as N(0, 0.02²).

    Args:
        in_channels: of the images.
        channels: features of the first layer, a multiple of `groups`; they double with each layer, up to 8 times.
        layers: convolutions of stride 2: 3 for patches of 70×70 pixels, 2 of 34, 1 of 16; a patch may be larger than
            the image, but the image at least 3·2^layers pixels high and wide.
        groups: of the normalisation.

    Raises:
        ValueError: if there are no layers, or the groups do not divide the features.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, layers: int = 3, groups: int = 8) -> None:
        super().__init__()
        if layers < 1 or channels < 1 or groups < 1 or channels % groups:
            raise ValueError(
                f"a discriminator of {layers} layers from {channels} features on cannot be normalised in {groups} "
                "groups: give at least one layer, and channels that the groups divide"
            )
        made: list[nn.Module] = [Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            before, width = width, channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            made += [Conv2d(before, width, 4, stride=stride, padding=1, bias=False)]
            made += [GroupNorm(groups, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*made, Conv2d(width, 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images in [-1, 1]: above 0 where they look real."""
        return self.layers(image)

    def set_memory_format(self, device: torch.device, reduced: bool, compiled: bool = False) -> None:
        """Channels last on a GPU, in which its convolutions are fastest."""
        if device.type == "cuda":
            self.to(memory_format=torch.channels_last)
