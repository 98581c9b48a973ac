"""Guidance against Gaussian classes, where what it makes is known in closed form, and its way to the command."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn
from torchvision.io import read_image

from diffusion_lightning.checkpoints import load
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, Unconditional
from diffusion_lightning.denoising import EDM, X0, Denoiser, Epsilon, Flow, Parameterization, Prediction, Velocity
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.images import to_uint8
from diffusion_lightning.networks import UNet
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Cosine, Linear

from .conftest import gaussian
from .support.conditions import conditional, with_classes

STD = 0.5


class Classes(nn.Module):
    """The optimal denoiser of data N(c, 0.5²): a class is its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor) -> Prediction:
        self.calls.append(len(x_t))
        return gaussian(Cosine(50), STD, c[:, :, None, None])(x_t, t)  # type: ignore[arg-type]


def means(*values: float) -> ClassLabels:
    """Classes whose rows are these, the last being that of no class."""
    labels = ClassLabels(len(values) - 1, 1)
    labels.table.weight.data = torch.tensor(values)[:, None]
    return labels.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("sampler", [Ancestral(clip=None), DDIM(10, clip=None), DPMSolver(10, clip=None),
                                     Heun(10, clip=None)], ids=lambda s: type(s).__name__)  # fmt: skip
def test_gaussian_classes_are_moved_by_the_scale(sampler: Sampler, scale: float) -> None:
    """Their denoiser is affine in the mean, so that the guided one is that of N(m_∅ + scale·(m_c - m_∅), 0.5²)."""
    labels, x_T = means(1.0, -0.5, 0.25), torch.randn(6, 2, 3, 3)
    y = torch.arange(6) % 2
    guided = sampler(ClassifierFree(Classes(), labels, scale), Cosine(50), x_T, c=labels(y))
    moved = 0.25 + scale * (labels(y) - 0.25)
    torch.testing.assert_close(guided, sampler(Classes(), Cosine(50), x_T, c=moved), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "size"), [(0.0, 8), (1.0, 4), (2.5, 8)])
def test_both_halves_are_one_call(scale: float, size: int) -> None:
    denoiser, labels = Classes(), means(1.0, 0.0)
    guided = ClassifierFree(denoiser, labels, scale)
    DDIM(5)(guided, Cosine(50), torch.randn(4, 1, 2, 2), c=labels(torch.zeros(4, dtype=torch.long)))
    assert denoiser.calls == [size] * 5


def test_a_time_each_and_the_conditional_variance() -> None:
    """Of a network that predicts the variance, against two calls."""
    schedule, labels = Linear(20), ClassLabels(3, 32, std=1.0)
    network = UNet(1, 8, 8, (1, 2), blocks=1, attention=(4,), groups=4, out_channels=2)
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    denoiser = Denoiser(network.eval(), schedule, Epsilon()).requires_grad_(requires_grad=False)
    x_t, t, y = torch.randn(4, 1, 8, 8), torch.tensor([1, 7, 20, 4]), torch.tensor([0, 2, 1, 1])
    found = ClassifierFree(denoiser, labels, 4.0)(x_t, t, labels(y))
    with_c, without = denoiser(x_t, t, labels(y)), denoiser(x_t, t, labels(torch.full((4,), 3)))
    for name in ("x_0", "eps"):
        a, b = getattr(with_c, name), getattr(without, name)
        torch.testing.assert_close(getattr(found, name), b + 4 * (a - b), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_c.var_mix, without.var_mix)
    torch.testing.assert_close(found.var_mix, with_c.var_mix)


def test_a_model_samples_by_it() -> None:
    model, sampler, y = conditional(), DDIM(3), torch.tensor([0, 1, 2, 0])

    def drawn(scale: float) -> Tensor:
        return model.generate(
            4, sampler, y=y, guidance=partial(ClassifierFree, conditioner=model.conditioner, scale=scale)
        )

    assert torch.equal(drawn(1), model.generate(4, sampler, y=y))
    torch.testing.assert_close(drawn(0), model.generate(4, sampler, y=torch.full((4,), 3)))
    assert not torch.allclose(drawn(2), drawn(1), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClassifierFree(Classes(), ClassLabels(2, 1), -0.5), "scale of guidance is -0.5: give 0 or more"),
        (lambda: ClassifierFree(Classes(), ClassLabels(2, 1), float("nan")), "is nan"),
        (lambda: ClassifierFree(Classes(), ClassLabels(2, 1, dropout=0.0), 2), "dropout is 0, so that training never"),
        (lambda: ClassifierFree(Classes(), Unconditional(), 2), "Unconditional has none: leave guidance out"),
    ],
)
def test_impossible_guidance_is_refused(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


def test_predict_guides(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(with_classes(tmp_path)), "--trainer.logger", "false"])
    ckpt = str(tmp_path / "run/checkpoints/last.ckpt")

    def drawn(out: str, *words: str, ckpt: str = ckpt) -> dict[str, bytes]:
        sampler = ["--sampler", "DDIM", "--sampler.steps", "2"]
        main(["predict", "--ckpt_path", ckpt, "--n", "3", "--out", str(tmp_path / out), *sampler, *words])
        return {file.name: file.read_bytes() for file in sorted((tmp_path / out).iterdir())}

    def refused(*words: str, ckpt: str = ckpt) -> str:
        with pytest.raises(SystemExit):
            drawn(*words, ckpt=ckpt)
        return capsys.readouterr().err

    four = drawn("four", "--guidance", "4")
    model = load(ckpt)
    guidance = partial(ClassifierFree, conditioner=model.conditioner, scale=4.0)
    for file, image in zip(sorted(four), model.generate(3, DDIM(2), guidance=guidance), strict=True):
        assert torch.equal(read_image(str(tmp_path / "four" / file)), to_uint8(image)), file
    assert four == drawn("again", "--guidance", "4")
    assert four.values() != drawn("alone").values()
    assert "was drawn with guidance 4.0, but now guidance is 2.0" in refused("four", "--guidance", "2")
    assert "scale of guidance is -1.0" in refused("other", "--guidance", "-1")
    assert "Unconditional has none" in refused("other", "--guidance", "2", ckpt=str(run / "checkpoints/last.ckpt"))
    assert not (tmp_path / "other").exists()


