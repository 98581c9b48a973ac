"""The GAN: its loss and penalties against an independent computation, each network's gradient its own, its refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.modules import GAN
from diffusion_lightning.networks import ResidualDiscriminator, ResidualGenerator
from diffusion_lightning.random import Draw


def small(classes: int = 0, **changes: Any) -> GAN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": 1, "size": 8, "channels": 8, "most": 16, "blocks": 1, "group": 4}
    width = 6 if classes else 0
    whole: dict[str, Any] = {
        "network": ResidualGenerator(latent=5, condition_width=width, **sizes),
        "discriminator": ResidualDiscriminator(condition_width=width, **sizes),
        "conditioner": ClassLabels(classes, width, dropout=0.0) if classes else None,
    }
    model = GAN(**{**whole, **changes})
    for part in (model.network, model.discriminator.network):  # else a residual block adds nothing
        for name, p in part.named_parameters():
            if name.endswith("conv_out.weight") and p.abs().sum() == 0:
                nn.init.normal_(p, std=0.1)
    return model


def batch(n: int = 6) -> tuple[Tensor, Tensor, Draw]:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return x, torch.arange(n) % 3, Draw(0, "training", 2, torch.arange(n))


@pytest.mark.parametrize("classes", [0, 3])
def test_its_losses_and_penalties_are_the_papers(classes: int) -> None:
    """Written out in float64, with each image's slope by differences."""
    model = small(classes).double()
    x, y, draw = batch()
    terms = {name: value.detach() for name, value in model._duel(x, y, draw)._asdict().items()}
    with torch.no_grad():
        z = draw.normal("z", x.new_empty(6, 5))
        fake = model.network(z, model.conditioner(y))
        own = model.discriminator.conditioner(y)
        D = model.discriminator.network
        real_score, fake_score = D(x, own), D(fake, own)
        torch.testing.assert_close(terms["g"], torch.log1p(torch.exp(real_score - fake_score)), rtol=1e-10, atol=0)
        torch.testing.assert_close(terms["d"], torch.log1p(torch.exp(fake_score - real_score)), rtol=1e-10, atol=0)
        for name, image in (("r1", x), ("r2", fake)):
            square = torch.zeros(6, dtype=torch.float64)
            for k in range(64):
                e = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
                e.view(-1)[k] = 1e-6
                square += ((D(image + e, own) - D(image - e, own)) / 2e-6).square()
            torch.testing.assert_close(terms[name], square, rtol=1e-5, atol=0)


def gradients(model: GAN, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("classes", [0, 3])
def test_each_networks_gradient_is_its_own(classes: int) -> None:
    """G moves the generator and its embedding alone; d and the penalties the discriminator and its own alone."""
    model = small(classes).double()
    x, y, draw = batch()
    terms = model._duel(x, y, draw)._asdict()
    theirs = {name for name, _ in model.named_parameters() if name.startswith("discriminator.")}
    ours = {name for name, _ in model.named_parameters()} - theirs
    assert set(gradients(model, terms["g"].mean())) == ours
    for name in ("d", "r1", "r2"):
        assert set(gradients(model, terms[name].mean())) <= theirs
    assert set(gradients(model, (terms["d"] + terms["r1"] + terms["r2"]).mean())) == theirs
    together = gradients(model, torch.stack(list(terms.values())).sum(0).mean())
    apart = gradients(model, terms["g"].mean()) | gradients(model, (terms["d"] + terms["r1"] + terms["r2"]).mean())
    assert set(together) == set(apart)
    for name in together:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-10, atol=1e-14)


def test_samples_are_of_their_numbers_alone() -> None:
    model = small(3)
    whole = model.generate(7, seed=3)
    torch.testing.assert_close(model.generate(3, seed=3, first=2), whole[2:5], rtol=0, atol=1e-6)
    assert torch.equal(model.generate(7, seed=3, batch_size=4)[:3], model.generate(3, seed=3, batch_size=4))
    assert whole.abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": nn.Linear(5, 64), "shape": (1, 8, 8)}, "Linear does not state `latent`"),
        ({"gamma": (-1.0, 0.0)}, "gamma is \\[-1.0, 0.0\\] over 40000 steps"),
        ({"discriminator_rate": 0.0}, "discriminator_rate is 0.0"),
        ({"discriminator": ResidualDiscriminator(1, 16, 8, 16, 1, 2, 4)}, "the discriminator does not take"),
        ({"shape": (1, 16, 16)}, "is needed: correct its arguments|does not take"),
        (
            {"discriminator": torch.compile(ResidualDiscriminator(1, 8, 8, 16, 1, 2, 4))},
            "the discriminator is compiled",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changes)


@pytest.mark.parametrize("size", [2, 6, 12, 7])
def test_sizes_that_do_not_halve_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}, but halving it has to lead to 4"):
        ResidualGenerator(1, size)


def test_gamma_goes_from_the_first_to_the_last_by_a_cosine() -> None:
    model = small(gamma=(0.05, 0.005), gamma_steps=100)
    for step, expected in ((0, 0.05), (50, 0.0275), (100, 0.005)):
        type(model).global_step = property(lambda self, step=step: step)  # type: ignore[assignment, misc]
        try:
            assert model._gamma() == pytest.approx(expected)
        finally:
            del type(model).global_step
