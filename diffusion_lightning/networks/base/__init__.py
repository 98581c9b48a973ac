"""What the networks share, each part in the form that is fastest where it runs."""

from . import gpu as gpu
from .attention import attend as attend
from .doubling import DoublingConv as DoublingConv
from .doubling import doubled as doubled
from .dropout import Dropout as Dropout
from .normalisation import GroupNorm as GroupNorm
from .products import Conv2d as Conv2d
from .products import Linear as Linear
