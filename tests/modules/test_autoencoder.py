"""The training of a first stage: its loss written out, each network's gradient its own, steps counted once, resumed.

The faults that others had with it are here by their numbers in the list of them; see `first_stages/test_faults.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from diffusion_lightning import loading
from diffusion_lightning.callbacks import FiniteLoss
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet, InceptionV3
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.modules import Autoencoder
from diffusion_lightning.modules.base import adversarial, autoencoders
from diffusion_lightning.modules.base.features import FeatureDistance
from diffusion_lightning.networks import KLAutoencoder, PatchDiscriminator, PlainAutoencoder
from diffusion_lightning.random import Draw

from ..support.exactness import same
from ..support.first_stages import pictures


def network(**changes: Any) -> PlainAutoencoder:
    return PlainAutoencoder(**{"in_channels": 1, "size": 8, "channels": 4, "levels": 1, "blocks": 1, **changes})


def small(**changes: Any) -> Autoencoder:
    """With a discriminator, from the first step on."""
    torch.manual_seed(0)
    whole: dict[str, Any] = {"network": network(), "discriminator": PatchDiscriminator(1, 4, 1, 2)}
    return Autoencoder(**{**whole, "adversarial_from": 0, **changes})


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-4)


def fitted(folder: Path, model: Autoencoder, steps: int, batch: int = 32, **options: Any) -> Trainer:
    options = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, **options}
    if options["devices"] > 1:
        torch.set_num_threads(1)  # a fork has no more of this process's, and would wait for them
    trainer = Trainer(default_root_dir=folder, logger=False, max_steps=steps, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False, **options)  # fmt: skip
    trainer.fit(model, datamodule=Digits(batch_size=batch))
    return trainer


def weights(model: Autoencoder, of: str = "") -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.named_parameters() if name.startswith(of)}


BIAS = "discriminator.layers.5.bias"  # the last: no gradient while both hinges are open


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# The loss


@pytest.mark.parametrize("features", [None, DigitsNet()], ids=["pixels", "features"])
def test_its_loss_is_latent_diffusions(features: nn.Module | None) -> None:
    """Written out as in its release: a sum over all numbers of (|x - x̂| + p)/e^s + s and of the KL, over B."""
    model = small(features=features, feature_weight=0.7, learn_log_var=True).double()
    assert model.log_var is not None
    with torch.no_grad():
        model.log_var.fill_(0.3)
    image, draw = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2 - 1, Draw(5, "training", 9, torch.arange(3))
    encoded, made = model(image, draw)
    terms = model._terms(image, encoded, made)

    mean, log_var = model.network.encoder(image).chunk(2, 1)
    z = mean + torch.exp(0.5 * log_var) * draw.normal("latent", mean)
    x = model.network.decode(z)
    rec = (image - x).abs()
    if features is not None:
        a, b = (DigitsNet().convolve(t.float()) for t in (image, x))
        a, b = (F.normalize(t, dim=1) for t in (a, b))
        rec = rec + 0.7 * (a - b).pow(2).sum(1, keepdim=True).mean((2, 3), keepdim=True).double()
    nll = (rec / torch.exp(model.log_var) + model.log_var).sum() / 3
    kl = 0.5 * (mean.pow(2) + log_var.exp() - 1 - log_var).sum() / 3
    torch.testing.assert_close(terms["nll"].mean(), nll, rtol=1e-6 if features else 1e-12, atol=0)
    torch.testing.assert_close(terms["kl"].mean(), kl, rtol=1e-12, atol=0)


def test_the_hinge_is_the_papers() -> None:
    """max(0, 1 - D(x)) and max(0, 1 + D(x̂)), halved; -D(x̂) for the autoencoder."""
    logits = torch.tensor([[0.3, 2.0], [-4.0, 1.0], [-0.5, -3.0], [0.0, 1.5]])

    class Fixed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return logits[image[:, 0].long()]

    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    found = adversarial.hinge(Fixed(), real, fake)
    torch.testing.assert_close(found, torch.tensor([(0.7 / 2 + 0.5 / 2) / 2, (5 / 2 + 3.5 / 2) / 2]))
    torch.testing.assert_close(adversarial.fooled(Fixed(), fake), torch.tensor([1.75, -0.75]))


@pytest.mark.parametrize(("a", "b", "weight"), [(6.0, 2.0, 3.0), (1.0, 0.0, 1e4), (0.0, 3.0, 0.0)])
def test_the_adaptive_weight_is_the_gradients_ratio(a: float, b: float, weight: float) -> None:
    last = nn.Parameter(torch.tensor([0.6, 0.8], dtype=torch.float64))
    g = (last * torch.tensor([b, 0.0])).sum() + 0 * last.sum()
    found = adversarial.adaptive_weight((last * torch.tensor([0.0, a])).sum(), g, last, lambda x: x)
    assert float(found) == pytest.approx(weight, rel=1e-4)
    assert not found.requires_grad
    assert last.grad is None


def test_a_distance_is_an_extractors_or_a_networks_own() -> None:
    """And gives the reconstruction a gradient."""
    image, made = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    made.requires_grad_()
    FeatureDistance(DigitsNet(), (1, 8, 8))(image, made).sum().backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0

    class Lpips(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).square().mean((1, 2, 3), keepdim=True)

    found = FeatureDistance(Lpips(), (1, 8, 8))(image, made)
    torch.testing.assert_close(found, (image - made).square().flatten(1).mean(1))


# Each network's gradient is its own


@pytest.mark.tried("Numbers, precision and words")
def test_fault_7_each_networks_gradient_is_that_of_its_own_loss(tmp_path: Path) -> None:
    """One step of SGD against two backward passes with the other network's weights frozen."""
    given: dict[str, Any] = {"learn_log_var": True, "features": DigitsNet(), "feature_weight": 0.1}
    model = small(optimizer=lambda p: torch.optim.SGD(p, 1.0), discriminator_rate=3.0, **given)
    other, before = small(**given), weights(model)
    batches: list[Any] = []
    take = model.feed.take
    model.feed.take = lambda *given: batches.append(take(*given)) or batches[-1]  # type: ignore[method-assign,func-returns-value]
    fitted(tmp_path, model, 1)
    image, after = batches[0][0], weights(model)
    encoded, made = other(image, Draw(0, "training", 0, torch.arange(len(image))))
    terms, discriminator = other._terms(image, encoded, made), other.discriminator
    assert discriminator is not None
    nll = terms["nll"].mean()
    discriminator.requires_grad_(False)
    g, last = -discriminator(made).mean(), other.network.conv_out.weight
    of_nll, of_g = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (nll, g))
    assert of_nll / (of_g + 1e-4) < 1e4
    (nll + 1e-6 * terms["kl"].mean() + 0.5 * of_nll / (of_g + 1e-4) * g).backward()
    discriminator.requires_grad_()
    d = F.relu(1 - discriminator(image)).mean() / 2 + F.relu(1 + discriminator(made.detach())).mean() / 2
    d.backward()
    assert moved(before, after) | {BIAS} == set(before)  # the log-variance too
    for name, p in other.named_parameters():
        assert p.grad is not None
        rate = 3.0 if name.startswith("discriminator") else 1.0
        torch.testing.assert_close(after[name], p.detach() - rate * p.grad, rtol=1e-4, atol=1e-5, msg=name)


