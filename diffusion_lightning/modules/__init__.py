"""LightningModules, one per training objective; what makes images is a `Generative`."""

from .autoencoder import Autoencoder as Autoencoder
from .base.generative import Generative as Generative
from .base.lora import LoRA as LoRA
from .consistency import Consistency as Consistency
from .diffusion import Diffusion as Diffusion
from .gan import GAN as GAN
from .noisy_classifier import NoisyClassifier as NoisyClassifier
from .progressive_distillation import ProgressiveDistillation as ProgressiveDistillation
