"""Networks. Any `nn.Module` with `forward(x_t, t, c) -> (B, C, H, W)` serves; these are the papers'.

An autoencoder has `encode(image) -> Moments`, `decode(raw latent) -> image` and the attributes `in_channels`,
`latent_channels` and `factor`: an image of factor·(h, w) pixels has a latent of (h, w).
"""

from .condition_unet import ConditionUNet as ConditionUNet
from .diffusers_dit import DiffusersDiT as DiffusersDiT
from .dit import DiT as DiT
from .half_unet import HalfUNet as HalfUNet
from .kl_autoencoder import KLAutoencoder as KLAutoencoder
from .patch_discriminator import PatchDiscriminator as PatchDiscriminator
from .plain_autoencoder import PlainAutoencoder as PlainAutoencoder
from .residual_gan import ResidualDiscriminator as ResidualDiscriminator
from .residual_gan import ResidualGenerator as ResidualGenerator
from .unet import UNet as UNet
