"""Guidance against Gaussian classes, where what it makes is known in closed form, and its way to the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn
from torchvision.io import read_image

from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, Conditioner, Labels, Unconditional
from diffusion_lightning.denoising import EDM, X0, Denoiser, Epsilon, Flow, Parameterization, Prediction, Velocity
from diffusion_lightning.guidance import AutoGuidance, ClassifierFree, ClassifierGuided
from diffusion_lightning.images import to_uint8
from diffusion_lightning.loading import load
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, Schedule, ZeroTerminalSNR

from .conftest import gaussian, tiny_unet
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


def free(denoiser: nn.Module, conditioner: Conditioner, scale: float, **more: Any) -> Callable[..., Prediction]:
    """Classifier-free guidance of a denoiser, which asks for no y."""
    return ClassifierFree(scale, **more)(denoiser, conditioner, torch.zeros(1, dtype=torch.long))


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
    guided = sampler(free(Classes(), labels, scale), Cosine(50), x_T, c=labels(y))
    moved = 0.25 + scale * (labels(y) - 0.25)
    torch.testing.assert_close(guided, sampler(Classes(), Cosine(50), x_T, c=moved), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "size"), [(0.0, 8), (1.0, 4), (2.5, 8)])
def test_both_halves_are_one_call(scale: float, size: int) -> None:
    denoiser, labels = Classes(), means(1.0, 0.0)
    guided = free(denoiser, labels, scale)
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
    found = free(denoiser, labels, 4.0)(x_t, t, labels(y))
    with_c, without = denoiser(x_t, t, labels(y)), denoiser(x_t, t, labels(torch.full((4,), 3)))
    for name in ("x_0", "eps"):
        a, b = getattr(with_c, name), getattr(without, name)
        torch.testing.assert_close(getattr(found, name), b + 4 * (a - b), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_c.var_mix, without.var_mix)
    torch.testing.assert_close(found.var_mix, with_c.var_mix)


def test_a_model_samples_by_it() -> None:
    model, sampler, y = conditional(), DDIM(3), torch.tensor([0, 1, 2, 0])

    def drawn(scale: float) -> Tensor:
        return model.generate(4, sampler, y=y, guidance=ClassifierFree(scale))

    assert torch.equal(drawn(1), model.generate(4, sampler, y=y))
    torch.testing.assert_close(drawn(0), model.generate(4, sampler, y=torch.full((4,), 3)))
    assert not torch.allclose(drawn(2), drawn(1), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: free(Classes(), ClassLabels(2, 1), -0.5), "scale of guidance is -0.5, but"),
        (lambda: free(Classes(), ClassLabels(2, 1), float("nan")), "is nan"),
        (lambda: free(Classes(), ClassLabels(2, 1, dropout=0.0), 2), "dropout is 0, so that training never"),
        (lambda: free(Classes(), Unconditional(), 2), "Unconditional has none: leave guidance out"),
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
    for file, image in zip(sorted(four), model.generate(3, DDIM(2), guidance=4), strict=True):
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
    found = free(denoiser, labels, 3.0, interval=interval)(x_t, t, c)
    inside = interval[0] < sigma <= interval[1]
    expected = free(denoiser, labels, 3.0)(x_t, t, c) if inside else denoiser(x_t, t, c)
    assert torch.equal(found.x_0, expected.x_0)
    assert torch.equal(found.eps, expected.eps)


def test_an_interval_is_open_below_and_closed_above() -> None:
    denoiser, labels, x_t, c = conditioned(Epsilon())
    sigma = float(FIELD.log_sigma(300).exp())
    plain = denoiser(x_t, 300, c).eps
    for interval, guides in (((sigma * (1 + 1e-12), 9.0), False), ((0.0, sigma * (1 + 1e-12)), True)):
        assert torch.equal(free(denoiser, labels, 3.0, interval=interval)(x_t, 300, c).eps, plain) != guides


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
    found = free(denoiser, labels, 4.0, rescale=rescale)(x_t, 400, c)
    made = denoiser.parameterization.prediction(FIELD, expected, x_t, 400)
    torch.testing.assert_close(found.x_0, made.x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.eps, made.eps, rtol=1e-10, atol=1e-10)


def test_three_of_four_channels_as_dits_code_does() -> None:
    """`forward_with_cfg`: the first three channels of ε are guided, the fourth is the conditional half's."""
    denoiser, labels, x_t, c = conditioned(Epsilon())
    null = labels(labels.null(1)).expand_as(c)
    with_c, without = denoiser(x_t, 400, c).eps, denoiser(x_t, 400, null).eps
    found = free(denoiser, labels, 1.5, channels=3)(x_t, 400, c).eps
    torch.testing.assert_close(found[:, :3], (without + 1.5 * (with_c - without))[:, :3], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[:, 3:], with_c[:, 3:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"interval": (2.0, 1.0)}, "interval of guidance"), ({"interval": (-1.0, 1.0)}, "interval of guidance"),
     ({"rescale": 1.5}, "rescale is 1.5"), ({"channels": 0}, "guides nothing")],
)  # fmt: skip
def test_arguments_out_of_their_range_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClassifierFree(2.0, **given)


