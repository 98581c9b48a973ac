"""What generated images are worth, as torchmetrics metrics over bytes: `update(images, real)`, `compute()`."""

from .caption_match import CaptionMatch as CaptionMatch
from .class_coverage import ClassCoverage as ClassCoverage
from .clip_score import CLIPScore as CLIPScore
from .frechet import FrechetDistance as FrechetDistance
from .frechet import frechet_distance as frechet_distance
from .inception_score import InceptionScore as InceptionScore
from .kid import KID as KID
from .nearest_neighbours import NearestNeighbours as NearestNeighbours
from .precision_recall import PrecisionRecall as PrecisionRecall
