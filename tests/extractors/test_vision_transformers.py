"""DINOv2 and CLIP from a folder of random weights, against the same steps by torchvision and their own classes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torchvision.transforms import v2

from diffusion_lightning.extractors import CLIP, DINOv2
from diffusion_lightning.metrics import FrechetDistance

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    dinov2 = transformers.Dinov2Config(**SMALL, image_size=224, patch_size=14)
    transformers.Dinov2Model(dinov2).save_pretrained(folder / "dinov2-tiny")
    clip = transformers.CLIPVisionConfig(**SMALL, image_size=56, patch_size=14, projection_dim=24)
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip-tiny")
    return folder


def steps(size: int, mean: list[float], std: list[float]) -> v2.Compose:
    resize = v2.Resize((size, size), v2.InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), resize, v2.Normalize(mean, std)])


def test_features_are_the_networks_own(folders: Path) -> None:
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    ours = DINOv2(str(folders / "dinov2-tiny"))
    network = transformers.Dinov2Model.from_pretrained(folders / "dinov2-tiny").eval()
    normal = steps(224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), network(normal(x)).pooler_output, rtol=1e-5, atol=1e-5)
    assert ours(x).std(0).mean() > 1e-3
    assert FrechetDistance(ours).name == "fd_dinov2_tiny"
    assert ours.num_features == 32

    ours_too = CLIP(str(folders / "clip-tiny"))
    other = transformers.CLIPVisionModelWithProjection.from_pretrained(folders / "clip-tiny").eval()
    processor = transformers.CLIPImageProcessor()
    normal = steps(56, processor.image_mean, processor.image_std)
    with torch.no_grad():
        torch.testing.assert_close(ours_too(x), other(normal(x)).image_embeds, rtol=1e-5, atol=1e-5)
    assert FrechetDistance(ours_too).name == "fd_clip_tiny"
    assert ours_too.num_features == 24
    assert torch.equal(ours(x[:, :1]), ours(x[:, :1].expand(-1, 3, -1, -1)))


def test_without_weights_or_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="give the folder as the model"):
        DINOv2(str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'diffusion_lightning\[transformers\]'"):
        CLIP()
