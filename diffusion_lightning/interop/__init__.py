"""Checkpoints of other projects: how each stores the networks that are here too."""

from .diffusers import Diffusers as Diffusers
from .dit import ReleasedDiT as ReleasedDiT
from .layout import Layout as Layout
from .openai import OpenAI as OpenAI