# A worse model as the guide


class Exact(nn.Module):
    """The optimal denoiser of data N(mean, std²) with a schedule, and of no condition; as a model, its own denoiser."""

    def __init__(self, schedule: Schedule, std: float, mean: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.std, self.mean, self.conditioner = schedule, std, mean, Unconditional()

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Prediction:
        return gaussian(self.schedule, self.std, self.mean)(x_t, t)

    @property
    def denoiser(self) -> nn.Module:
        return self


def by(guide: nn.Module, scale: float, **more: Any) -> Callable[[nn.Module], Callable[..., Prediction]]:
    y = torch.zeros(1, dtype=torch.long)
    return lambda denoiser: AutoGuidance(guide, scale, **more)(denoiser, Unconditional(), y)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.7])
@pytest.mark.parametrize("t", [1, 300, 1000])
def test_autoguidance_by_hand(scale: float, t: int) -> None:
    """Against the formula in float64, of two Gaussian models."""
    model, guide, x_t = Exact(FIELD, 0.5, 1.0), Exact(FIELD, 0.8, -1.0), torch.randn(3, 1, 4, 4).double()
    found, own, worse = by(guide, scale)(model)(x_t, t, None), model(x_t, t), guide(x_t, t)
    torch.testing.assert_close(found.x_0, worse.x_0 + scale * (own.x_0 - worse.x_0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.eps, worse.eps + scale * (own.eps - worse.eps), rtol=1e-12, atol=1e-12)


def test_a_model_that_is_its_own_guide_is_the_model() -> None:
    model, sampler, y = conditional(), DDIM(3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(
        model.generate(4, sampler, y=y, guidance=AutoGuidance(model, 2.5)), model.generate(4, sampler, y=y)
    )


@pytest.mark.parametrize("other", [Linear(4000), Cosine(1000), ZeroTerminalSNR(Linear(1000)), LogSigma(300)],
                         ids=lambda s: type(s).__name__)  # fmt: skip
@pytest.mark.parametrize("t", [1, 40, 500, 999, 1000])
def test_a_guide_with_another_table_is_asked_at_the_nearest_sigma(other: Schedule, t: int) -> None:
    """So that its x_0 is nearly that of a guide with the model's own table, and ε belongs to it."""
    model, x_t = Exact(FIELD, 0.5), torch.randn(3, 1, 4, 4).double()
    found = by(Exact(other, 0.8, 0.3), 2.0)(model)(x_t, t, None)
    u = min(range(1, other.T + 1), key=lambda u: abs(float(other.log_sigma(u)) - float(FIELD.log_sigma(t))))
    worse = Exact(other, 0.8, 0.3)(x_t, u).x_0
    torch.testing.assert_close(found.x_0, 2 * model(x_t, t).x_0 - worse, rtol=1e-10, atol=1e-10)
    signal, noise = FIELD.scales(t, x_t)
    torch.testing.assert_close(signal * found.x_0 + noise * found.eps, x_t, rtol=1e-10, atol=1e-10)


def test_without_any_signal_the_guide_is_asked_at_its_largest_sigma() -> None:
    model, guide, x_t = Exact(ZeroTerminalSNR(Linear(50)), 0.5), Exact(FIELD, 0.8), torch.randn(2, 1, 2, 2).double()
    found = by(guide, 2.0)(model)(x_t, 50, None)
    torch.testing.assert_close(found.x_0, 2 * model(x_t, 50).x_0 - guide(x_t, 1000).x_0)


@pytest.mark.parametrize("t", [100, 600])
def test_autoguidance_in_an_interval(t: int) -> None:
    model, guide, x_t = Exact(FIELD, 0.5), Exact(FIELD, 0.8), torch.randn(2, 1, 2, 2).double()
    sigma = float(FIELD.log_sigma(300).exp())
    found = by(guide, 2.0, interval=(0.0, sigma))(model)(x_t, t, None)
    assert torch.equal(found.x_0, model(x_t, t).x_0) == (t > 300)


# A classifier of noisy images


class Mixture(nn.Module):
    """Data of one class each, N(m_k, s²) with probabilities p_k: the optimal denoiser without the class."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.std = schedule, 0.3
        self.mean = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
        self.prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def log_probs(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        signal, noise = self.schedule.scales(t, x_t)
        squares = [(x_t - signal * m).square() / (signal**2 * self.std**2 + noise**2) for m in self.mean]
        logits = torch.stack([-square.flatten(1).sum(1) / 2 for square in squares], 1)
        return (logits + self.prior.log()).log_softmax(1).to(x_t.dtype)

    def forward(self, x_t: Tensor, t: int | Tensor, c: Tensor | None = None) -> Prediction:
        p = self.log_probs(x_t, t).exp()
        made = [gaussian(self.schedule, self.std, float(m))(x_t, t) for m in self.mean]
        x_0 = torch.stack([p[:, k, None, None, None] * made[k].x_0 for k in range(3)]).sum(0)
        signal, noise = self.schedule.scales(t, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)


class Classifier(nn.Module):
    """The exact classifier of the mixture."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.log_probs, self.schedule, self.conditioner = mixture.log_probs, mixture.schedule, Labels(3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("t", [1, 20, 70, 100])
def test_the_exact_classifier_gives_the_exact_conditional(mode: Callable[[], Any], t: int) -> None:
    mixture, y = Mixture(Cosine(100)), torch.tensor([0, 1, 2, 1])
    with mode():
        x_t = torch.randn(4, 1, 2, 2).double()
        found = ClassifierGuided(Classifier(mixture))(mixture, Unconditional(), y)(x_t, t, None)
        for k, of_class in enumerate(y):
            expected = gaussian(mixture.schedule, 0.3, float(mixture.mean[of_class]))(x_t[k : k + 1], t)
            torch.testing.assert_close(found.x_0[k : k + 1], expected.x_0, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(found.eps[k : k + 1], expected.eps, rtol=1e-7, atol=1e-7)


def test_samples_of_a_class_have_its_moments() -> None:
    mixture, n = Mixture(Cosine(400)), 1000
    x_T = torch.randn(n, 1, 2, 2).double()
    for k in range(3):
        y = torch.full((n,), k)
        made = DDIM(400, clip=None)(
            ClassifierGuided(Classifier(mixture))(mixture, Unconditional(), y), mixture.schedule, x_T
        )
        error = 0.3 / (4 * n) ** 0.5  # of a mean over all pixels; that of a deviation is 1/√2 of it
        assert abs(float(made.mean() - mixture.mean[k])) < 3 * error
        assert abs(float(made.std() - 0.3)) < 3 * error / 2**0.5


def test_a_larger_scale_multiplies_the_gradient_and_another_table_is_matched() -> None:
    mixture, y, x_t = Mixture(Cosine(100)), torch.tensor([2]), torch.randn(1, 1, 2, 2).double()
    own = mixture(x_t, 60)
    once, thrice = (
        ClassifierGuided(Classifier(mixture), scale)(mixture, Unconditional(), y)(x_t, 60, None) for scale in (1.0, 3.0)
    )
    torch.testing.assert_close(thrice.x_0 - own.x_0, 3 * (once.x_0 - own.x_0))
    torch.testing.assert_close(thrice.eps - own.eps, 3 * (once.eps - own.eps))
    finer = ClassifierGuided(Classifier(Mixture(Cosine(20_000))))(mixture, Unconditional(), y)(x_t, 60, None)
    torch.testing.assert_close(finer.x_0, once.x_0, rtol=1e-3, atol=1e-3)


def test_without_any_signal_a_classifier_guides_nothing() -> None:
    mixture = Mixture(ZeroTerminalSNR(Linear(50)))
    x_t, guide = torch.randn(2, 1, 2, 2).double(), ClassifierGuided(Classifier(mixture), 5.0)
    found, own = guide(mixture, Unconditional(), torch.tensor([0, 1]))(x_t, 50, None), mixture(x_t, 50)
    assert torch.equal(found.x_0, own.x_0)
    assert torch.equal(found.eps, own.eps)


ONE = torch.zeros(1, dtype=torch.long)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a guide that is a path still": (lambda: by("runs/a", 2.0)(Exact(FIELD, 1.0)), "which nobody has loaded yet"),  # type: ignore[arg-type]
    "a classifier as guide": (lambda: by(Labels(2), 2.0)(Exact(FIELD, 1.0)), "is a Labels, but it has to be a model"),
    "a guide with a condition": (
        lambda: by(conditional(), 2.0)(Exact(FIELD, 1.0)), "guide was trained with a condition, but the model without",
    ),
    "a guide of other images": (
        lambda: conditional().generate(1, guidance=AutoGuidance(Diffusion(tiny_unet(), Linear(20), (1, 16, 16)), 2.0)),
        r"a model of images of \[1, 16, 16\], but this model's are \[1, 8, 8\]",
    ),
    "a model as classifier": (
        lambda: ClassifierGuided(Exact(FIELD, 1.0))(Exact(FIELD, 1.0), Unconditional(), ONE),
        "has to be a NoisyClassifier",
    ),
    "a class that the classifier has not": (
        lambda: ClassifierGuided(Classifier(Mixture(FIELD)))(Mixture(FIELD), Unconditional(), ONE + 3), "a label is 3",
    ),
    "a scale below 0": (lambda: AutoGuidance("a", -1.0), "scale of guidance is -1.0"),
    "an interval upside down": (lambda: ClassifierGuided("a", 1.0, (2.0, 1.0)), "interval of guidance"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_guide_that_does_not_fit_is_refused(case: str) -> None:
    make, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        make()
