"""What generated images are worth, as torchmetrics metrics over bytes: `update(images, real)`, `compute()`."""

from .class_coverage import ClassCoverage as ClassCoverage
from .digits import DigitsNet as DigitsNet
from .frechet import FrechetDistance as FrechetDistance
from .frechet import frechet_distance as frechet_distance
from .inception import InceptionV3 as InceptionV3
from .inception_score import InceptionScore as InceptionScore
from .kid import KID as KID
from .mnist import MNISTNet as MNISTNet
from .nearest_neighbours import NearestNeighbours as NearestNeighbours
from .precision_recall import PrecisionRecall as PrecisionRecall
from .vision_transformers import CLIP as CLIP
from .vision_transformers import DINOv2 as DINOv2
