"""How well images show their captions, by CLIP."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..frozen import installed, pretrained


class CLIPScore(Metric):
    """100·max(0, mean of cos(image, caption)) over generated images, the cosine of CLIP's two embeddings.

    As torchmetrics' metric of this name, which does not work with version 5 of `transformers`. CLIP reads the first 77
    tokens of a caption. It needs the optional package, `pip install diffusion_lightning[transformers]`.

    Paper: CLIPScore: a reference-free evaluation metric for image captioning. Hessel et al., 2021, arXiv 2104.08718;
    without its factor of 2.5, and with the mean inside.

    Args:
        model: a CLIP's name on the hub, or a folder of its weights and processor.

    Raises:
        ValueError: if there is no such model; when images come without captions.
    """

    name = "clip_score"
    higher_is_better = True
    full_state_update = False
    total: Tensor
    n: Tensor

    def __init__(self, model: str = "openai/clip-vit-large-patch14") -> None:
        super().__init__()
        self.network, self.processor = pretrained("CLIPModel", model, torch.float32), _processor(model)
        for state in ("total", "n"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: Sequence[str] | None) -> None:
        """Add generated images (B, 1 or 3, H, W) in bytes, and their captions (B,)."""
        if captions is None:
            raise ValueError("CLIPScore compares images with captions, but these have none: leave CLIPScore out")
        inputs = self.processor(
            text=list(captions),
            images=list(images.expand(-1, 3, -1, -1).cpu()),
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            found = self.network(**inputs.to(images.device))
        self.total += (found.text_embeds * found.image_embeds).sum(1).double().sum()
        self.n += len(images)

    def compute(self) -> Tensor:
        return 100 * (self.total / self.n).clamp(min=0)


def _processor(model: str) -> Any:
    try:
        return installed(f"CLIPScore by {model}").CLIPProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the CLIP {model} has weights, but no processor of pictures and captions to be had: give a folder of both"
        ) from error
