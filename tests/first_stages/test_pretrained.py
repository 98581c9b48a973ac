"""A frozen autoencoder's numbers are diffusers' own times scale and shift, however they are computed."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.networks.base.moments import Moments
from diffusion_lightning.random import Draw

from ..support.first_stages import KINDS, autoencoder, pictures

DRAW = Draw(3, "training", 5, torch.arange(5))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Autoencoders of diffusers, of three channels, by their classes."""
    root = tmp_path_factory.mktemp("stages")
    made = {kind: autoencoder(root / kind, kind, channels=3) for kind in KINDS}
    made["SD3"] = autoencoder(root / "SD3", channels=3, scaling_factor=1.5305, shift_factor=0.0609)
    of_channels: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 0.7]}
    made["channels"] = autoencoder(root / "channels", channels=3, scaling_factor=0.5, **of_channels)
    return root, made


def oracle(theirs: Any, image: torch.Tensor) -> torch.Tensor:
    """Raw latents by diffusers' own class, a fresh draw where it has one."""
    encoded = theirs.encode(image)
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        return posterior.mean + posterior.std * DRAW.normal("latent", posterior.mean)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_are_those_of_diffusers(folders: tuple[Path, dict[str, Any]], kind: str) -> None:
    root, made = folders
    stage, theirs, image = Pretrained(str(root / kind)), made[kind], pictures(5, 3)
    scale = theirs.config.scaling_factor
    assert torch.equal(stage.scale, torch.tensor([[[scale]]], dtype=torch.float64))
    assert stage.latent_shape((3, 8, 12)) == (theirs.config.latent_channels, 4, 6)
    assert stage.image_shape(stage.latent_shape((3, 8, 12))) == (3, 8, 12)
    z = stage.sample(stage.moments(image), DRAW)
    torch.testing.assert_close(z, oracle(theirs, image) * scale, rtol=1e-5, atol=1e-6)
    assert list(z.shape) == [5, *stage.latent_shape((3, 8, 8))]
    shown = stage.decode(z)
    torch.testing.assert_close(shown, theirs.decode(z / scale).sample.clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert shown.abs().max() <= 1
    assert (stage.decode(100 * z).abs() <= 1).all()


def test_scale_and_shift_are_as_diffusers_pipelines_apply_them(folders: tuple[Path, dict[str, Any]]) -> None:
    """Stable Diffusion 3's (z_raw - shift)·scale, and Stable Diffusion XL's z·std/scale + mean on the way back."""
    root, made = folders
    image = pictures(5, 3)
    raw = oracle(made["SD3"], image)
    stage = Pretrained(str(root / "SD3"))
    z = stage.sample(stage.moments(image), DRAW)
    torch.testing.assert_close(z, (raw - 0.0609) * 1.5305, rtol=1e-5, atol=1e-6)
    expected = made["SD3"].decode(z / 1.5305 + 0.0609).sample.clamp(-1, 1)
    torch.testing.assert_close(stage.decode(z), expected, rtol=1e-5, atol=1e-5)

    stage, theirs = Pretrained(str(root / "channels")), made["channels"]
    mean, std = (torch.tensor(x).view(4, 1, 1) for x in (theirs.config.latents_mean, theirs.config.latents_std))
    z = stage.sample(stage.moments(image), DRAW)
    torch.testing.assert_close(z * std / 0.5 + mean, oracle(theirs, image), rtol=1e-5, atol=1e-6)
    expected = theirs.decode(z * std / 0.5 + mean).sample.clamp(-1, 1)
    torch.testing.assert_close(stage.decode(z), expected, rtol=1e-5, atol=1e-5)


def test_a_scale_and_shift_of_each_channel_and_pixels_from_0(folders: tuple[Path, dict[str, Any]]) -> None:
    """As EDM2 uses Stable Diffusion's: pixels in [0, 1], latents of deviation 1/2 a channel."""
    root, made = folders
    mean, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    stage = Pretrained(str(root / "AutoencoderKL"), (0.5 / std).tolist(), mean.tolist(), pixels=(0.0, 1.0))
    image, theirs = pictures(5, 3), made["AutoencoderKL"]
    z = stage.sample(stage.moments(image), DRAW)
    raw = oracle(theirs, (image + 1) / 2)
    torch.testing.assert_close(z, (raw - mean.view(4, 1, 1)) * (0.5 / std).view(4, 1, 1), rtol=1e-5, atol=1e-5)
    expected = (theirs.decode(raw).sample * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(stage.decode(z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slices", [1, 2, 5, 16, None])
def test_slices_change_no_number(folders: tuple[Path, dict[str, Any]], slices: int | None) -> None:
    root, _ = folders
    whole, sliced = (Pretrained(str(root / "AutoencoderKL"), slices=n) for n in (None, slices))
    image = pictures(5, 3)
    one, other = whole.moments(image), sliced.moments(image)
    torch.testing.assert_close(other.mean, one.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.log_var, one.log_var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sliced.decode(one.mean), whole.decode(one.mean), rtol=1e-5, atol=1e-5)


def test_tiles_are_those_of_diffusers_and_images_are_encoded_whole(folders: tuple[Path, dict[str, Any]]) -> None:
    root, made = folders
    tiled, plain = (Pretrained(str(root / "AutoencoderKL"), tile=tile) for tile in (True, False))
    image = pictures(2, 3, size=24)
    found = tiled.moments(image)
    assert torch.equal(found.mean, plain.moments(image).mean)
    z, theirs = found.mean * 0.18215, made["AutoencoderKL"]
    theirs.enable_tiling()
    expected = theirs.decode(z / 0.18215).sample.clamp(-1, 1)
    theirs.disable_tiling()
    torch.testing.assert_close(tiled.decode(z), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(tiled.decode(z), plain.decode(z))
    assert torch.equal(tiled.moments(image).mean, found.mean)  # also after it has decoded


@pytest.mark.parametrize("kind", ["VQModel", "AutoencoderTiny"])
def test_tiles_that_an_autoencoder_does_not_have_are_refused(folders: tuple[Path, dict[str, Any]], kind: str) -> None:
    root, _ = folders  # AutoencoderTiny's tiles are cut for 2^channels, here 8 where its factor is 2
    with pytest.raises(ValueError, match=f"{kind} of .* cannot decode in tiles"):
        Pretrained(str(root / kind), tile=True)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_it_computes_in_its_own_precision_under_any_autocast(
    folders: tuple[Path, dict[str, Any]], precision: Any
) -> None:
    root, _ = folders
    kind = "AutoencoderKL" if precision == "bfloat16" else "AutoencoderTiny"
    exact, low = Pretrained(str(root / kind)), Pretrained(str(root / kind), precision=precision)
    image = pictures(5, 3)
    assert next(low.frozen.network.parameters()).dtype == getattr(torch, precision)
    one, other = exact.moments(image), low.moments(image)
    assert other.mean.dtype == torch.float32
    torch.testing.assert_close(other.mean, one.mean, rtol=0.05, atol=0.05)
    assert not torch.equal(other.mean, one.mean)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact.moments(image).mean, one.mean)
        assert torch.equal(exact.decode(one.mean), exact.decode(one.mean.clone()))
    assert low.decode(low.scaled(one.mean)).dtype == torch.float32


def test_scale_and_shift_stay_exact_in_a_model_of_any_type(folders: tuple[Path, dict[str, Any]]) -> None:
    root, _ = folders
    stage = Pretrained(str(root / "SD3"))
    nn.ModuleList([stage]).bfloat16().half().float()
    assert stage.scale.dtype == stage.shift.dtype == torch.float64
    assert (float(stage.scale), float(stage.shift)) == (1.5305, 0.0609)
    assert set(stage.state_dict()) == {"scale", "shift"}
    assert not list(stage.parameters())


def test_measured_scale_and_shift_are_the_statistics_of_independent_sums(folders: tuple[Path, dict[str, Any]]) -> None:
    root, made = folders
    image = pictures(37, 3)
    posterior = made["AutoencoderKL"].encode(image).latent_dist
    mean, var = (x.double().numpy().transpose(1, 0, 2, 3).reshape(4, -1) for x in (posterior.mean, posterior.var))
    std = np.sqrt(mean.var(1) + var.mean(1))  # law of total variance
    for ranks in (1, 2, 3):
        stages = [Pretrained(str(root / "AutoencoderKL"), "measure") for _ in range(ranks)]
        own = [image.split(8)[rank::ranks] for rank in range(ranks)]
        sums: list[torch.Tensor] = []

        def collect(x: torch.Tensor, to: list[torch.Tensor] = sums) -> torch.Tensor:
            to.append(x)
            return x

        for rank, stage in enumerate(stages):
            stage.measure(own[rank], collect)
        total = torch.stack(sums[:ranks]).sum(0)
        for stage in stages:
            stage.measure([], lambda _, total=total: total)  # type: ignore[misc]
            np.testing.assert_allclose(stage.shift.flatten(), mean.mean(1), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(stage.scale.flatten(), 1 / std, rtol=1e-6)
            assert not stage.measures
    drawn = torch.cat([stages[0].encode(image, Draw(0, "x", k, torch.arange(37))) for k in range(20)])
    torch.testing.assert_close(drawn.std((0, 2, 3)), torch.ones(4), rtol=0.05, atol=0.05)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.05)
    moments = Moments(posterior.mean, posterior.logvar)
    again = Pretrained(str(root / "AutoencoderKL"), "measure")
    again.measure([moments], lambda x: x)
    torch.testing.assert_close(again.scale, stages[0].scale)


def test_a_stage_is_the_same_by_weights_scale_and_pixels(folders: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = folders
    stage = Pretrained(str(root / "AutoencoderKL"))
    assert stage.same(Pretrained(str(stage.frozen.write(tmp_path))))
    autoencoder(tmp_path / "other", channels=3, seed=1)
    ones = [1.0, 1.0, 1.0, 1.0 + 1e-3]
    for other in (
        Pretrained(str(tmp_path / "other")),
        Pretrained(str(root / "AutoencoderKL"), [0.2, 0.2, 0.2, 0.3], [0.0] * 4),
        Pretrained(str(root / "AutoencoderKL"), ones, pixels=(0.0, 1.0)),
        None,
    ):
        assert not stage.same(other)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a wrong scale for a known stage": ("AutoencoderKL", {"scale": 0.13025}, "was published with 0.18215"),
    "a wrong scale, of each channel": ("AutoencoderKL", {"scale": [0.13025] * 4}, "was published with 0.18215"),
    "a shift left out": ("SD3", {"shift": 0.0}, "was published with 0.0609"),
    "a wrong shift": ("SD3", {"shift": 0.1159}, "was published with 0.0609"),
    "a shift of a stage that has none": ("AutoencoderKL", {"shift": 0.0609}, "was published with 0:"),
    "a shift forgotten beside a scale of its own": ("SD3", {"scale": [1.0, 2.0, 3.0, 4.0]}, "the shift 0.0609"),
    "another range of pixels": ("AutoencoderKL", {"pixels": (0, 1)}, r"is for pixels in \[-1, 1\]"),
    "another range of pixels beside the scale": (
        "AutoencoderKL", {"pixels": (0, 1), "scale": 0.18215}, r"is for pixels in \[-1, 1\]",
    ),
    "a range of pixels that is none": ("AutoencoderKL", {"pixels": (0, 255)}, r"take \[-1, 1\] or \[0, 1\]"),
    "a scale of 3 for 4 channels": ("AutoencoderKL", {"scale": [1.0, 2.0, 3.0]}, "4 channels: give one"),
    "a scale of 0": ("AutoencoderKL", {"scale": 0}, "none of them 0"),
    "a scale of infinity": ("AutoencoderKL", {"scale": float("inf")}, "give one number"),
    "a shift beside a scale to measure": ("AutoencoderKL", {"scale": "measure", "shift": 0.1}, "leave shift out"),
    "slices of none": ("AutoencoderKL", {"slices": 0}, "give at least 1"),
    "half precision that overflows": ("AutoencoderKL", {"precision": "float16"}, "has force_upcast"),
    "a precision of no float": ("AutoencoderKL", {"precision": "int8"}, "is int8, but it is one of float32"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_belong_to_the_stage_is_one_sentence(folders: tuple[Path, dict[str, Any]], fault: str) -> None:
    kind, given, says = REFUSED[fault]
    with pytest.raises(ValueError, match=says):
        Pretrained(str(folders[0] / kind), **given)


@pytest.mark.parametrize("given", [{}, {"scale": 0.18215}, {"scale": [0.18215] * 4, "shift": 0.0}])
def test_the_published_scale_may_be_written_out(folders: tuple[Path, dict[str, Any]], given: dict[str, Any]) -> None:
    assert float(Pretrained(str(folders[0] / "AutoencoderKL"), **given).scale) == 0.18215


def test_images_and_latents_that_do_not_fit_are_one_sentence(folders: tuple[Path, dict[str, Any]]) -> None:
    stage = Pretrained(str(folders[0] / "AutoencoderKL"))
    for shape in ((1, 8, 8), (3, 7, 8), (3, 8, 9)):
        with pytest.raises(ValueError, match=r"takes 3 channels and sizes that are multiples of 2"):
            stage.latent_shape(shape)
    with pytest.raises(ValueError, match="give the network in_channels: 4"):
        stage.image_shape((3, 4, 4))


def test_an_unmeasured_scale_neither_encodes_nor_decodes(folders: tuple[Path, dict[str, Any]]) -> None:
    stage = Pretrained(str(folders[0] / "AutoencoderKL"), "measure")
    with pytest.raises(ValueError, match="no training has done so"):
        stage.encode(pictures(5, 3), DRAW)
    with pytest.raises(ValueError, match="no training has done so"):
        stage.decode(torch.zeros(1, 4, 4, 4))


def test_a_constant_latent_has_no_scale(folders: tuple[Path, dict[str, Any]]) -> None:
    stage = Pretrained(str(folders[0] / "AutoencoderTiny"), "measure")
    with pytest.raises(ValueError, match=r"have standard deviations .*: give its scale"):
        stage.measure([Moments(torch.ones(3, 4, 4, 4))], lambda x: x)


def test_what_decodes_to_infinity_is_one_sentence(folders: tuple[Path, dict[str, Any]]) -> None:
    stage = Pretrained(str(folders[0] / "AutoencoderTiny"), precision="float16")
    for p in stage.frozen.network.parameters():
        p.mul_(100)
    with pytest.raises(ValueError, match=r"decodes to what is not finite in float16: give its precision as bfloat16"):
        stage.decode(torch.full((1, 4, 4, 4), 3.0))
    with pytest.raises(ValueError, match="the model that made them has diverged"):
        stage.decode(torch.full((1, 4, 4, 4), float("nan")))


def test_code_is_made_of_it_once_where_asked(
    folders: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of encode and decode, for a copy of the stage too; the numbers are looked at where there is a compiler."""
    made: list[str] = []

    def recorded(verb: Any, **options: Any) -> Any:
        assert options == {"dynamic": False, "options": {"deterministic": True}}
        made.append(verb.__name__)
        return verb

    monkeypatch.setattr(torch, "compile", recorded)
    stage, plain = (Pretrained(str(folders[0] / "AutoencoderKL"), compile=compiles) for compiles in (True, False))
    z = plain.scaled(plain.moments(pictures(3, 3)).mean)
    assert made == []
    for each in (stage, copy.deepcopy(stage)):
        assert torch.equal(each.moments(pictures(3, 3)).mean, plain.moments(pictures(3, 3)).mean)
        assert torch.equal(each.decode(z), plain.decode(z))
    assert sorted(made) == ["decode", "encode"]
