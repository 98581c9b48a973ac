"""First stages of any kind: pixels are their own latents, and what encodes looks at what it made."""

import warnings

import pytest
import torch
from torch import Tensor

from diffusion_lightning.first_stages import FirstStage, PixelSpace
from diffusion_lightning.networks.base.moments import Moments
from diffusion_lightning.random import Draw, normal

DRAW = Draw(3, "training", 5, torch.arange(6))


class Half(PixelSpace):
    """Latents that are no pixels: halves of the image, or a Gaussian around them."""

    latent = True

    def __init__(self, log_var: float | None = None, gain: float = 0.5) -> None:
        super().__init__()
        self.log_var, self.gain = log_var, gain

    def moments(self, image: Tensor) -> Moments:
        return Moments(image * self.gain, None if self.log_var is None else torch.full_like(image, self.log_var))


def test_pixels_are_their_own_latents() -> None:
    stage, image = PixelSpace(), torch.randn(6, 3, 4, 4)
    assert stage.encode(image, DRAW) is image
    assert torch.equal(stage.decode(image), image.clamp(-1, 1))
    assert stage.latent_shape((3, 4, 8)) == stage.image_shape([3, 4, 8]) == (3, 4, 8)
    assert not stage.latent
    assert not stage.measures
    assert not list(stage.state_dict())
    assert stage.same(PixelSpace())
    assert stage.same(None)
    assert not stage.same(Half())


def test_the_latent_is_a_counter_based_draw_around_the_mean() -> None:
    """A function of seed, step and the image's number: a new one each step, and the same one at each asking."""
    stage, image = Half(log_var=-1.0), torch.randn(6, 3, 4, 4)
    found = stage.encode(image, DRAW)
    noise = normal((3, 4, 4), 3, "training: latent", 5, torch.arange(6))
    assert torch.equal(noise, DRAW.normal("latent", image))
    torch.testing.assert_close(found, image / 2 + torch.tensor(-0.5).exp() * noise)
    assert torch.equal(found, stage.encode(image, DRAW))
    assert torch.equal(found, stage.encode(stage.moments(image), DRAW))
    part = stage.encode(image[2:4], DRAW._replace(sample=torch.tensor([2, 3])))
    assert torch.equal(part, found[2:4])
    for other in (DRAW._replace(step=6), DRAW._replace(seed=4), DRAW._replace(sample=torch.arange(6) + 6)):
        away = (stage.encode(image, other) - image / 2) / torch.tensor(-0.5).exp()
        assert abs(float(torch.corrcoef(torch.stack([away.flatten(), noise.flatten()]))[0, 1])) < 0.2


@pytest.mark.parametrize("gain", [0.01, 30.0])
def test_latents_far_from_unit_scale_warn_once(gain: float) -> None:
    stage, image = Half(gain=gain), torch.randn(6, 3, 4, 4)
    with pytest.warns(UserWarning, match="standard deviation of"):
        stage.encode(image, DRAW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage.encode(image, DRAW)


def test_latents_that_are_not_finite_are_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"latents of the first batch are not finite, .* precision as bfloat16"):
        Half(gain=float("inf")).encode(torch.randn(6, 3, 4, 4), DRAW)


def test_a_stage_of_ones_own_needs_its_five_verbs() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FirstStage()  # type: ignore[abstract]
