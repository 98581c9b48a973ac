"""LoRA: what trains, what is kept, how a run goes on, and what is refused."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_lightning import checkpoints, load, loading
from diffusion_lightning.cli import main
from diffusion_lightning.frozen import _hash
from diffusion_lightning.modules import Diffusion, LoRA
from diffusion_lightning.modules.base.lora import A, B
from diffusion_lightning.networks import DiT, UNet
from diffusion_lightning.schedules import Linear

from ..conftest import BARE, small_config, tiny_unet
from ..support.commands import fails

TRIED = pytest.mark.tried("Checkpoints")
FIT = [*BARE, "--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null"]
LORA = ["--lora.rank", "2", "--lora.alpha", "6", "--lora.dropout", "0.1"]
LAST = "checkpoints/last.ckpt"


def words(config: Path, root: Path, steps: int, *more: str) -> list[str]:
    where = ["--trainer.default_root_dir", str(root), "--trainer.max_steps", str(steps)]
    return ["fit", "--config", str(config), *FIT, *where, *more]


def fit(config: Path, root: Path, steps: int, *more: str) -> Path:
    main(words(config, root, steps, *more))
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_config(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def base(config: Path) -> Path:
    return fit(config, config.parent / "base", 2)


@pytest.fixture(scope="module")
def run(config: Path, base: Path) -> Path:
    """Four steps of adapters."""
    return fit(config, config.parent / "run", 4, "--init_from", str(base), *LORA)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run / "checkpoints", tmp_path / "copy/checkpoints")
    return tmp_path / "copy"


def frozen_file(root: Path) -> Path:
    (file,) = (root / "checkpoints/frozen").iterdir()
    return file


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# A run


def test_adapters_alone_are_trained_averaged_and_kept(run: Path, base: Path) -> None:
    held, started = checkpoints.read(run / LAST), checkpoints.read(base / LAST)
    adapters = {name for name in held["state_dict"] if name.endswith((A, B))}
    assert len(adapters) == 4  # the qkv and out of one attention
    assert held["state_dict"].keys() - adapters == {"lora.alpha"}
    assert all(held["state_dict"][name].abs().max() > 0 for name in adapters)
    assert checkpoints.averaged(held).keys() == checkpoints.averaged(held, "compensation").keys() == adapters
    (optimizer,) = held["optimizer_states"]
    assert sum(len(group["params"]) for group in optimizer["param_groups"]) == len(adapters) == len(optimizer["state"])
    stored, theirs = load_file(frozen_file(run)), {**started["state_dict"], **checkpoints.averaged(started)}
    assert same(stored, {name.removeprefix("denoiser.network."): theirs[name] for name in theirs})
    assert held["frozen"] == {"lora": frozen_file(run).stem}
    assert (run / LAST).stat().st_size < 0.2 * (base / LAST).stat().st_size


def test_a_run_that_is_resumed_is_the_run_that_was_not(run: Path, config: Path, base: Path, tmp_path: Path) -> None:
    half = fit(config, tmp_path / "half", 2, "--init_from", str(base), *LORA)
    shutil.move(str(half), tmp_path / "moved")
    fit(config, tmp_path / "moved", 4, *LORA, "--ckpt_path", "last")
    one, other = (checkpoints.read(root / LAST) for root in (run, tmp_path / "moved"))
    for key in ("state_dict", "optimizer_states", "frozen"):
        assert same(one[key], other[key])
    assert same(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert frozen_file(tmp_path / "moved").read_bytes() == frozen_file(run).read_bytes()


@pytest.mark.slow
def test_its_own_configuration_says_it_all(run: Path, tmp_path: Path) -> None:
    """`validate` by the user's configuration runs adapted, `validate` of the checkpoint alone merged."""
    found = []
    own = ["--config", str(run / "config.yaml"), *BARE, "--trainer.logger", "false"]
    for name, more in {"own": own, "alone": ["--trainer.callbacks", "[]", "--trainer.logger", "false"]}.items():
        root = tmp_path / name
        main(["validate", *more, "--ckpt_path", str(run / LAST), "--trainer.default_root_dir", str(root),
              "--trainer.limit_val_batches", "1"])  # fmt: skip
        rows = (root / "validate.csv").read_text().splitlines()
        found.append(float(dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["val/loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_what_starts_from_adapters_starts_from_what_they_make(run: Path, config: Path, tmp_path: Path) -> None:
    merged = load(run)
    again = fit(config, tmp_path / "again", 1, "--init_from", str(run), "--lora.rank", "1")
    assert same(load_file(frozen_file(again)), dict(merged.denoiser.network.state_dict()))
    whole = fit(run / "config.yaml", tmp_path / "whole", 1, "--init_from", str(run), "--lora", "null")
    assert not (whole / "checkpoints/frozen").exists()
    assert checkpoints.read(whole / LAST)["state_dict"].keys() == merged.state_dict().keys()


def test_samples_and_exports_need_the_checkpoint_and_its_frozen_file_alone(copied: Path, tmp_path: Path) -> None:
    main(["predict", "--ckpt_path", str(copied / LAST), "--n", "2", "--out", str(tmp_path / "out"), "--sampler", "DDIM",
          "--sampler.steps", "2"])  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    main(["export", str(copied / LAST), str(tmp_path / "weights"), "--format", "weights"])
    stored = load_file(tmp_path / "weights/model.safetensors")
    assert same(stored, dict(load(copied).state_dict()))
    assert yaml.safe_load((tmp_path / "weights/config.yaml").read_text())["model"]["init_args"]["lora"] is None


@pytest.mark.slow
def test_an_average_of_adapters_is_a_model(config: Path, base: Path, tmp_path: Path) -> None:
    root = fit(config, tmp_path / "run", 4, "--init_from", str(base), "--lora.rank", "2", "--trainer.callbacks",
               "PowerEMA", "--trainer.callbacks.every_n_train_steps", "1")  # fmt: skip
    out = tmp_path / "other/average.ckpt"
    main(["average", str(root), "--sigma_rel", "0.1", "--out", str(out)])
    last, averaged = checkpoints.read(root / LAST), checkpoints.read(out)
    assert averaged["state_dict"].keys() == last["state_dict"].keys()
    name = next(name for name in last["state_dict"] if name.endswith(B))
    assert not torch.equal(averaged["state_dict"][name], last["state_dict"][name])
    assert load(out).adapters.layers


# What is refused, in one sentence


@TRIED
def test_a_checkpoint_of_adapters_that_lost_what_they_adapt_is_refused(
    copied: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = frozen_file(copied)
    resume = words(config, copied, 5, *LORA, "--ckpt_path", "last")
    predict = ["predict", "--ckpt_path", str(copied / LAST), "--n", "1", "--out", str(copied / "out")]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for command in (predict, resume):
        assert "is not the frozen part that its name says" in fails(capsys, *command)
    file.unlink()
    for command in (predict, resume):
        assert f"holds adapters of the weights in {file}, but that file is missing" in fails(capsys, *command)


SPOILT = {
    "another alpha": ("lora.alpha", lambda x: 2 * x, r"lora's alpha is 6, but the adapters in .* were trained with 12"),
    "an alpha that is lost": ("lora.alpha", lambda x: None, r"lora's alpha is 6, but .* were trained with none"),
    "another rank": ("qkv" + A, lambda x: torch.cat([x, x]), r"lora's rank is 2, but in .* the adapter of .*qkv"),
    "half an adapter": ("qkv" + B, lambda x: None, r"lora's rank is 2, but in .* the adapter of .*qkv"),
    "a number that is none": ("qkv" + B, lambda x: x * torch.nan, "not finite"),
}


@TRIED
@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_adapters_are_refused(case: str, copied: Path) -> None:
    end, change, says = SPOILT[case]
    held = checkpoints.read(copied / LAST)
    for tensors in (held["state_dict"], *(checkpoints.averaged(held, kind) for kind in ("average", "compensation"))):
        for name in [name for name in tensors if name.endswith(end)]:
            if (new := change(tensors.pop(name))) is not None:
                tensors[name] = new
    torch.save(held, copied / LAST)
    with pytest.raises(ValueError, match=says):
        load(copied)


@TRIED
def test_a_weight_of_the_base_among_the_adapters_is_refused(copied: Path) -> None:
    held = checkpoints.read(copied / LAST)
    held["state_dict"]["denoiser.network.conv_in.bias"] = torch.zeros(8)
    torch.save(held, copied / LAST)
    with pytest.raises(ValueError, match=r"its conv_in\.bias is none"):
        load(copied)


def test_adapters_go_on_with_the_alpha_that_they_began_with(
    copied: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 33: a strength that is lost or another when training goes on."""
    other = ["--lora.rank", "1", "--lora.alpha", "4", "--lora.dropout", "0.1"]
    said = fails(capsys, *words(config, copied, 5, *other, "--ckpt_path", "last"))
    assert "changes what the checkpoint" in said
    assert "model.init_args.lora.init_args.rank from 2 to 1" in said
    assert "model.init_args.lora.init_args.alpha from 6.0 to 4.0" in said


def test_adapters_of_random_weights_are_refused(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = fails(capsys, *words(config, tmp_path / "run", 2, "--lora.rank", "2"))
    assert "this run starts from random ones: give the checkpoint of a model by --init_from" in said


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a rank of 0": ({"rank": 0}, "give a rank ≥ 1"),
    "an alpha of 0": ({"alpha": 0.0}, "lora's alpha is 0, but it scales what is trained"),
    "a negative alpha": ({"alpha": -1.0}, "give a number above 0"),
    "an infinite alpha": ({"alpha": float("inf")}, "give a number above 0"),
    "all dropped": ({"dropout": 1.0}, "lora's dropout is 1.0"),
    "a rank above the layer's": (
        {"rank": 17},
        "lora's rank is 17, but its target .* is a matrix of 16 × 16, of rank 16",
    ),
    "no such layers": ({"targets": ["qvk"]}, r"lora has qvk, but .* of the UNet has such a name: .* qkv"),
    "a layer that is none": ({"targets": ["norm1"]}, "lora has norm1, but no linear layer or convolution"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_layer_takes_is_refused(case: str) -> None:
    given, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        Diffusion(tiny_unet(), Linear(20), lora=LoRA(**given))


def test_a_missing_package_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora needs the package peft, .* 'diffusion_lightning\[lora\]'"):
        Diffusion(tiny_unet(), Linear(20), lora=LoRA())


# The adapted network


def networks() -> Iterator[tuple[str, nn.Module, Any]]:
    tokens = (None, torch.randn(2, 3, 16), torch.tensor([[True] * 3, [True, False, False]]))
    unet = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4, "dropout": 0.0}
    yield "UNet", UNet(1, 8, **unet, token_width=16, cross_attention=(4,)), tokens  # type: ignore[arg-type]
    yield "DiT", DiT(1, 8, patch=2, width=16, depth=2, heads=2, token_width=16), tokens


def with_random_adapters(network: nn.Module, **given: Any) -> LoRA:
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    lora, module = LoRA(**{"rank": 2, "alpha": 6.0, **given}), nn.Module()
    module.network = network
    lora.join(module, network)
    for name, p in network.named_parameters():
        if name.endswith(B):
            nn.init.normal_(p, std=0.5)
    return lora


@pytest.mark.parametrize("kind", ["UNet", "DiT"])
def test_an_adapted_layer_is_its_weight_and_the_product(kind: str) -> None:
    """By an oracle: the same network whose weights are W + alpha/rank·B·A; the attention of each kind is among them."""
    network, c = next((network, c) for name, network, c in networks() if name == kind)
    plain = copy.deepcopy(network)
    lora = with_random_adapters(network)
    state, x, t = network.state_dict(), torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    plain.load_state_dict(lora._state())
    before = plain.eval()(x, t, c)
    layers = {name.removesuffix(A) for name in state if name.endswith(A)}
    assert {name.rpartition(".")[2] for name in layers} == {"qkv", "out", "query", "key_value"}
    with torch.no_grad():
        for name in layers:
            a, b = state[name + A], state[name + B]
            weight: Any = plain.get_submodule(name).weight
            weight += 6 / 2 * (b.flatten(1) @ a.flatten(1)).view_as(weight)
    found = network.eval()(x, t, c)
    torch.testing.assert_close(found, plain(x, t, c), atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["UNet", "DiT"])
def test_a_compiled_network_keeps_its_adapters(kind: str) -> None:
    network, c = next((network, c) for name, network, c in networks() if name == kind)
    with_random_adapters(network, targets=["qkv"])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    expected = network.eval()(x, t, c)
    network.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(network(x, t, c), expected, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_stay_float32_so_that_their_gradients_can_be_unscaled(dtype: torch.dtype) -> None:
    """Fault 34: a scaler refuses gradients of float16, which adapters have in the type of a half base."""
    network = DiT(1, 8, patch=2, width=16, depth=1, heads=2)
    lora = with_random_adapters(network)
    kept = {name: p.clone() for name, p in network.named_parameters() if p.requires_grad}
    network.to(dtype)
    lora.to(dtype)
    assert lora.alpha.dtype == torch.float32
    for name, p in network.named_parameters():
        assert p.dtype == (torch.float32 if name in kept else dtype)
        assert name not in kept or torch.equal(p, kept[name])
    output = network(torch.randn(2, 1, 8, 8, dtype=dtype), torch.tensor([3, 7]), None)
    assert output.dtype == dtype
    scaler = torch.amp.GradScaler("cpu")
    adapters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(adapters, 0.1)
    scaler.scale(output.float().square().mean()).backward()
    scaler.unscale_(optimizer)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters)
    assert network.double().state_dict()["blocks.0.qkv" + A].dtype == torch.float64


def test_a_module_without_a_trainer_loads_what_was_trained(run: Path) -> None:
    """Adapted by hand and merged: the same to rounding."""
    merged = load(run)
    held = checkpoints.read(run / LAST)
    record = checkpoints.config(held, run)["model"]["init_args"]["network"]["init_args"]
    model = Diffusion(UNet(**record), merged.schedule, merged.shape, lora=LoRA(2, 6.0)).eval()
    loading.check_fits(model, held, run / LAST)
    model.load_state_dict({**held["state_dict"], **checkpoints.averaged(held)})
    x, t = torch.randn(2, *model.shape), torch.tensor([3, 7])
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser(x, t)[1], merged.denoiser(x, t)[1], atol=1e-5, rtol=1e-5)
    assert model.lora is not None
    assert model.lora.frozen is not None
    assert _hash(model.lora._state(), model.lora.frozen.description) == held["frozen"]["lora"]


@pytest.mark.slow
def test_a_base_in_bfloat16_is_stored_so_and_its_adapters_are_not(config: Path, base: Path, tmp_path: Path) -> None:
    more = ["--init_from", str(base), *LORA, "--trainer.precision", "bf16-true"]
    whole = fit(config, tmp_path / "whole", 3, *more)
    half = fit(config, tmp_path / "half", 2, *more)
    fit(config, half, 3, *LORA, "--trainer.precision", "bf16-true", "--ckpt_path", "last")
    one, other = (checkpoints.read(root / LAST) for root in (whole, half))
    assert {x.dtype for x in one["state_dict"].values()} == {torch.float32}
    assert {x.dtype for x in load_file(frozen_file(whole)).values()} == {torch.bfloat16}
    for key in ("state_dict", "optimizer_states", "frozen"):
        assert same(one[key], other[key])
    assert load(half).denoiser.dtype == torch.float32


@pytest.mark.slow
def test_two_processes_train_the_adapters_that_one_does(config: Path, base: Path, tmp_path: Path) -> None:
    more = ["--init_from", str(base), "--lora.rank", "2"]
    fit(config, tmp_path / "1", 3, *more)
    more += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "16"]
    command = [sys.executable, "-m", "diffusion_lightning", *words(config, tmp_path / "2", 3, *more)]
    subprocess.run(command, check=True, cwd=tmp_path)
    one, two = (checkpoints.read(tmp_path / name / LAST) for name in ("1", "2"))
    assert one["frozen"] == two["frozen"]
    for name, x in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], x, atol=2e-5, rtol=1e-4)
