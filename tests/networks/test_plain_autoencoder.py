"""The small autoencoder, against diffusers' AutoencoderTiny of TAESD's shape."""

from typing import Any

import diffusers
import pytest
import torch

from diffusion_lightning.networks import PlainAutoencoder


def test_it_is_taesd() -> None:
    """With its weights, in their order, the same latents and images; TAESD itself is fed [0, 1]."""
    own = PlainAutoencoder(variational=False, channels=8).double()
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4
    ).double()  # fmt: skip
    given, kept = list(theirs.parameters()), dict(own.named_parameters())
    assert [x.shape for x in given] == [x.shape for x in kept.values()]
    with torch.no_grad():
        for a, b in zip(kept.values(), given, strict=True):
            a.copy_(b)
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    z = own.encode((image + 1) / 2).mean
    torch.testing.assert_close(z, theirs.encode(image).latents)
    torch.testing.assert_close(own.decode(z) * 2 - 1, theirs.decode(z).sample)


def test_it_has_taesds_parameters() -> None:
    with torch.device("meta"):
        own, theirs = PlainAutoencoder(variational=False), diffusers.AutoencoderTiny()
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in theirs.parameters()) == 2_445_063


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("variational", [True, False])
def test_sizes_are_as_stated(levels: int, variational: bool) -> None:
    made = PlainAutoencoder(1, 16, 4, levels, 2, 1, variational)
    mean, log_var = made.encode(torch.zeros(3, 1, 32, 16))
    assert mean.shape == (3, made.latent_channels, 32 // made.factor, 16 // made.factor)
    assert (log_var is not None) == variational
    assert made.decode(mean).shape == (3, 1, 32, 16)
    assert torch.equal(made(torch.zeros(1, 1, 16, 16)), made.decode(made.encode(torch.zeros(1, 1, 16, 16)).mean))


def test_a_latent_far_out_does_no_harm() -> None:
    made = PlainAutoencoder(1, 8, 4, 1, 2, 1)
    z = torch.randn(1, 2, 4, 4).sign()
    assert torch.equal(made.decode(z * 100), made.decode(z * 1000))
    with torch.no_grad():
        made.encoder[-1].bias.fill_(1e6)  # type: ignore[operator]
    assert made.encode(torch.zeros(1, 1, 8, 8)).log_var.max() == 20  # type: ignore[union-attr]


@pytest.mark.parametrize(("wrong", "says"), [({"size": 12}, "divisible by 8"), ({"levels": 0}, "give at least 1")])
def test_what_cannot_be_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PlainAutoencoder(**wrong)
