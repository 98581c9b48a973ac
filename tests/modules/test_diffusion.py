"""Algorithm 1's loss and algorithm 2's verb, on the module itself."""

import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.data import Digits
from diffusion_lightning.denoising import Parameterization, Velocity
from diffusion_lightning.images import to_uint8
from diffusion_lightning.likelihood import VLB, bits_per_dim, prior
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base.gradients import clip
from diffusion_lightning.networks import UNet
from diffusion_lightning.objectives import LossAware, MinSNR, Uniform, ZeroWeight
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM, Ancestral
from diffusion_lightning.schedules import Cosine, Linear, Schedule

from ..conftest import gaussian, tiny_unet
from ..support.rows import rows


def tiny(schedule: Schedule | None = None, network: nn.Module | None = None, **kwargs) -> Diffusion:  # type: ignore[no-untyped-def]
    return Diffusion(network or tiny_unet(), schedule or Cosine(T=20), (1, 8, 8), **kwargs)


class Exact(nn.Module):
    """The optimal ε for Gaussian data, as a network: fed the index t - 1."""

    def __init__(self, schedule: Schedule, std: float) -> None:
        super().__init__()
        self.denoise = gaussian(schedule, std)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.denoise(x_t, t + 1).eps


def losses(module: Diffusion, x: Tensor, step: int, sample: Tensor) -> Tensor:
    """Of a training step with uniform times."""
    t, _ = Uniform()(module.schedule, Draw(module.seed, "training", step, sample), len(x))
    return module._losses(x, t, Draw(module.seed, "training", step, sample))


def test_the_first_loss_is_one_in_expectation() -> None:
    """ε-prediction from a network that starts at zero: E‖ε‖²/d = 1."""
    module = tiny(Linear())
    n = 2000
    loss = losses(module, torch.rand(n, 1, 8, 8) * 2 - 1, 0, torch.arange(n))
    assert abs(loss.mean() - 1) < 3 * math.sqrt(2 / (64 * n))


@pytest.mark.parametrize(("std", "least"), [(0.25, 0.098639296), (0.5, 0.173053406), (1.0, 0.275513233)])
def test_the_least_loss_of_gaussian_data(std: float, least: float) -> None:
    """L_simple of the optimal ε: mean over t of SNR·s²/(SNR·s² + 1); by the table to 1e-8, by training within 3 SE."""
    schedule = Linear()
    snr = schedule.snr(torch.arange(1, 1001))
    assert (snr * std**2 / (snr * std**2 + 1)).mean().item() == pytest.approx(least, abs=1e-9)
    n = 20_000
    module = tiny(schedule, Exact(schedule, std))
    loss = losses(module, std * torch.randn(n, 1, 8, 8), 0, torch.arange(n))
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
    whole = losses(module, x, 3, torch.arange(8))
    halves = [losses(module, x[i : i + 4], 3, torch.arange(i, i + 4)) for i in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(halves))
    assert not torch.allclose(whole, losses(module, x, 4, torch.arange(8)))
    assert not torch.allclose(losses(module, x[:1], 3, torch.tensor([0])), whole[1])
    other = tiny(network=module.denoiser.network, seed=1)
    assert not torch.allclose(losses(other, x, 3, torch.arange(8)), whole)


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

    guided = module.generate(1, DDIM(4), guidance=lambda denoiser, *of: Half(denoiser))
    assert seen == [20, 15, 10, 5]
    assert torch.equal(guided, module.generate(1, DDIM(4)))


