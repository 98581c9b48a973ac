"""Algorithm 1's loss and algorithm 2's verb, on the module itself."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from diffusion_lightning.data import Digits
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM, Ancestral
from diffusion_lightning.schedules import Cosine, Linear, Schedule

from .conftest import gaussian, tiny_unet


def tiny(schedule: Schedule | None = None, network: nn.Module | None = None, **kwargs) -> Diffusion:  # type: ignore[no-untyped-def]
    return Diffusion(network or tiny_unet(), schedule or Cosine(T=20), (1, 8, 8), **kwargs)


class Exact(nn.Module):
    """The optimal ε for Gaussian data, as a network: fed the index t - 1."""

    def __init__(self, schedule: Schedule, std: float) -> None:
        super().__init__()
        self.denoise = gaussian(schedule, std)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.denoise(x_t, t + 1).eps


def test_the_first_loss_is_one_in_expectation() -> None:
    """ε-prediction from a network that starts at zero: E‖ε‖²/d = 1."""
    module = tiny(Linear())
    n = 2000
    loss = module._losses(torch.rand(n, 1, 8, 8) * 2 - 1, "training", 0, torch.arange(n))[1]
    assert abs(loss.mean() - 1) < 3 * math.sqrt(2 / (64 * n))


@pytest.mark.parametrize(("std", "least"), [(0.25, 0.098639296), (0.5, 0.173053406), (1.0, 0.275513233)])
def test_the_least_loss_of_gaussian_data(std: float, least: float) -> None:
    """L_simple of the optimal ε: mean over t of SNR·s²/(SNR·s² + 1); by the table to 1e-8, by training within 3 SE."""
    schedule = Linear()
    snr = schedule.snr(torch.arange(1, 1001))
    assert (snr * std**2 / (snr * std**2 + 1)).mean().item() == pytest.approx(least, abs=1e-9)
    n = 20_000
    module = tiny(schedule, Exact(schedule, std))
    loss = module._losses(std * torch.randn(n, 1, 8, 8), "training", 0, torch.arange(n))[1]
    assert abs(loss.mean().item() - least) < 3 * loss.std().item() / math.sqrt(n)


def test_the_least_loss_of_two_points() -> None:
    """Data uniform on {-1, +1}: the optimal ε-error at SNR r is r·(1 - E tanh(r + √r·z))."""
    snr = Linear().snr(torch.arange(1, 1001))[:, None]
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weight = torch.softmax(-z.square() / 2, 0)
    error = snr[:, 0] * (weight * (1 - torch.tanh(snr + snr.sqrt() * z))).sum(1)
    assert error.mean().item() == pytest.approx(0.121456588, abs=1e-9)


def test_loss_draws_follow_step_and_sample_number() -> None:
    module = tiny().eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.rand(8, 1, 8, 8)
    whole = module._losses(x, "training", 3, torch.arange(8))[1]
    halves = [module._losses(x[i : i + 4], "training", 3, torch.arange(i, i + 4))[1] for i in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(halves))
    assert not torch.allclose(whole, module._losses(x, "training", 4, torch.arange(8))[1])
    assert not torch.allclose(module._losses(x[:1], "training", 3, torch.tensor([0]))[1], whole[1])
    assert not torch.allclose(
        tiny(network=module.denoiser.network, seed=1)._losses(x, "training", 3, torch.arange(8))[1], whole
    )


def test_sample_i_depends_on_the_seed_and_on_i() -> None:
    module, sampler = tiny(), Ancestral()
    for p in module.parameters():
        nn.init.normal_(p, std=0.05)
    eight = module.generate(8, sampler, seed=3)
    assert eight.shape == (8, 1, 8, 8)
    assert eight.min() >= -1
    assert eight.max() <= 1
    assert torch.equal(module.generate(8, sampler, seed=3), eight)
    torch.testing.assert_close(module.generate(3, sampler, seed=3, first=2), eight[2:5], rtol=0, atol=1e-4)
    assert not torch.allclose(module.generate(8, sampler, seed=4), eight, atol=0.1)
    assert not torch.allclose(eight[0], eight[1], atol=0.1)


def test_blocks_are_aligned_and_whole_so_that_cuts_are_bitwise() -> None:
    module, sampler = tiny(), DDIM(5)
    for p in module.parameters():
        nn.init.normal_(p, std=0.05)
    all_of_it = module.generate(12, sampler, batch_size=4)
    for first, n in ((0, 12), (0, 1), (3, 2), (5, 7), (8, 4), (11, 1)):
        assert torch.equal(module.generate(n, sampler, first=first, batch_size=4), all_of_it[first : first + n])


def test_generate_leaves_the_mode_and_drops_nothing_out() -> None:
    module = tiny().train()
    for p in module.parameters():
        nn.init.normal_(p, std=0.05)
    assert torch.equal(module.generate(2, DDIM(3)), module.generate(2, DDIM(3)))
    assert module.denoiser.training
    assert not module.eval().generate(2, DDIM(3)).requires_grad
    assert not module.denoiser.training


def test_guidance_wraps_the_denoiser() -> None:
    module = tiny()
    seen = []

    class Half(nn.Module):
        def __init__(self, denoiser: nn.Module) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, x_t: Tensor, t: int, c: Tensor | None = None):  # type: ignore[no-untyped-def]
            seen.append(t)
            return self.denoiser(x_t, t, c)

    guided = module.generate(1, DDIM(4), guidance=Half)
    assert seen == [20, 15, 10, 5]
    assert torch.equal(guided, module.generate(1, DDIM(4)))


class Doubled(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.cat([x_t, x_t], 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Diffusion(tiny_unet(), Linear(), (3, 8, 8)), "built for images of 1 channels, but these have 3"),
        (lambda: Diffusion(tiny_unet(), Linear(), (1, 9, 9)), "which 9×9 pixels do not allow"),
        (lambda: Diffusion(nn.Conv2d(3, 3, 3), Linear(), (1, 8)), r"shape is \[1, 8\]"),
        (lambda: Diffusion(Doubled(), Linear(), (1, 8, 8)), r"images of shape \[1, 8, 8\] into \[2, 8, 8\]"),
        (lambda: tiny().generate(1, DDIM(2), y=torch.zeros(1)), "without a condition"),
        (lambda: tiny().generate(0, DDIM(2)), "give n ≥ 1"),
    ],
)
def test_misfits_show_where_the_model_is_built(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        make()


def test_a_network_of_ones_own_that_does_not_fit() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return self.conv(x_t)

    with pytest.raises(ValueError, match=r"does not take images of shape \[1, 8, 8\]"):
        Diffusion(Foreign(), Linear(), (1, 8, 8))


def test_data_of_another_shape_is_refused_before_training(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Colour(Digits):
        shape = (3, 8, 8)

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False
    )
    with pytest.raises(ValueError, match=r"images have shape \[3, 8, 8\], but the model's shape is \[1, 8, 8\]"):
        trainer.fit(tiny(), Colour())


def test_seen_from_the_trainer_every_draw_of_a_run_is_new(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Steps and micro-batches of one step draw different noise; two runs draw the same."""
    runs = []
    for _ in range(2):
        fed: list[Tensor] = []
        module = tiny(network=tiny_unet())
        module.denoiser.network.register_forward_pre_hook(lambda _, args, fed=fed: fed.append(args[0].detach().clone()))
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_steps=3, accumulate_grad_batches=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, Digits(batch_size=16))
        runs.append(fed)
    assert len(runs[0]) == 6
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(not torch.equal(a, b) for i, a in enumerate(runs[0]) for b in runs[0][:i])