def isolated(fit: Callable[[Autoencoder, int], Any]) -> None:
    """A discriminator's step moves the discriminator alone, an autoencoder's the autoencoder alone, bit for bit."""
    alone, beside, strong = (
        small(optimizer=torch.optim.AdamW, **changes)
        for changes in (
            {"discriminator": None},
            {"adversarial_weight": 0.0, "adversarial_from": 2},
            {"adversarial_weight": 100.0, "adversarial_from": 2},
        )
    )
    before = weights(beside)
    for model in (alone, beside, strong):
        fit(model, 3)
    for name in weights(beside, "network"):
        assert name in moved(before, weights(beside))
        assert torch.equal(weights(alone)[name], weights(beside)[name]), name  # as if there were no discriminator
    assert moved(weights(beside, "network"), weights(strong, "network")) == set(weights(beside, "network"))
    for name in weights(beside, "discriminator"):
        assert name in moved(before, weights(beside))
        assert torch.equal(weights(beside)[name], weights(strong)[name]), name  # whatever the autoencoder is paid


@pytest.mark.tried("Numbers, precision and words")
def test_fault_7_a_step_of_one_network_leaves_the_other_alone(tmp_path: Path) -> None:
    isolated(lambda model, steps: fitted(tmp_path, model, steps))


TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork"}


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_fault_7_a_step_of_one_network_leaves_the_other_alone_on_two_processes(tmp_path: Path) -> None:
    isolated(lambda model, steps: fitted(tmp_path, model, steps, 16, **TWO))


