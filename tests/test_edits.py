"""Edits by a small model: what is kept is kept, each end is what it must be, and what cannot be done is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoising import EDM, Velocity
from diffusion_lightning.edits import ACTIONS, Edits, rms
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.images import to_uint8
from diffusion_lightning.modules import GAN, Consistency, Diffusion, ProgressiveDistillation
from diffusion_lightning.networks import ResidualDiscriminator, ResidualGenerator, UNet
from diffusion_lightning.samplers import DDIM, Ancestral, Heun, Sampler
from diffusion_lightning.samplers import Consistency as OneCall
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, ZeroTerminalSNR

from .conftest import tiny_unet
from .support.conditions import conditional
from .support.first_stages import autoencoder, pictures

SHAPE = (1, 8, 8)
HALF = torch.zeros(1, 8, 8)
HALF[:, :, :4] = 1


def unconditional() -> Diffusion:
    torch.manual_seed(0)
    model = Diffusion(tiny_unet(), Linear(T=20, beta_1=1e-3, beta_T=0.4), SHAPE)
    for p in model.denoiser.network.parameters():
        nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Diffusion:
    """Of latents of 4×4 pixels, four channels."""
    folder = tmp_path_factory.mktemp("stage")
    autoencoder(folder)
    torch.manual_seed(0)
    unet = UNet(in_channels=4, size=4, channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, dropout=0.0)
    model = Diffusion(unet, Cosine(12), first_stage=Pretrained(str(folder)), parameterization=Velocity())
    for p in model.denoiser.network.parameters():
        nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def image() -> Tensor:
    return pictures(1)[0]


# Each action


def test_vary_goes_from_the_picture_itself_to_new_samples(image: Tensor) -> None:
    """Bit for bit at both ends."""
    model = unconditional()
    for sampler in (DDIM(5), Ancestral(6), Heun(4)):
        edits = Edits(model, sampler, seed=3)
        assert torch.equal(edits.vary(image, 0, 2), image.expand(2, *SHAPE))
        assert torch.equal(edits.vary(image, 1, 3), model.generate(3, sampler, seed=3))
        errors = [rms(edits.vary(image, strength, 8), image.expand(8, *SHAPE)) for strength in (0.25, 0.6, 1)]
        assert 0 < errors[0] < errors[2]


def test_a_sample_is_a_function_of_the_seed_and_its_number(image: Tensor) -> None:
    edits, other = (Edits(unconditional(), Ancestral(6), seed=seed) for seed in (0, 1))
    calls: dict[str, Any] = {
        "vary": lambda of, n: of.vary(image, 0.6, n),
        "inpaint": lambda of, n: of.inpaint(image, HALF, n, 2),
        "film": lambda of, n: of.film(n, 4)[-1],
    }
    for name, call in calls.items():
        few, many = call(edits, 2), call(edits, 5)
        torch.testing.assert_close(few, many[:2], msg=name)
        assert torch.equal(few, call(edits, 2))
        assert not torch.equal(few[0], few[1])
        assert not torch.allclose(few, call(other, 2))


@pytest.mark.parametrize("sampler", [Ancestral(6), DDIM(5), DDIM(5, clip=None)])
def test_inpainting_keeps_the_known_pixels(image: Tensor, sampler: Sampler) -> None:
    found = Edits(unconditional(), sampler).inpaint(image, HALF, 3, 2)
    assert found.shape == (3, *SHAPE)
    assert torch.equal(to_uint8(found)[..., :4], to_uint8(image.expand(3, *SHAPE))[..., :4])
    assert not torch.equal(found[0, ..., 4:], found[1, ..., 4:])


def test_inpainting_latents_keeps_the_known_pixels(latent: Diffusion, image: Tensor) -> None:
    """To less than a grey level, though no latent is a pixel; also a known pixel that shares its latent with a hole."""
    known = torch.ones(1, 8, 8)
    known[:, 3:6, 2] = 0
    found = Edits(latent, DDIM(4, clip=None)).inpaint(image, known, 2, 2)
    changed = (to_uint8(found).int() - to_uint8(image).int()).abs()
    assert (changed * known).max() <= 1
    assert (changed * (1 - known)).max() > 1
    assert not torch.equal(found[0], found[1])


def test_a_latent_is_known_where_all_of_its_pixels_are(latent: Diffusion, image: Tensor) -> None:
    seen: list[Tensor] = []

    class Spy(DDIM):
        def inpaint(self, denoise: Any, schedule: Any, x_T: Tensor, image: Tensor, known: Tensor, *more: Any,
                    **named: Any) -> Tensor:  # fmt: skip
            seen.extend([image, known])
            return super().inpaint(denoise, schedule, x_T, image, known, *more, **named)

    known = torch.ones(1, 8, 8)
    known[:, 3:6, 2] = 0
    Edits(latent, Spy(3, clip=None)).inpaint(image, known, 1, 1)
    wanted = torch.ones(1, 1, 4, 4)
    wanted[..., 1:3, 1] = 0
    assert torch.equal(seen[1], wanted)
    torch.testing.assert_close(seen[0], latent.encoded(image[None]))


def test_interpolation_ends_at_both_pictures_made_again(image: Tensor) -> None:
    edits, other = Edits(unconditional(), DDIM(20)), pictures(2)[1]
    found = edits.interpolate(image, other, 5)
    assert found.shape == (5, *SHAPE)
    for end, picture in ((found[0], image), (found[-1], other)):
        torch.testing.assert_close(end, edits.invert(picture)[1])
    assert torch.allclose(found.flip(0), edits.interpolate(other, image, 5), atol=1e-4)


def test_more_frames_than_are_made_at_once(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    edits, other = Edits(unconditional(), DDIM(5)), pictures(2)[1]
    whole = edits.interpolate(image, other, 7), edits.vary(image, 0.6, 7)
    monkeypatch.setattr("diffusion_lightning.edits.AT_ONCE", 3)
    for found, wanted in zip((edits.interpolate(image, other, 7), edits.vary(image, 0.6, 7)), whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_inversion_gives_the_noise_that_the_sampler_goes_on_from(image: Tensor) -> None:
    """And it makes the picture again, the better the more steps there are."""
    model = unconditional()
    errors = []
    for steps in (5, 20):
        sampler = Heun(steps)
        x_T, again = Edits(model, sampler).invert(image)
        assert x_T.shape == SHAPE
        made = sampler(model.denoiser, model.schedule, x_T[None]).clamp(-1, 1)
        torch.testing.assert_close(again, made[0].detach())
        errors.append(rms(again, image))
    assert errors[1] < errors[0]


def test_latents_are_inverted_as_latents(latent: Diffusion, image: Tensor) -> None:
    x_T, again = Edits(latent, DDIM(6, clip=None)).invert(image)
    assert x_T.shape == (4, 4, 4)
    assert again.shape == SHAPE
    between = Edits(latent, DDIM(6, clip=None)).interpolate(image, -image, 3)
    torch.testing.assert_close(between[0], again)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
def test_denoising_is_one_prediction_at_the_nearest_noise(image: Tensor, sigma: float) -> None:
    model = unconditional()
    edits = Edits(model)
    levels = [math.sqrt(float((1 - a) / a)) for a in model.schedule.alpha_bar]
    t, level = edits.time(sigma)
    assert level == pytest.approx(levels[t])
    assert abs(level - sigma) == pytest.approx(min(abs(x - sigma) for x in levels))
    x_t = math.sqrt(float(model.schedule.alpha_bar[t])) * image[None]
    with torch.no_grad():
        wanted = model.denoiser(x_t, t).x_0.clamp(-1, 1)[0] if t else image
    torch.testing.assert_close(edits.denoise(image, sigma), wanted)


def test_without_noise_there_is_none_to_take_away(image: Tensor) -> None:
    assert torch.equal(Edits(unconditional()).denoise(image, 0), image)


def test_denoising_by_the_best_denoiser_is_the_best_there_is() -> None:
    """Of white noise N(0, s²), s²/(s² + σ²)·image: no number in its place has a smaller error."""
    model = unconditional()

    class Exact(nn.Module):
        def forward(self, x_t: Tensor, index: Tensor, c: Any) -> Tensor:
            signal, noise = model.schedule.scales(index + 1, x_t)
            x_0 = signal * 0.09 / (signal**2 * 0.09 + noise**2) * x_t
            return (x_t - signal * x_0) / noise

    model.denoiser.network = Exact()
    edits = Edits(model)
    _, sigma = edits.time(0.5)
    g = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(SHAPE, generator=g) for _ in range(2))
    noisy = 0.3 * x_0 + sigma * eps
    wanted = 0.09 / (0.09 + sigma**2) * noisy
    torch.testing.assert_close(edits.denoise(noisy, sigma), wanted.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_a_film_begins_with_noise_and_ends_with_the_samples() -> None:
    model, sampler, seen = unconditional(), Ancestral(12), list[int]()
    film = Edits(model, sampler, seed=4, watch=lambda t, x: seen.append(t)).film(3, 5)
    assert [frame.shape for frame in film] == [(3, *SHAPE)] * 5
    assert torch.equal(film[-1], model.generate(3, sampler, seed=4))
    assert torch.equal(film[0], model.generate(3, lambda denoise, schedule, x_T, c, seeds: x_T, seed=4))
    assert seen == sampler.times(model.schedule)
    assert len(Edits(model, sampler).film(1, 100)) == 13  # as many as there are


# What the bar counts, conditions


def test_the_steps_of_an_action_are_known_before(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_lightning.edits.AT_ONCE", 3)
    seen: list[int] = []
    edits = Edits(unconditional(), DDIM(7), watch=lambda t, x: seen.append(t))
    done: dict[str, list[Any]] = {
        "interpolate": [lambda: edits.interpolate(image, -image, 4), {"frames": 4}],
        "inpaint": [lambda: edits.inpaint(image, HALF, 4, 3), {"n": 4, "resample": 3}],
        "vary": [lambda: edits.vary(image, 0.5, 4), {"n": 4, "strength": 0.5}],
        "invert": [lambda: edits.invert(image), {}],
        "denoise": [lambda: edits.denoise(image, 0.5), {"sigma": 0.5}],
        "film": [lambda: edits.film(4, 3), {"n": 4, "frames": 3}],
    }
    assert set(done) == set(ACTIONS)
    for action, (call, given) in done.items():
        seen.clear()
        call()
        assert len(seen) == edits.calls(action, **given), action
    assert edits.calls("vary", strength=0) == edits.calls("denoise", sigma=0) == 0


def test_a_picture_alone_says_what_it_shows(image: Tensor) -> None:
    """Without y the null condition; with it the class; of a film each class in turn, as for `generate`."""
    model = conditional()
    null = model.conditioner.null(2)
    for y, wanted in ((None, null), (1, 1), (torch.tensor([2, 0]), torch.tensor([2, 0]))):
        found = Edits(model, DDIM(3), y=y).vary(image, 1, 2)
        assert torch.equal(found, model.generate(2, DDIM(3), y=wanted))
    film = Edits(model, DDIM(3)).film(2, 3)
    assert torch.equal(film[-1], model.generate(2, DDIM(3)))
    guided = Edits(model, DDIM(3), y=1, guidance=3.0).vary(image, 1, 2)
    assert torch.equal(guided, model.generate(2, DDIM(3), y=1, guidance=3.0))
    with pytest.raises(ValueError, match=r"never trained without one.*give y, in a command --y or --prompt"):
        Edits(conditional(dropout=0)).vary(image, 0.5)
    with pytest.raises(ValueError, match="7"):
        Edits(model, y=7).vary(image, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_cast_edits_in_whole_precision(dtype: torch.dtype, image: Tensor) -> None:
    """Its network computes in that type; a picture is not rounded to it."""
    edits, cast = Edits(unconditional(), DDIM(8)), Edits(unconditional().to(dtype), DDIM(8))
    assert torch.equal(cast.vary(image, 0, 1)[0].float(), image)
    assert torch.equal(to_uint8(cast.inpaint(image, HALF, 1, 1))[0, ..., :4], to_uint8(image)[..., :4])
    for a, b in (
        (edits.invert(image)[1], cast.invert(image)[1]),
        (edits.denoise(image, 0.5), cast.denoise(image, 0.5)),
        (edits.vary(image, 0.5, 2), cast.vary(image, 0.5, 2)),
        (edits.interpolate(image, -image, 3), cast.interpolate(image, -image, 3)),
    ):
        torch.testing.assert_close(a, b.float(), rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-3)


# Refusals


def test_a_gan_has_no_way_to_edit_on() -> None:
    sizes: Any = {"in_channels": 1, "size": 8, "channels": 8, "most": 16, "blocks": 1, "group": 4}
    gan = GAN(ResidualGenerator(latent=5, **sizes), ResidualDiscriminator(**sizes))
    with pytest.raises(ValueError, match=r"GAN makes an image in one go.*checkpoint of a Diffusion"):
        Edits(gan)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_student_knows_its_few_steps_alone(action: str) -> None:
    students = [
        Consistency(tiny_unet(), LogSigma(16_000, 0.0002, 500.0), parameterization=EDM()),
        ProgressiveDistillation(tiny_unet(), Cosine(16), 4, 1, parameterization=Velocity()),
    ]
    for student, sampler in zip(students, (OneCall(2), None), strict=True):
        if action == "film":
            assert len(Edits(student, sampler).film(2, 9)) == (3 if sampler else 5)
        else:
            with pytest.raises(ValueError, match=r"is a student.*such as its teacher's"):
                Edits(student, sampler).check(action)
    with pytest.raises(ValueError, match="in one step, which is no film"):
        Edits(students[0]).film(2, 9)


def test_noise_of_the_samplers_own_cannot_be_inverted(image: Tensor) -> None:
    edits = Edits(unconditional(), Ancestral(4), watch=lambda t, x: pytest.fail("a step was taken"))
    for call in (lambda: edits.invert(image), lambda: edits.interpolate(image, image)):
        with pytest.raises(ValueError, match=r"Ancestral adds noise of its own.*DDIM\(eta=0\)"):
            call()


def test_noise_of_pixels_is_none_of_latents(latent: Diffusion, image: Tensor) -> None:
    with pytest.raises(ValueError, match="the model diffuses latents"):
        Edits(latent).denoise(image, 0.5)
    with pytest.raises(ValueError, match="the sampler clips x_0"):
        Edits(latent, DDIM(3))


def test_what_is_out_of_range_is_refused_before_a_step(image: Tensor) -> None:
    edits = Edits(unconditional(), watch=lambda t, x: pytest.fail("a step was taken"))
    wrong: list[tuple[Any, str]] = [
        (lambda: edits.vary(image, math.nan), "strength is nan"),
        (lambda: edits.vary(image, 1.5), "strength is 1.5"),
        (lambda: edits.vary(image, 0.5, 0), "0 samples"),
        (lambda: edits.inpaint(image, HALF, 0), "0 samples"),
        (lambda: edits.inpaint(image, HALF, 1, 0), "resample is 0"),
        (lambda: edits.inpaint(image, torch.ones(1, 8, 8)), "keeps every pixel"),
        (lambda: edits.inpaint(image, torch.zeros(1, 8, 8)), "keeps no pixel"),
        (lambda: edits.inpaint(image, torch.ones(8, 8)), r"known has shape \[8, 8\]"),
        (lambda: edits.inpaint(image, HALF / 2), "a 0 or 1 for each pixel"),
        (lambda: edits.interpolate(image, image, 1), "frames is 1"),
        (lambda: edits.denoise(image, -1.0), "sigma is -1.0"),
        (lambda: edits.denoise(image, math.inf), "sigma is inf"),
        (lambda: edits.film(0, 8), "0 samples"),
        (lambda: edits.film(4, 1), "frames is 1"),
        (lambda: edits.vary(image[:, :4], 0.5), r"the image has shape \[1, 4, 8\]"),
        (lambda: edits.vary(to_uint8(image), 0.5), "torch.uint8"),
    ]
    for call, says in wrong:
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(ValueError, match="the seed is -1"):
        Edits(unconditional(), seed=-1)


def test_no_signal_at_all_is_the_nearest_to_no_sigma(image: Tensor) -> None:
    """Where σ_T is infinite, the largest finite one is taken."""
    model = Diffusion(tiny_unet(), ZeroTerminalSNR(Linear(20, 1e-3, 0.4)), SHAPE, parameterization=Velocity())
    t, level = Edits(model).time(1e9)
    assert (t, math.isfinite(level)) == (19, True)


def test_an_edit_has_no_noise_but_the_seeds(latent: Diffusion) -> None:
    """A latent is the mean of its distribution."""
    images = pictures(2)
    stage: Any = latent.first_stage
    assert torch.equal(latent.encoded(images), stage.scaled(stage.moments(images).mean))
