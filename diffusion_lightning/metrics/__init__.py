"""Distances between sets of images, as torchmetrics metrics over bytes: `update(images, real)`, `compute()`."""

from .digits import DigitsNet as DigitsNet
from .frechet import FrechetDistance as FrechetDistance
from .frechet import frechet_distance as frechet_distance