@pytest.mark.slow
@pytest.mark.tried("Several processes")
def test_fault_7_two_processes_train_both_networks_as_one_does(tmp_path: Path) -> None:
    """At the same global batch, over the start of the discriminator, with the adaptive weight of the whole batch."""
    one, two = (small(adversarial_from=2, optimizer=sgd, learn_log_var=True, features=DigitsNet()) for _ in range(2))
    before = weights(one)
    fitted(tmp_path, one, 4)
    fitted(tmp_path, two, 4, 16, **TWO)
    assert moved(before, weights(two)) | {BIAS} == set(before)
    for name, x in weights(one).items():
        torch.testing.assert_close(weights(two)[name] - before[name], x - before[name], rtol=1e-4, atol=1e-8, msg=name)


@pytest.mark.tried("Numbers, precision and words")
def test_fault_8_the_learned_log_variance_is_in_the_optimizer_and_trains(tmp_path: Path) -> None:
    """One step of SGD from 0 goes against its gradient there, N·(1 - |x - x̂|); checkpoints have it."""
    model = small(discriminator=None, learn_log_var=True, optimizer=lambda p: torch.optim.SGD(p, 1e-3))
    other = small(discriminator=None, learn_log_var=True)
    assert model.log_var is not None
    batches: list[Any] = []
    take = model.feed.take
    model.feed.take = lambda *given: batches.append(take(*given)) or batches[-1]  # type: ignore[method-assign,func-returns-value]
    trainer = fitted(tmp_path, model, 1)
    assert any(p is model.log_var for p in trainer.optimizers[0].param_groups[0]["params"])
    image = batches[0][0]
    _, made = other(image, Draw(0, "training", 0, torch.arange(len(image))))
    expected = -1e-3 * image[0].numel() * (1 - float((image - made.detach()).abs().mean()))
    assert float(model.log_var) == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1e-4
    assert torch.equal(model.state_dict()["log_var"], model.log_var)


def test_until_it_takes_part_no_optimizer_touches_the_discriminator(tmp_path: Path) -> None:
    """Neither its weights, which AdamW would decay, nor the averages of its gradients."""
    model = small(adversarial_from=2, optimizer=torch.optim.AdamW)
    before = weights(model)
    trainer = fitted(tmp_path, model, 2, fast_dev_run=2)
    assert moved(before, weights(model)) == set(weights(model, "network"))
    state: Any = trainer.optimizers[0].state
    assert not [p for p in model.discriminator.parameters() if p in state]  # type: ignore[union-attr]


def test_accumulated_batches_are_one(tmp_path: Path) -> None:
    one, two = (small(optimizer=sgd, adversarial_weight=0.0) for _ in range(2))
    before = weights(one)
    fitted(tmp_path, one, 2, 32)
    trainer = fitted(tmp_path, two, 2, 16, accumulate_grad_batches=2)
    assert trainer.global_step == 2
    for name, x in weights(one).items():
        torch.testing.assert_close(weights(two)[name] - before[name], x - before[name], rtol=1e-4, atol=1e-8, msg=name)


