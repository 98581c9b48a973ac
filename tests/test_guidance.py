"""Guidance against Gaussian classes, where what it makes is known in closed form, and its way to the command."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.io import read_image

from diffusion_lightning.checkpoints import load
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, Unconditional
from diffusion_lightning.denoising import Denoiser, Epsilon, Prediction
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
