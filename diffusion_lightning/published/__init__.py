"""Checkpoints of other projects: how each stores the networks that are here too."""

from .base import Layout as Layout
from .diffusers import Diffusers as Diffusers
from .dit import ReleasedDiT as ReleasedDiT
from .openai import OpenAI as OpenAI
