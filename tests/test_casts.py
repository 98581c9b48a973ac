"""A model cast as a whole draws what it drew in float32, as far as its type can tell."""

import copy
from functools import cache as remembered
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT
from diffusion_lightning.networks.embeddings import sinusoidal
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Linear, Schedule

from .conftest import of_length, tiny_unet

tried = pytest.mark.tried("Numbers, precision and words")

T, WIDTH, N = 20, 32, 4
# What a type can tell: of an image in [-1, 1] no pixel is off by more than four times the distance from 1 to the next
# number, and the mean pixel by half of it. Half precision has 2^-10, bfloat16 2^-7; double has float32's own images.
DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
PRECISIONS = {"16-true": "half", "bf16-true": "bfloat16", "64-true": "double"}  # of a trainer
SAMPLERS: dict[str, Sampler] = {
    "Ancestral": Ancestral(5),
    "DDIM": DDIM(5),
    "DDIM with noise": DDIM(5, eta=1.0),
    "DDIM, dynamic threshold": DDIM(5, dynamic=0.9),
    "DPMSolver": DPMSolver(5),
    "Heun": Heun(5),
}


class Plain(nn.Module):
    """A network of one's own, which knows nothing of types."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.time = nn.Embedding(T, WIDTH)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        told = self.time(t) if c is None else self.time(t) + c
        return self.leave(nn.functional.silu(self.enter(x_t) + told[:, :, None, None]))


NETWORKS = {"UNet": tiny_unet, "DiT": lambda: DiT(1, 8, 4, WIDTH, 2, 2), "a plain module": Plain}


def model(network: str, classes: bool = False, schedule: Schedule | None = None) -> Diffusion:
    torch.manual_seed(0)
    conditioner = ClassLabels(3, WIDTH, std=1.0) if classes else None
    made = Diffusion(NETWORKS[network](), schedule or Linear(T), (1, 8, 8), conditioner=conditioner).eval()
    for p in made.denoiser.network.parameters():
        nn.init.normal_(p, std=0.1)
    return made


def drawn(made: Diffusion, sampler: Sampler, condition: str) -> Tensor:
    given: dict[str, Any] = {} if condition == "no condition" else {"y": torch.arange(N) % 3}
    if condition == "guidance":
        given["guidance"] = ClassifierFree(2.0)
    return made.generate(N, sampler, **given)


@remembered
def in_float32(network: str, sampler: str, condition: str) -> Tensor:
    return drawn(model(network, condition != "no condition"), SAMPLERS[sampler], condition)


def check(found: Tensor, expected: Tensor, name: str) -> None:
    """The images are those of float32, as far as the type can tell."""
    assert found.dtype == (torch.float64 if name == "double" else torch.float32)
    error, eps = (found.double() - expected.double()).abs(), torch.finfo(DTYPES[name]).eps
    assert error.max() <= (1e-5 if name == "double" else 4 * eps)
    assert error.mean() <= (1e-6 if name == "double" else eps / 2)
    assert expected.std() > 0.3  # there is something to see


@tried
@pytest.mark.parametrize("condition", ["no condition", "classes", "guidance"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_model_cast_as_a_whole_draws_the_images_of_float32(
    name: str, sampler: str, network: str, condition: str
) -> None:
    made = getattr(model(network, condition != "no condition"), name)()
    assert {p.dtype for p in made.parameters()} == {DTYPES[name]}
    check(drawn(made, SAMPLERS[sampler], condition), in_float32(network, sampler, condition), name)


@tried
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_network_that_is_cast_alone_draws_the_images_of_float32(name: str, network: str) -> None:
    """Before the model is built, or after, beside a conditioner that stays in float32."""
    after = model(network, classes=True)
    getattr(after.denoiser.network, name)()
    before = Diffusion(after.denoiser.network, Linear(T), (1, 8, 8), conditioner=after.conditioner).eval()
    for made in (after, before):
        check(drawn(made, SAMPLERS["DDIM"], "guidance"), in_float32(network, "DDIM", "guidance"), name)


@tried
@pytest.mark.parametrize("name", DTYPES)
def test_what_a_sampler_works_on_is_never_less_than_float32(name: str) -> None:
    """x_t at every step, whatever the type of the noise or the images that it is given."""
    made, dtype = getattr(model("UNet"), name)(), DTYPES[name]
    seen = []
    x_T, image = torch.randn(2, 1, 8, 8).to(dtype), (torch.rand(2, 1, 8, 8) * 2 - 1).to(dtype)
    known = (torch.rand(2, 1, 8, 8) < 0.5).to(dtype)
    wanted = torch.float64 if name == "double" else torch.float32
    sampler, given = SAMPLERS["DDIM"], (made.denoiser, made.schedule)
    with torch.no_grad():
        found = [
            sampler(*given, x_T, watch=lambda t, x_t: seen.append(x_t.dtype)),
            sampler.invert(*given, image),
            sampler.interpolate(*given, image, image.flip(0), [0.5]),
            sampler.inpaint(*given, x_T, image, known, resample=2),
        ]
    assert {*seen, *(x.dtype for x in found)} == {wanted}
    assert all(x.isfinite().all() for x in found)
    assert torch.equal(found[3][known == 1], image.to(wanted)[known == 1])


@tried
@pytest.mark.parametrize("cast", [*DTYPES, "float", "float64 and back", "the meta device and back"])
@pytest.mark.parametrize("kind", Schedule.__subclasses__(), ids=lambda kind: kind.__name__)
def test_no_cast_rounds_the_table_of_a_schedule(kind: type[Schedule], cast: str) -> None:
    made = nn.Sequential(of_length(kind))
    exact = made[0].alpha_bar.clone()  # type: ignore[operator]
    if cast == "float64 and back":
        made.to(torch.bfloat16).to(torch.float64)
    elif cast == "the meta device and back":
        made.to("meta").to_empty(device="cpu")
    else:
        getattr(made, cast)()
    found: Any = copy.deepcopy(made)[0]
    t = torch.arange(len(exact))
    assert found.alpha_bar.dtype == torch.float64
    assert torch.equal(found.alpha_bar, exact)
    assert torch.equal(found.alpha_sigma(t)[0], exact.sqrt())


@tried
@pytest.mark.parametrize("name", DTYPES)
def test_the_loss_of_a_cast_model_is_that_of_float32(name: str) -> None:
    made, x = model("UNet"), torch.rand(8, 1, 8, 8) * 2 - 1
    t, sample = torch.arange(1, 9), torch.arange(8)
    expected = made._losses(x, t, Draw(made.seed, "evaluation", 0, sample))
    found = getattr(made, name)()._losses(x, t, Draw(0, "evaluation", 0, sample))
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(DTYPES[name]).eps + 1e-6, atol=0)


@tried
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_in_float32_is_given_its_input_uncopied(network: str) -> None:
    """Nothing is cast or copied, under autocast neither: training and validation are what they were, bit for bit."""
    made, seen = model(network, classes=True), []
    made.denoiser.network.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[2])))
    x_t, t, c = torch.randn(2, 1, 8, 8), torch.tensor([1, T]), made.conditioner(torch.tensor([0, 1]))
    made.denoiser(x_t, t, c)
    with torch.autocast("cpu", torch.bfloat16):
        made.denoiser(x_t, t, c)
    assert all(x is x_t and given is c for x, given in seen)
    assert len(seen) == 2


@tried
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=list(DTYPES))
def test_times_are_embedded_in_float32_whatever_the_default_type(dtype: torch.dtype) -> None:
    """As under a trainer's precision `bf16-true`, which makes that the type of every new tensor."""
    expected = sinusoidal(torch.arange(1000), 64)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(sinusoidal(torch.arange(1000), 64), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@tried
@pytest.mark.parametrize(
    ("precision", "name"), [pytest.param(word, name, id=word) for word, name in PRECISIONS.items()]
)
def test_a_trainers_true_precision_draws_the_images_of_float32(precision: Any, name: str) -> None:
    made = model("UNet", classes=True)
    given = [{"n": N, "sampler": SAMPLERS["Ancestral"], "y": torch.arange(N) % 3}]
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    found: Any = trainer.predict(made, DataLoader(given, batch_size=None))  # type: ignore[arg-type]
    check(found[0], in_float32("UNet", "Ancestral", "classes"), name)
