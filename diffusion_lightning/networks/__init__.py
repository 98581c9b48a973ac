"""Networks. Any `nn.Module` with `forward(x_t, t, c) -> (B, C, H, W)` serves; these are the papers'."""

from .condition_unet import ConditionUNet as ConditionUNet
from .diffusers_dit import DiffusersDiT as DiffusersDiT
from .dit import DiT as DiT
from .half_unet import HalfUNet as HalfUNet
from .unet import UNet as UNet