# Where, how far and on which channels

FIELD = Linear(1000)


class Halves(nn.Module):
    """A network whose output is a fixed random function of its input, its time and its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1).double()

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(self.mix(x_t) + c[:, :, None, None] * 0.3 + t.view(-1, 1, 1, 1) / 1000)


def conditioned(parameterization: Parameterization) -> tuple[Denoiser, ClassLabels, Tensor, Tensor]:
    """A denoiser of four channels, its labels, noisy images and their conditions."""
    labels = ClassLabels(3, 4, std=1.0).double()
    return (
        Denoiser(Halves(), FIELD, parameterization),
        labels,
        torch.randn(5, 4, 3, 3).double(),
        labels(torch.arange(5) % 3),
    )


@pytest.mark.parametrize("t", [1, 200, 500, 1000])
@pytest.mark.parametrize("interval", [(0.0, 0.05), (0.19, 1.61), (1.61, 1000.0)])
def test_guidance_in_an_interval_of_sigma(interval: tuple[float, float], t: int) -> None:
    denoiser, labels, x_t, c = conditioned(Epsilon())
    sigma = float(FIELD.log_sigma(t).exp())
    found = ClassifierFree(denoiser, labels, 3.0, interval)(x_t, t, c)
    inside = interval[0] < sigma <= interval[1]
    expected = ClassifierFree(denoiser, labels, 3.0)(x_t, t, c) if inside else denoiser(x_t, t, c)
    assert torch.equal(found.x_0, expected.x_0)
    assert torch.equal(found.eps, expected.eps)


def test_an_interval_is_open_below_and_closed_above() -> None:
    denoiser, labels, x_t, c = conditioned(Epsilon())
    sigma = float(FIELD.log_sigma(300).exp())
    plain = denoiser(x_t, 300, c).eps
    for interval, guides in (((sigma * (1 + 1e-12), 9.0), False), ((0.0, sigma * (1 + 1e-12)), True)):
        assert torch.equal(ClassifierFree(denoiser, labels, 3.0, interval)(x_t, 300, c).eps, plain) != guides


@pytest.mark.parametrize("make", [Epsilon, X0, Velocity, Flow, EDM])
@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_the_rescaling_is_diffusers(make: type[Parameterization], rescale: float) -> None:
    """Of the raw output, from which x_0 and ε follow, whatever the network predicts."""
    denoiser, labels, x_t, c = conditioned(make())
    null = labels(labels.null(1)).expand_as(c)
    with_c, without = (denoiser(x_t, 400, given).output for given in (c, null))
    assert with_c is not None
    assert without is not None
    expected = rescale_noise_cfg(without + 4.0 * (with_c - without), with_c, guidance_rescale=rescale)
    found = ClassifierFree(denoiser, labels, 4.0, rescale=rescale)(x_t, 400, c)
    made = denoiser.parameterization.prediction(FIELD, expected, x_t, 400)
    torch.testing.assert_close(found.x_0, made.x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.eps, made.eps, rtol=1e-10, atol=1e-10)


def test_three_of_four_channels_as_dits_code_does() -> None:
    """`forward_with_cfg`: the first three channels of ε are guided, the fourth is the conditional half's."""
    denoiser, labels, x_t, c = conditioned(Epsilon())
    null = labels(labels.null(1)).expand_as(c)
    with_c, without = denoiser(x_t, 400, c).eps, denoiser(x_t, 400, null).eps
    found = ClassifierFree(denoiser, labels, 1.5, channels=3)(x_t, 400, c).eps
    torch.testing.assert_close(found[:, :3], (without + 1.5 * (with_c - without))[:, :3], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[:, 3:], with_c[:, 3:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"interval": (2.0, 1.0)}, "interval of guidance"), ({"interval": (-1.0, 1.0)}, "interval of guidance"),
     ({"rescale": 1.5}, "rescale is 1.5"), ({"channels": 0}, "guides nothing")],
)  # fmt: skip
def test_arguments_out_of_their_range_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClassifierFree(Classes(), means(1.0, 0.0), 2.0, **given)
