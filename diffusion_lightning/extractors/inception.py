"""The Inception-v3 of published FIDs: TensorFlow's of 2015-12-05, on images resized as TensorFlow 1 did.

Its weights are a file of 95 MB in the layout of pytorch-fid and torch-fidelity. It is looked for in torch's cache,
where those tools keep it too, downloaded if there is a network, or given as a path.
"""

import hashlib
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import inception as tv

from .. import images as pixels
from ..networks.base import Conv2d

# The same weights under the file names of torch-fidelity and pytorch-fid; a hash ends the name.
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILES[0]}"
SHA256 = "6726825d"
PRECISIONS = ("float32", "bfloat16")
PATIENCE = 20.0  # seconds without an answer until a network counts as none


class InceptionV3(nn.Module):
    """Bytes (B, 1 or 3, H, W) to the 2,048 features of the last pooling; grey images count as three equal channels.

    The Fréchet distance over it is the FID. `classify` gives its logits too: over 1,008 outputs and without the bias,
    as Inception Scores are computed.

    Paper: Rethinking the inception architecture for computer vision. Szegedy et al., 2015, arXiv 1512.00567; for the
    FID: GANs trained by a two time-scale update rule. Heusel et al., 2017, arXiv 1706.08500.

    Args:
        weights: path of the file of weights; None looks in torch's cache, then downloads.
        precision: of its features. "bfloat16" is faster and moves the distance: `python -m benchmarks score` shows by
            how much. Published figures are "float32".

    Raises:
        ValueError: if there are no weights, the file is of another network, or there is no such precision.
    """

    name = "inception"
    distance = "fid"  # what a Fréchet distance over it is called
    num_features = 2048
    num_classes = 1008

    def __init__(self, weights: str | None = None, precision: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision}, but Inception computes in {' or '.join(PRECISIONS)}: give one")
        self.precision = precision
        path = Path(weights) if weights is not None else _found_or_downloaded()
        self.network = _network()
        _load(self.network, path)
        if not is_published(path) and _alone():
            print(
                f"note: {path} is not the published Inception: its distances compare with no others'", file=sys.stderr
            )
        self.eval().requires_grad_(False)
        if precision == "bfloat16":  # faster so; float32 keeps the form in which its features are torch-fidelity's
            _fold(self.network)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception was given {images.dtype} of shape {list(images.shape)}, but it takes bytes of 1 or 3 "
                "channels: pass images through images.to_uint8, and choose another extractor for other channels"
            )
        x = (pixels.resize_tf1(images.expand(-1, 3, -1, -1), 299) - 128) / 128  # (B, 3, 299, 299)
        if self.precision == "bfloat16":
            x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):  # whatever surrounds it
            return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        net = self.network
        x = net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(net.maxpool1(x)))  # (B, 192, 71, 71)
        x = net.Mixed_5d(net.Mixed_5c(net.Mixed_5b(net.maxpool2(x))))  # (B, 288, 35, 35)
        x = net.Mixed_6c(net.Mixed_6b(net.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = net.Mixed_6e(net.Mixed_6d(x))
        x = net.Mixed_7c(net.Mixed_7b(net.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return net.avgpool(x.float()).flatten(1)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, 2048) and the logits (B, 1008)."""
        features = self(images)
        return features, features @ self.network.fc.weight.T


class _Convolution(nn.Module):
    """A convolution, its norm and a ReLU."""

    def __init__(self, from_: int, to: int, **shape: Any) -> None:
        super().__init__()
        self.conv = Conv2d(from_, to, bias=False, **shape)
        self.bn: Any = nn.BatchNorm2d(to, eps=0.001)  # until it is folded into the convolution

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


# TensorFlow's network differs from torchvision's in the pooling branches: an average leaves the padding out of its
# count, and the last block takes the maximum.


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _A(tv.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        of_5 = self.branch5x5_2(self.branch5x5_1(x))
        of_3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), of_5, of_3, self.branch_pool(_average(x))]


class _C(tv.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        of_7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return [self.branch1x1(x), of_7, twice, self.branch_pool(_average(x))]


class _E(tv.InceptionE):
    pool = staticmethod(_average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        of_3 = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        of_5 = [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return [self.branch1x1(x), *of_3, *of_5, self.branch_pool(self.pool(x))]


class _Last(_E):
    pool = staticmethod(_maximum)


def _network() -> tv.Inception3:
    kinds = (_A, tv.InceptionB, _C, tv.InceptionD, _E, tv.InceptionAux)
    blocks = [_Convolution, *(partial(kind, conv_block=_Convolution) for kind in kinds)]
    network = tv.Inception3(InceptionV3.num_classes, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c = _Last(2048, conv_block=_Convolution)
    return network


def _fold(network: nn.Module) -> None:
    """Every norm into the convolution before it, whose weights then are bfloat16 and lie channels last."""
    for block in list(network.modules()):
        if isinstance(block, _Convolution):
            fused = fuse_conv_bn_eval(block.conv, block.bn)
            block.conv = fused.to(torch.bfloat16).to(memory_format=torch.channels_last)
            block.bn = nn.Identity()


def _load(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ValueError(
            f"the weights of Inception {path} do not exist: give the path of {FILES[0]}, or none to look for it in "
            f"{_folder()}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = {name: list(x.shape) for name, x in state.items()}
    except Exception as error:  # whatever a file that holds something else makes torch say
        raise ValueError(f"{path} is cut short, damaged or no file of weights: give {FILES[0]}") from error
    for name, ours in network.state_dict().items():
        if not name.endswith("num_batches_tracked") and theirs.get(name) != list(ours.shape):
            raise ValueError(
                f"the weights {path} are of another network: their {name} is {theirs.get(name, 'missing')}, "
                f"Inception's is {list(ours.shape)}; give {FILES[0]}"
            )
    network.load_state_dict(state, strict=False)


def is_published(path: str | Path) -> bool:
    """Whether a file holds the weights that published FIDs were computed with, byte for byte."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(SHA256)


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _found_or_downloaded() -> Path:
    for name in FILES:
        if (_folder() / name).is_file():
            return _folder() / name
    _folder().mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        torch.hub.download_url_to_file(URL, str(_folder() / FILES[0]), hash_prefix=SHA256, progress=_alone())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"the weights of Inception are not in {_folder()} and could not be downloaded from {URL} ({reason}): put "
            f"{FILES[0]} there, or give its path as the extractor's weights, or choose another extractor"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return _folder() / FILES[0]


def _alone() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
