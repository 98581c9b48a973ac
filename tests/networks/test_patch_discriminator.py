"""The discriminator of patches."""

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.networks import PatchDiscriminator


def field(layers: int) -> int:
    """Pixels whose change changes the logit in the middle, on a side: by gradients, without normalisation."""
    made = PatchDiscriminator(1, 8, layers).double()
    for k, module in enumerate(made.layers):
        if isinstance(module, nn.GroupNorm):  # which sees all of the image
            made.layers[k] = nn.Identity()
    image = torch.rand(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    logits = made(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert image.grad is not None
    return int((image.grad[0, 0].abs().sum(0) > 0).sum())


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_patches_are_the_papers(layers: int, pixels: int) -> None:
    assert field(layers) == pixels


def test_an_images_logits_depend_on_no_other() -> None:
    made, images = PatchDiscriminator(3, 8, 2), torch.rand(4, 3, 16, 16)

    def at(x: Tensor) -> Tensor:
        return made(x)

    torch.testing.assert_close(at(images)[:1], at(images[:1]))
    assert not list(made.buffers())  # nothing runs along
    assert at(images).shape == (4, 1, 2, 2)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"channels": 12}])
def test_what_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give at least one layer"):
        PatchDiscriminator(**wrong)
