"""Features of DINOv2 and CLIP, by Hugging Face's `transformers`, for Fréchet distances that see more than textures.

They need the optional package, `pip install diffusion_lightning[transformers]`, and the weights: from its cache, a
folder, or the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frozen import pretrained


class DINOv2(nn.Module):
    """Bytes (B, 1 or 3, H, W) to the class token of a DINOv2, after its last norm.

    Images are resized to 224×224 (bicubic, antialiased) and normalised as ImageNet's are.

    Paper: DINOv2: learning robust visual features without supervision. Oquab et al., 2023, arXiv 2304.07193; for the
    distance: Exposing flaws of generative model evaluation metrics. Stein et al., 2023, arXiv 2306.04675.

    Args:
        model: its name on the hub, or a folder; it names the distance, here `fd_dinov2_large`.
    """

    def __init__(self, model: str = "facebook/dinov2-large") -> None:
        super().__init__()
        self.network = pretrained("Dinov2Model", model, torch.float32)
        self.name, self.num_features = _short(model), int(self.network.config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        x = _normalised(images, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return self.network(pixel_values=x).last_hidden_state[:, 0]


class CLIP(nn.Module):
    """Bytes (B, 1 or 3, H, W) to CLIP's image embedding.

    Images are resized to the network's size (bicubic, antialiased) and normalised as CLIP's are.

    Paper: Learning transferable visual models from natural language supervision. Radford et al., 2021, arXiv
    2103.00020.

    Args:
        model: its name on the hub, or a folder; it names the distance, here `fd_clip_vit_large_patch14`.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__()
        self.network = pretrained("CLIPVisionModelWithProjection", model, torch.float32)
        self.name, self.num_features = _short(model), int(self.network.config.projection_dim)
        self.size = int(self.network.config.image_size)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        return self.network(pixel_values=_normalised(images, self.size, mean, std)).image_embeds


def _normalised(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    x = images.float().expand(-1, 3, -1, -1) / 255
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].replace("-", "_")
