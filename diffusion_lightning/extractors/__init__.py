"""Networks in whose features images are compared: shipped classifiers, Inception-v3, DINOv2, CLIP."""

from .digits import DigitsNet as DigitsNet
from .inception import InceptionV3 as InceptionV3
from .mnist import MNISTNet as MNISTNet
from .vision_transformers import CLIP as CLIP
from .vision_transformers import DINOv2 as DINOv2
