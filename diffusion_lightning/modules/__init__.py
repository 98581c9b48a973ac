"""LightningModules, one per training objective."""

from .diffusion import Diffusion as Diffusion