class Tripled(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.cat([x_t, x_t, x_t], 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Diffusion(tiny_unet(), Linear(), (3, 8, 8)), "built for images of 1 channels, but these have 3"),
        (lambda: Diffusion(tiny_unet(), Linear(), (1, 9, 9)), "which 9×9 pixels do not allow"),
        (lambda: Diffusion(nn.Conv2d(3, 3, 3), Linear(), (1, 8)), r"shape is \[1, 8\]"),
        (lambda: Diffusion(Tripled(), Linear(), (1, 8, 8)), r"images of shape \[1, 8, 8\] into \[3, 8, 8\]"),
        (lambda: tiny(vlb_weight=-1.0), "vlb_weight is -1.0 and the weighting Simple"),
        (lambda: tiny(weighting=ZeroWeight(), vlb_weight=0.0), "vlb_weight is 0.0 and the weighting ZeroWeight"),
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


# Learned variance and the bound


def learned(**kwargs) -> Diffusion:  # type: ignore[no-untyped-def]
    network = UNet(in_channels=1, size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, dropout=0,
                   out_channels=2)  # fmt: skip
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return Diffusion(network, kwargs.pop("schedule", Cosine(T=20)), (1, 8, 8), **kwargs)


def gradients(module: Diffusion, t: int) -> tuple[float, float]:
    """How much the loss at a time moves what becomes the mean, and what becomes the variance."""
    module.zero_grad()
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    module._losses(x, torch.full((4,), t), Draw(module.seed, "training", 0, torch.arange(4))).sum().backward()
    bias = module.denoiser.network.conv_out.bias.grad  # type: ignore[union-attr]
    return bias[0].abs().item(), bias[1].abs().item()  # type: ignore[index]


def test_a_network_may_be_on_its_device_before_the_module() -> None:
    """`meta` stands for a GPU; the conditioner is still on the CPU."""
    net = tiny_unet().to("meta")
    assert not Diffusion(net, Cosine(20), (1, 8, 8), conditioner=ClassLabels(10, 4 * net.channels)).predicts_variance


def test_the_hybrid_loss_is_the_simple_one_and_a_thousandth_of_the_bound() -> None:
    """L_simple + 0.001·T·L_{t-1} in bits/dim, each by hand from the same noise."""
    module = learned()
    assert module.predicts_variance
    assert module.loss.vlb_weight == 0.001
    x, t, sample = torch.rand(20, 1, 8, 8) * 2 - 1, torch.arange(1, 21), torch.arange(20)
    found = module._losses(x, t, Draw(module.seed, "training", 0, sample))
    eps = Draw(module.seed, "training", 0, sample).normal("eps", x)
    x_t = module.schedule.q_sample(x, t, eps)
    prediction = module.denoiser(x_t, t)
    simple = (prediction.eps - eps).square().flatten(1).mean(1)
    bound = VLB(clip=None).term(module.schedule, x, t, prediction) / (64 * math.log(2))
    torch.testing.assert_close(found, simple + 0.02 * bound)


@pytest.mark.parametrize("t", [1, 2, 10, 20])
def test_the_bound_leaves_the_mean_to_the_simple_loss(t: int) -> None:
    """L_hybrid's stop-gradient: the mean's gradient is L_simple's alone; under `ZeroWeight` the bound trains both."""
    hybrid = learned(vlb_weight=5.0)
    simple, pure = (learned(weighting=w, vlb_weight=v) for w, v in ((None, 0.0), (ZeroWeight(), None)))
    for other in (simple, pure):
        other.load_state_dict(hybrid.state_dict())
    torch.manual_seed(0)
    mean, variance = gradients(hybrid, t)
    torch.manual_seed(0)
    assert gradients(simple, t) == (pytest.approx(mean, rel=1e-5), 0)
    assert variance > 0
    assert pure.loss.vlb_weight == 1
    assert min(gradients(pure, t)) > 0


@pytest.mark.parametrize("make", Parameterization.__subclasses__())
def test_every_output_trains_and_samples(make: type[Parameterization], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Through a trainer, the variance learned, the times drawn by their losses; a perfect output has no loss."""
    module = learned(parameterization=make(), timesteps=LossAware(history=1), weighting=MinSNR())
    before = [p.clone() for p in module.parameters()]
    fit(module, tmp_path, max_steps=3)
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.isfinite().all() for p in module.parameters())
    assert module.generate(2, Ancestral(4)).isfinite().all()


def fit(module: Diffusion, folder, data: Digits | None = None, **kwargs) -> Trainer:  # type: ignore[no-untyped-def]
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, limit_val_batches=0, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    trainer.fit(module, data or Digits(batch_size=32))
    return trainer


def test_the_history_of_losses_is_of_the_global_batch_and_in_the_checkpoint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """One batch of 64 and two of 32 leave the same history; it is in the state that a checkpoint holds."""
    whole, halves = (learned(timesteps=LossAware(history=4)) for _ in range(2))
    halves.load_state_dict(whole.state_dict())
    fit(whole, tmp_path, Digits(batch_size=64), max_steps=4)
    fit(halves, tmp_path, Digits(batch_size=32), max_steps=4, accumulate_grad_batches=2)
    state = whole.state_dict()
    assert state["timesteps.seen"].sum() == 4 * 64
    assert torch.equal(state["timesteps.seen"], halves.state_dict()["timesteps.seen"])
    torch.testing.assert_close(state["timesteps.losses"], halves.state_dict()["timesteps.losses"], rtol=1e-3, atol=1e-4)
    other = learned(timesteps=LossAware(history=4))
    other.load_state_dict(state)
    assert torch.equal(other.timesteps.probability(), whole.timesteps.probability())  # type: ignore[operator]


def test_importance_leaves_the_mean_loss_as_it_is() -> None:
    """The weighted mean over drawn times is the mean over all, within three standard errors."""
    module = learned(timesteps=LossAware(history=1))
    module.timesteps.update(torch.arange(1, 21), torch.linspace(0.2, 4, 20))
    n = 4000
    x, sample = torch.rand(n, 1, 8, 8) * 2 - 1, torch.arange(n)
    with torch.no_grad():
        t, importance = module.timesteps(module.schedule, Draw(0, "training", 0, sample), n)
        drawn = importance * module._losses(x, t, Draw(module.seed, "training", 0, sample))
        uniform = losses(module, x, 0, sample)
    spread = (drawn.var() / n + uniform.var() / n).sqrt()
    assert importance.std() > 0.3
    assert abs(drawn.mean() - uniform.mean()) < 3 * spread


class ExactWithVariance(nn.Module):
    """The optimal ε for Gaussian data and the optimal share of the larger variance."""

    def __init__(self, schedule: Schedule, std: float) -> None:
        super().__init__()
        self.exact, self.m = Exact(schedule, std), torch.ones(schedule.T + 1, dtype=torch.float64)
        t = torch.arange(2, schedule.T + 1)
        alpha_bar = schedule.alpha_bar[t]
        variance = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
        small, large = schedule.posterior_variance(t, t - 1), schedule.beta(t, t - 1)
        best = small + schedule.posterior_x0_coef(t, t - 1) ** 2 * variance
        self.m[2:] = (best / small).log() / (large / small).log()

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        v = (2 * self.m[t + 1] - 1).view(-1, 1, 1, 1).expand_as(x_t)
        return torch.cat([self.exact(x_t, t), v.to(x_t)], 1)


class Normal(Digits):
    """N(0, 0.25²), rounded to bytes, in the place of digits."""

    levels = 256

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        x = 0.25 * torch.randn(297, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        return to_uint8(x), torch.zeros(297, dtype=torch.long)


def bits(module: Diffusion, folder, data: Digits) -> dict[str, float]:  # type: ignore[no-untyped-def]
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(module, data, verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("times", [None, 100])
def test_bits_of_data_whose_entropy_is_known(tmp_path, times: int | None) -> None:  # type: ignore[no-untyped-def]
    """The whole way through `test`: 7.0412 bits of entropy, the exact denoiser; the parts add up; so do the terms."""
    schedule = Linear()
    module = Diffusion(ExactWithVariance(schedule, 0.25), schedule, (1, 8, 8), vlb=VLB(times=times))
    found = bits(module, tmp_path, Normal(batch_size=100))
    error = found["test/bits_per_dim_error"]
    assert 0.002 < error < (0.02 if times is None else 0.1)
    assert 7.0412 - 3 * error < found["test/bits_per_dim"] < 7.0412 + 0.05 + 3 * error
    parts = [found[f"test/bits_per_dim_{part}"] for part in ("prior", "kl", "decoder")]
    assert found["test/bits_per_dim"] == pytest.approx(sum(parts), rel=1e-9)
    assert parts[0] == pytest.approx(float(bits_per_dim(prior(schedule, torch.full((1, 1, 1, 1), 0.25)), 1)), rel=0.1)
    assert module.bound.shape == (1000,)
    assert float(module.bound[0]) == pytest.approx(parts[2], rel=1e-9)
    if times is None:
        assert float(module.bound[1:].sum()) == pytest.approx(parts[1], rel=1e-9)


def test_bits_do_not_depend_on_the_batch_and_know_the_levels_of_the_data(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = learned(parameterization=Velocity())
    found = [bits(module, tmp_path, Digits(batch_size=size)) for size in (297, 100)]
    assert found[0]["test/bits_per_dim"] == pytest.approx(found[1]["test/bits_per_dim"], rel=1e-5)
    assert found[0]["test/bits_per_dim_error"] == pytest.approx(found[1]["test/bits_per_dim_error"], rel=1e-4)
    assert module.levels == 17


def test_a_bound_of_one_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = bits(learned(schedule=Linear(T=1, beta_1=0.5)), tmp_path, Digits(batch_size=100))
    assert found["test/bits_per_dim_kl"] == 0
    assert math.isfinite(found["test/bits_per_dim"])


class Recorder(torch.optim.AdamW):
    """Notes the gradients' norm and largest value as they come into a step."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def step(self, closure=None):
        loss = closure()
        gradients = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        self.seen.append((float(gradients.norm()), float(gradients.abs().max())))
        return super().step(lambda: loss)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_with_a_fused_optimizer(tmp_path, precision, algorithm) -> None:  # type: ignore[no-untyped-def]
    module = Diffusion(tiny_unet(), Linear(20), (1, 8, 8), optimizer=lambda p: Recorder(p, fused=True))
    Recorder.seen.clear()
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=3,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0, precision=precision,
        gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm,
    )  # fmt: skip
    trainer.fit(module, Digits(batch_size=16))
    largest = [seen[0 if algorithm == "norm" else 1] for seen in Recorder.seen]
    assert len(largest) == 3
    assert all(0.99e-3 < value < 1.0001e-3 for value in largest)


def test_a_fused_optimizer_that_cannot_be_clipped_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = Diffusion(tiny_unet(), Linear(20), (1, 8, 8), optimizer=lambda p: torch.optim.AdamW(p, fused=True))
    module.trainer = SimpleNamespace(precision="16-mixed", gradient_clip_val=1.0)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="set the optimizer's fused to false, or"):
        module.configure_optimizers()


