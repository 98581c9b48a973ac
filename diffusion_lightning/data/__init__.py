"""Images and their labels: one source a file; the order, the batches and what sources share in `base`."""

from .arrays import Arrays as Arrays
from .base import Images as Images
from .celeba import CelebA as CelebA
from .cifar10 import CIFAR10 as CIFAR10
from .digit_scenes import DigitScenes as DigitScenes
from .digits import Digits as Digits
from .fashion_mnist import FashionMNIST as FashionMNIST
from .hugging_face import HuggingFace as HuggingFace
from .image_folder import ImageFolder as ImageFolder
from .latents import Latents as Latents
from .mnist import MNIST as MNIST
