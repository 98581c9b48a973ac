"""Networks and extractors of random weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lightning.extractors import inception
from diffusion_lightning.networks import UNet

SHAPES: dict[str, dict] = {
    "ddpm": {"size": 32, "channels": 32, "multipliers": (1, 2, 2, 2), "attention": (16,), "groups": 8},
    "no attention": {"size": 16, "channels": 32, "multipliers": (1, 3), "attention": (), "groups": 16, "blocks": 1},
    "iddpm": {
        "size": 16, "channels": 32, "multipliers": (1, 2, 2), "blocks": 3, "attention": (8, 4), "dropout": 0.3,
        "groups": 8, "out_channels": 6, "heads": 4, "scale_shift": True, "release": "IDDPM",
    },
    "adm": {
        "size": 32, "channels": 32, "multipliers": (1, 2, 3), "blocks": 2, "attention": (16, 8), "groups": 16,
        "out_channels": 6, "head_channels": 16, "scale_shift": True, "resample_blocks": True, "release": "IDDPM",
    },
    "adm, levels without attention": {
        "size": 32, "channels": 32, "multipliers": (1, 2, 3), "blocks": 1, "attention": (8,), "groups": 16,
        "head_channels": 16, "resample_blocks": True, "release": "IDDPM",
    },
}  # fmt: skip


def random_unet(name: str, seed: int = 0) -> UNet:
    """No weight at zero, so that no branch is hidden."""
    torch.manual_seed(seed)
    network = UNet(**SHAPES[name]).eval()
    for p in network.parameters():
        p.data = torch.randn_like(p) * (0.3 if p.ndim == 1 else (p[0].numel()) ** -0.5)
    return network


def random_weights(path: Path) -> Path:
    """Weights whose features differ from image to image, and norms that do something."""
    generator = torch.Generator().manual_seed(0)
    network = inception._network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for x, low, high in ((module.weight.data, 0.5, 1.5), (module.running_var, 0.5, 1.5),
                                 (module.bias.data, -0.2, 0.2), (module.running_mean, -0.2, 0.2)):  # fmt: skip
                x.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / inception.FILES[0])
