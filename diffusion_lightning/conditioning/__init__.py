"""Conditions: what the data say of an image, embedded for a network. One class a file; `base` has the interface."""

from .base import Condition as Condition
from .base import Conditioner as Conditioner
from .base import Unconditional as Unconditional
from .captions import Captions as Captions
from .labels import ClassLabels as ClassLabels
from .labels import Labels as Labels
from .pretrained_text import PretrainedText as PretrainedText
from .several import Several as Several
from .text import TextEncoder as TextEncoder