class Watched(torch.optim.SGD):
    """Notes the rate and the gradients' norm of every step, after a clip."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def step(self, closure=None):
        loss = closure()
        gradients = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        self.seen.append((self.param_groups[0]["lr"], float(gradients.norm())))
        return super().step(lambda: loss)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_is_logged_of_a_step_is_its_own(tmp_path, clip, accumulate) -> None:  # type: ignore[no-untyped-def]
    """The rate it takes, and the norm of its whole gradient before the clip; at every second step, once."""
    seen: dict[object, list] = {}
    for limit in (clip, None):
        optimizers: list = []
        torch.manual_seed(0)
        module = tiny(
            optimizer=lambda p, made=optimizers: made.append(Watched(p, lr=1e-3)) or made[0],
            lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        )
        Watched.seen = seen[limit] = []
        logger = CSVLogger(tmp_path / str(limit), "", "")
        Trainer(
            default_root_dir=tmp_path, accelerator="cpu", logger=logger, enable_checkpointing=False, max_steps=4,
            enable_progress_bar=False, limit_val_batches=0, enable_model_summary=False, log_every_n_steps=2,
            gradient_clip_val=limit, accumulate_grad_batches=accumulate,
        ).fit(module, Digits(batch_size=32))  # fmt: skip
    logged = rows(tmp_path / str(clip) / "metrics.csv")
    assert [int(row["step"]) for row in logged] == [1, 3]
    assert [float(row["train/lr"]) for row in logged] == pytest.approx([1e-3 / 2, 1e-3 / 4])
    assert [rate for rate, _ in seen[clip][1::2]] == pytest.approx([1e-3 / 2, 1e-3 / 4])
    norms = [float(row["train/grad_norm"]) for row in logged]
    assert norms[0] == pytest.approx(seen[None][1][1], rel=0.02)  # the first step was clipped: nearly the same weights
    if clip is None:
        assert norms == pytest.approx([norm for _, norm in seen[None][1::2]])
    else:
        assert min(norms) > clip
        assert [norm for _, norm in seen[clip]] == pytest.approx([clip] * 4, rel=1e-4)


def test_the_norm_is_that_of_unscaled_gradients_also_where_the_optimizer_unscales() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = 1024 * torch.tensor([2.0, 3.0, 6.0])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fused, plain = torch.optim.Adam([weight], fused=True), torch.optim.Adam([weight])
    assert clip(fused, None, None, True, scaler).item() == 7  # type: ignore[union-attr]
    assert clip(plain, None, None, True, scaler).item() == 7 * 1024  # type: ignore[union-attr]
    assert clip(plain, None, None, False, None) is None


def test_a_resumed_run_is_refused_where_its_rate_ends_before_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """By the schedule in the checkpoint, which is the one that goes on; not where it is only evaluated."""

    def module(steps: int) -> Diffusion:
        one_cycle = torch.optim.lr_scheduler.OneCycleLR
        return tiny(lr_scheduler=lambda o: one_cycle(o, 1e-3, total_steps=steps, cycle_momentum=False))

    trainer = fit(module(5), tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "2.ckpt")
    quiet: dict = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    with pytest.raises(ValueError, match="schedule ends at step 5, but the run goes on to step 9"):
        Trainer(**quiet, max_steps=9).fit(module(9), Digits(batch_size=32), ckpt_path=tmp_path / "2.ckpt")
    data = Digits(batch_size=99)
    Trainer(**quiet, max_steps=9).validate(module(9), data, ckpt_path=tmp_path / "2.ckpt", verbose=False)


def test_an_evaluation_lies_at_the_number_of_steps_done(tmp_path) -> None:  # type: ignore[no-untyped-def]
    logger = CSVLogger(tmp_path, "", "")
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=logger, enable_checkpointing=False, max_steps=5,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2, accumulate_grad_batches=2,
        val_check_interval=4, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(tiny(), Digits(batch_size=32))
    logged = rows(tmp_path / "metrics.csv")
    for key, steps in (("val/loss", ["2", "4"]), ("train/loss", ["1", "3"])):
        assert [row["step"] for row in logged if row[key]] == steps
    assert [list(row).count("step") for row in logged] == [1] * 4
    trained = trainer.lightning_module
    trainer.save_checkpoint(tmp_path / "5.ckpt")
    for arguments in ({"model": trained}, {"model": tiny(), "ckpt_path": tmp_path / "5.ckpt"}):
        (found,) = Trainer(accelerator="cpu", logger=False).validate(
            datamodule=Digits(batch_size=32), verbose=False, **arguments
        )
        assert found["step"] == 5
