"""LightningModules, one per training objective; what makes images is a `Generative`."""

from .autoencoder import Autoencoder as Autoencoder
from .base.generative import Generative as Generative
from .base.lora import LoRA as LoRA
from .diffusion import Diffusion as Diffusion
from .noisy_classifier import NoisyClassifier as NoisyClassifier
