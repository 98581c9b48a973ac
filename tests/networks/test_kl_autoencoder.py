"""Stable Diffusion's autoencoder, against diffusers' own."""

from typing import Any

import diffusers
import pytest
import torch

from diffusion_lightning import frozen
from diffusion_lightning.networks import KLAutoencoder

SMALL: dict[str, Any] = {"in_channels": 1, "channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4}


def test_stable_diffusions_shape_has_its_parameters() -> None:
    with torch.device("meta"):
        made = KLAutoencoder(size=512)
    assert sum(p.numel() for p in made.parameters()) == 83_653_863
    assert (made.factor, made.latent_channels, made.model.config.sample_size) == (8, 4, 512)


@pytest.mark.parametrize("attention", [True, False])
def test_outputs_and_all_gradients_are_diffusers(attention: bool) -> None:
    own = KLAutoencoder(**SMALL, attention=attention)
    theirs = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, mid_block_add_attention=attention,
    )  # fmt: skip
    theirs.load_state_dict(own.model.state_dict())
    image, noise = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 4, 4, 4)
    encoded = own.encode(image)
    (own.decode(encoded.sample(noise)).square().sum() + encoded.kl().sum()).backward()
    posterior = theirs.encode(image).latent_dist
    made = theirs.decode(posterior.mean + posterior.std * noise).sample
    (made.square().sum() + posterior.kl().sum()).backward()
    torch.testing.assert_close(own.decode(encoded.sample(noise)), made, rtol=1e-5, atol=1e-5)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(own.get_parameter(f"model.{name}").grad, parameter.grad, rtol=1e-5, atol=1e-5)
    assert own.conv_out is own.model.decoder.conv_out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"size": 9}, "divisible by 2"), ({"channels": 6}, "cannot be normalised"), ({"multipliers": ()}, "normalised")],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KLAutoencoder(**{**SMALL, **wrong})


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(frozen, "import_module", absent)
    with pytest.raises(ValueError, match=r"KLAutoencoder needs the package diffusers.*pip install"):
        KLAutoencoder(**SMALL)
