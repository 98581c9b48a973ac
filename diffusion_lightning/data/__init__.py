"""Images and their labels: one source a file, the order and the batches in `base`."""

from .base import Images as Images
from .digits import Digits as Digits