def test_each_networks_gradient_is_clipped_by_its_own_norm(tmp_path: Path) -> None:
    model = small(optimizer=lambda p: torch.optim.SGD(p, 1.0))
    before = weights(model)
    fitted(tmp_path, model, 1, gradient_clip_val=0.01)
    for side in ("network", "discriminator"):
        apart = [(weights(model)[name] - x).flatten() for name, x in before.items() if name.startswith(side)]
        assert float(torch.cat(apart).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_trains_in_reduced_precision(tmp_path: Path, precision: str) -> None:
    model = small(features=DigitsNet(), learn_log_var=True)
    fitted(tmp_path, model, 2, precision=precision)
    assert all(x.isfinite().all() for x in weights(model).values())


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("name", ["network.conv_out.bias", "discriminator.layers.0.bias"])
def test_fault_12_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, name: str) -> None:
    """In either network, at the step where it is and not at the next checkpoint."""
    model = small()
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss of step 0 is not finite"):
        fitted(tmp_path, model, 2, callbacks=[FiniteLoss()], log_every_n_steps=1)


# The command


def words(root: Path, steps: int, start: int, *more: str) -> list[str]:
    return [
        "fit", "--model", "Autoencoder", "--model.network", "PlainAutoencoder", "--model.network.in_channels", "1",
        "--model.network.channels", "4", "--model.network.levels", "1", "--model.network.blocks", "1",
        "--model.discriminator", "PatchDiscriminator", "--model.discriminator.in_channels", "1",
        "--model.discriminator.channels", "8", "--model.discriminator.layers", "1", "--model.features", "DigitsNet",
        "--model.adversarial_from", str(start), "--model.learn_log_var", "true", "--data", "Digits",
        "--data.batch_size", "32", "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "3",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(root), "--trainer.logger", "false",
        "--grid", "SampleGrid", "--grid.n", "4", "--checkpoint.every_n_train_steps", "3", "--ema.decay", "0.5",
        "--trainer.log_every_n_steps", "1", "--throughput", "null", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, of which the discriminator takes part in the last two."""
    root = tmp_path_factory.mktemp("autoencoder") / "run"
    main(words(root, 6, 4, "--checkpoint.keep", "null"))
    return root


@pytest.mark.tried("Numbers, precision and words")
def test_fault_7_a_step_counts_once(run: Path) -> None:
    """In the checkpoints' names, the metrics' rows, the pictures, and the discriminator's own averages."""
    checkpoint = read(run / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 6
    assert {path.name for path in (run / "checkpoints").glob("step=*")} == {"step=3.ckpt", "step=6.ckpt"}
    assert {path.name for path in (run / "samples").iterdir()} == {"step=3.png", "step=6.png"}
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [int(row.partition(",")[0]) for row in rows[1:]] == list(range(7))
    state, (own, theirs) = checkpoint["optimizer_states"][0]["state"], checkpoint["optimizer_states"][0]["param_groups"]
    assert {float(state[k]["step"]) for k in own["params"]} == {6.0}
    assert {float(state[k]["step"]) for k in theirs["params"]} == {2.0}


@pytest.mark.tried("Resuming")
@pytest.mark.parametrize(
    "start",
    [pytest.param(1, marks=pytest.mark.slow, id="after the discriminator's start"), pytest.param(4, id="before it")],
)
def test_it_resumes_bit_for_bit_across_the_discriminators_start(run: Path, tmp_path: Path, start: int) -> None:
    whole = run
    if start != 4:
        whole = tmp_path / "whole"
        main(words(whole, 6, start))
    main(words(tmp_path / "cut", 6, start, "--checkpoint.keep", "null"))
    (tmp_path / "cut/checkpoints/step=6.ckpt").unlink()
    (tmp_path / "cut/checkpoints/last.ckpt").unlink()  # as a kill after step 3 leaves it
    main(words(tmp_path / "cut", 6, start, "--ckpt_path", str(tmp_path / "cut/checkpoints/step=3.ckpt")))
    one, two = (read(root / "checkpoints/last.ckpt") for root in (whole, tmp_path / "cut"))
    for key in ("global_step", "state_dict", "optimizer_states"):
        same(one[key], two[key], key)
    same(one["callbacks"]["EMA"], two["callbacks"]["EMA"])


def test_what_it_trains_is_a_first_stage(run: Path) -> None:
    """With the averaged weights, which the module has in evaluation."""
    stage, module = Pretrained(str(run), scale=1.0), loading.module(run)
    assert isinstance(module, Autoencoder)
    data = Digits()
    data.setup("validate")
    image = data.reference("val")[:5]
    image = image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image
    with torch.no_grad():
        found, wanted = stage.moments(image), module.encode(image)
        assert torch.equal(found.mean, wanted.mean)
        assert torch.equal(found.log_var, wanted.log_var)  # type: ignore[arg-type]
        assert torch.equal(stage.decode(found.mean), module.reconstruct(image))
    raw = read(run / "checkpoints/last.ckpt")["state_dict"]
    assert not torch.equal(raw["network.conv_out.weight"], module.network.conv_out.weight)  # the average's
    assert not [name for name in raw if name.startswith(("features", "distance"))]
    with pytest.raises(ValueError, match="holds Autoencoder weights, but those of a Diffusion are needed: train a"):
        loading.load(run)


@pytest.mark.tried("Numbers, precision and words")
def test_fault_6_the_divergence_is_weighed(tmp_path: Path) -> None:
    """It rises where next to nothing keeps it, and falls where it is what the loss is of."""
    found = {}
    for weight in (1e-6, 10.0):
        model = small(discriminator=None, kl_weight=weight, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
        image = pictures(64)
        before = float(model.encode(image).kl().mean().detach())
        fitted(tmp_path, model, 25)
        found[weight] = float(model.encode(image).kl().mean().detach()) / before
    assert found[1e-6] > 1
    assert found[10.0] < 0.5


@pytest.mark.tried("Numbers, precision and words")
def test_fault_6_what_it_makes_images_of_are_standard_normals(run: Path) -> None:
    """Decoded as they are, with no scale at one end; a diffusion of its latents is told to measure them."""
    assert Pretrained(str(run)).measures
    module = loading.module(run)
    assert isinstance(module, Autoencoder)
    four = module.generate(4, seed=3)
    assert four.shape == (4, 1, 8, 8)
    assert four.abs().max() <= 1
    assert torch.equal(module.generate(2, seed=3, first=2, batch_size=4), four[2:])
    seen: list[Tensor] = []
    decode = module.network.decode
    module.network.decode = lambda z: seen.append(z) or decode(z)  # type: ignore[func-returns-value]
    many = module.generate(64, seed=3, batch_size=64)
    (z,) = seen
    torch.testing.assert_close(many, decode(z).clamp(-1, 1))
    n = z.numel()
    assert abs(float(z.mean())) < 4 / n**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5
    for given in ({"sampler": object()}, {"sampler": None, "guidance": 2.0}):
        with pytest.raises(ValueError, match="decodes a latent in one go"):
            module.check(**given)
    assert module.operations() > 0


def test_validate_needs_the_checkpoint_alone(run: Path, tmp_path: Path) -> None:
    main(["validate", "--ckpt_path", str(run), "--trainer.accelerator", "cpu", "--trainer.default_root_dir",
          str(tmp_path)])  # fmt: skip
    head, row = (tmp_path / "validate.csv").read_text().splitlines()[:2]
    assert {"val/l1", "val/nll", "val/kl", "val/features", "val/loss"} <= set(head.split(","))
    assert row


def test_a_run_with_a_discriminator_starts_from_one_without(tmp_path: Path) -> None:
    model = small()
    before = weights(model, "discriminator")
    fitted(tmp_path, alone := small(discriminator=None), 1)
    path = tmp_path / "start.ckpt"
    average = {"average": weights(alone), "updates": 1}
    torch.save({"state_dict": alone.state_dict(), "callbacks": {"EMA": average}, "global_step": 1}, path)
    loading.start_from(model, str(path))
    assert not moved(weights(alone, "network"), weights(model, "network"))
    assert not moved(before, weights(model, "discriminator"))


@pytest.mark.tried("Checkpoints")
@pytest.mark.parametrize("part", ["network", "discriminator"])
def test_a_file_that_describes_a_larger_network_is_refused(run: Path, tmp_path: Path, part: str) -> None:
    """Before any memory is taken for it."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    key = next(k for k, x in checkpoint.items() if isinstance(x, str) and "PlainAutoencoder" in x)
    old = '"channels": 4,' if part == "network" else '"channels": 8,'
    new = old.replace(",", "000,")
    assert old in checkpoint[key]
    checkpoint[key] = checkpoint[key].replace(old, new, 1)
    torch.save(checkpoint, tmp_path / "large.ckpt")
    with pytest.raises(ValueError, match="belongs to another model"):
        loading.module(tmp_path / "large.ckpt")


# Refusals


class NoLayer(nn.Module):
    """An autoencoder that does not name its last layer, and whose latents are not what it states."""

    in_channels, latent_channels, factor, size = 1, 4, 2, 8

    def __init__(self, right: bool = True) -> None:
        super().__init__()
        self.inner, self.right = network(), right

    def encode(self, image: Tensor) -> Any:
        return self.inner.encode(image if self.right else image[..., ::2])

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(z)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no autoencoder": ({"network": nn.Linear(2, 2), "shape": (1, 8, 8)}, "Linear has no encode and no decode"),
    "no shape": ({"network": network(size=None)}, "does not state in_channels and size"),
    "other channels": ({"shape": (3, 8, 8)}, "takes 1 channels and sizes that are multiples of 2"),
    "an odd size": ({"shape": (1, 9, 8)}, "multiples of 2"),
    "a size that is not stated": ({"network": NoLayer(right=False)}, "but states latents of"),
    "no last layer": ({"network": NoLayer()}, "NoLayer has no conv_out"),
    "a discriminator too deep": ({"discriminator": PatchDiscriminator(1, 8, 3)}, "fewer layers if they are small"),
    "a discriminator of other images": ({"discriminator": PatchDiscriminator(3, 8, 1)}, "does not take images"),
    "features of bytes": ({"features": InceptionV3.__new__(InceptionV3)}, "takes bytes, which have no gradient"),
    "features of other images": (
        {"features": DigitsNet(), "shape": (3, 8, 8), "network": network(in_channels=3),
         "discriminator": None}, "DigitsNet gives no features of images of shape"),
    "a negative weight": ({"kl_weight": -1.0}, "kl_weight is -1.0, which is no weight"),
    "no rate": ({"discriminator_rate": 0.0}, "discriminator_rate is 0.0, which is no rate"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    changes, says = WRONG[case]
    if case == "features of bytes":
        nn.Module.__init__(changes["features"])
    with pytest.raises(ValueError, match=says):
        small(**changes)


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a discriminator that never plays":
        ({"adversarial_from": 3}, {}, "takes part from step 3 on, but the run ends at step 3"),
    "float16": ({}, {"precision": "16-true"}, "pass the largest number of float16: set it to bf16-mixed"),
    "shards": ({}, {"strategy": ModelParallelStrategy()}, "an Autoencoder is trained whole"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_cannot_be_is_refused(case: str, tmp_path: Path) -> None:
    changes, options, says = RUNS[case]
    with pytest.raises(ValueError, match=says):
        fitted(tmp_path, small(**changes), 3, **options)


def test_diffusers_network_trains_too(tmp_path: Path) -> None:
    made = KLAutoencoder(1, 8, 4, (1, 2), 1, 2, groups=2)
    model = small(network=made)
    before = weights(model)
    fitted(tmp_path, model, 2, 8)
    assert moved(before, weights(model)) | {BIAS} == set(before)
    assert autoencoders.latent_shape(made, (1, 8, 8)) == (2, 4, 4)
