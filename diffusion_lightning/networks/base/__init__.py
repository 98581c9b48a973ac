"""Parts that the networks share, each in the form that is fastest on its device."""

from . import gpu as gpu
from .attention import attend as attend
from .cross_attention import CrossAttention as CrossAttention
from .cross_attention import unpacked as unpacked
from .dropout import Dropout as Dropout
from .matmuls import Conv2d as Conv2d
from .matmuls import Linear as Linear
from .normalisation import GroupNorm as GroupNorm
from .upsample import UpsampleConv as UpsampleConv
from .upsample import upsample2x as upsample2x
