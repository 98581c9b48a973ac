"""Operations counted against formulas by hand, and rates against a clock that the test turns itself."""

import csv
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lightning.callbacks import throughput
from diffusion_lightning.callbacks.throughput import Throughput
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT, UNet
from diffusion_lightning.networks.base import matmuls
from diffusion_lightning.networks.unet import Attention
from diffusion_lightning.schedules import Cosine

from ..conftest import UNWATCHED, small_config, tiny_unet

NAME = "diffusion_lightning.callbacks.throughput.Throughput"
BF16 = torch.bfloat16


def model(network: nn.Module, *shape: int, **arguments: Any) -> Diffusion:
    return Diffusion(network, Cosine(20), shape, **arguments)


# What a pass costs


def by_layers(network: nn.Module, *given: Tensor) -> int:
    """Two operations for each weight of a layer at each of its outputs, and 4·tokens²·C for an attention."""
    found = 0

    def layer(module: Any, _: Any, output: Tensor) -> None:
        nonlocal found
        places = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output.numel() // output.shape[-1]
        found += 2 * module.weight.numel() * places

    def attention(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal found
        _, c, h, w = inputs[0].shape
        found += 4 * (h * w) ** 2 * c

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention)
    with torch.no_grad():
        network(*given)
    return found


@pytest.mark.parametrize(
    "network",
    [
        UNet(channels=32, groups=8, dropout=0.1),
        UNet(channels=32, groups=8, attention=(16, 8), head_channels=16, scale_shift=True, resample_blocks=True,
             release="IDDPM", out_channels=6),
    ],
    ids=["DDPM", "ADM"],
)  # fmt: skip
def test_the_u_nets_operations_layer_by_layer(network: UNet) -> None:
    counted = model(network, 3, 32, 32).operations()
    assert counted == by_layers(network, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))


def test_products_that_a_cpu_is_spared_are_counted() -> None:
    """Those of a transposed convolution in the place of one of twice the size, which only many pixels bring about."""
    network = UNet(size=64, channels=32, multipliers=(1, 2), blocks=1, attention=(), groups=8)
    given = torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(*given)
    assert counter.get_total_flops() < model(network, 3, 64, 64).operations() == by_layers(network, *given)


def test_the_cifar10_networks_operations() -> None:
    assert model(UNet(), 3, 32, 32).operations() / 1e9 == pytest.approx(12.4, abs=0.05)


def test_the_transformers_operations_by_formula() -> None:
    width, depth, hidden, tokens = 48, 3, 192, 16
    network = DiT(in_channels=1, size=8, patch=2, width=width, depth=depth, heads=4)
    block = 6 * width**2 + tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    ends = 256 * width + width**2 + 2 * width**2 + tokens * 2 * 4 * width
    assert model(network, 1, 8, 8).operations() == 2 * (depth * block + ends)
    told = model(network, 1, 8, 8, conditioner=ClassLabels(10, width))
    assert told.operations() == 2 * (depth * block + ends)


class Encoder(nn.Module):
    """PyTorch's own transformer over the pixels, whose evaluation is one operation of no known cost."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(1, 16), nn.Linear(16, 1)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        x = x_t.flatten(2).mT
        return self.outside(self.encoder(self.inside(x))).mT.unflatten(2, x_t.shape[2:])


def test_pytorchs_own_layers_do_not_hide() -> None:
    tokens, layer = 64, 64 * (4 * 16**2 + 2 * 16 * 32) + 2 * 64**2 * 16
    assert model(Encoder(), 1, 8, 8).operations() == 2 * (2 * layer + 2 * tokens * 16)


def test_counting_asks_the_weights_where_they_are() -> None:
    """Before it has moved a model, Lightning has it say that it is where it will be."""
    found = model(tiny_unet(), 1, 8, 8)
    expected = found.operations()
    found._device = torch.device("cuda:0")
    assert found.operations() == expected > 0


class Curious(nn.Module):
    """Looks at the numbers, which shapes alone do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x_t)) if float(x_t.sum()) == 0 else x_t


@pytest.mark.parametrize("network", [Curious(), tiny_unet()], ids=["by numbers", "by shapes"])
def test_counting_leaves_everything_as_it_was(network: nn.Module) -> None:
    found = model(network, 1, 8, 8)
    before = {name: x.clone() for name, x in found.state_dict().items()}
    noise = torch.get_rng_state()
    counted = found.operations()
    assert torch.equal(noise, torch.get_rng_state())
    assert network.training
    assert all(torch.equal(x, before[name]) for name, x in found.state_dict().items())
    assert all(type(p) is nn.Parameter and p.grad is None for p in network.parameters())
    assert counted == 2 * 9 * 64 or not isinstance(network, Curious)


# What a device can do


@pytest.mark.parametrize(
    ("precision", "name", "peak"),
    [
        ("bf16-mixed", "NVIDIA H100 80GB HBM3", 989.4e12),
        ("16-true", "NVIDIA A100-SXM4-80GB", 312e12),
        ("32-true", "NVIDIA H100 80GB HBM3", 494.7e12),
        ("64-true", "NVIDIA A100-SXM4-80GB", 9.7e12),
        ("bf16-mixed", "Some GPU of tomorrow", None),
        ("bf16-mixed", "Tesla T4", None),
    ],
)
def test_known_devices(monkeypatch: pytest.MonkeyPatch, precision: str, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert throughput._known_peak(torch.device("cuda"), throughput._dtype(precision)) == peak


def test_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, mm = Clock(), torch.mm
    assert throughput._known_peak(torch.device("cpu"), torch.float32) is None
    assert 0 < throughput._measured_peak(torch.device("cpu"), torch.bfloat16) < math.inf
    seconds = iter([9.0, 0.125, 0.0625, *[0.25] * 9])

    def product(a: Tensor, b: Tensor) -> Tensor:
        clock.time += next(seconds)
        return mm(a[:1], b)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(throughput, "now", clock)
    assert throughput._measured_peak(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.0625


def test_a_peak_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="peak is 0"):
        Throughput(peak=0)


@pytest.mark.parametrize(
    ("precision", "reduced", "told"), [("bf16-mixed", [], True), ("bf16-mixed", [BF16], False), ("32-true", [], False)]
)
def test_a_cpu_that_is_slow_in_bf16_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, reduced: list[torch.dtype], told: bool
) -> None:
    monkeypatch.setattr(matmuls, "FAST", {torch.float32, *reduced})
    config = str(timed(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", "--config", config, "--trainer.max_steps", "2", "--trainer.precision", precision])
    said = [str(warning.message) for warning in caught if "this CPU" in str(warning.message)]
    assert said == told * [
        "this CPU has no fast arithmetic for bfloat16, so that matmuls and convolutions are made in float32 and "
        "rounded to it: --trainer.precision 32-true trains at least as fast here"
    ]


@pytest.mark.parametrize(("fast", "expected"), [(set(), 390e9), ({BF16}, 800e9)])
def test_a_cpus_peak_is_of_the_type_in_which_products_are_made(
    monkeypatch: pytest.MonkeyPatch, fast: set[torch.dtype], expected: float
) -> None:
    monkeypatch.setattr(matmuls, "FAST", {torch.float32, *fast})
    measured = {BF16: 800e9, torch.float32: 390e9}
    monkeypatch.setattr(throughput, "_measured_peak", lambda device, dtype: measured[dtype])
    assert throughput.peak(torch.device("cpu"), BF16) == expected


# The rate, by a clock that stands still but where a step, a validation or a checkpoint turns it


class Clock:
    time = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.time


CLOCK = Clock()


class Turns(Callback):
    """2 s a micro-batch, 100 more for the first of a start, 1000 a batch of validation, 500 a checkpoint."""

    def on_train_start(self, *_: Any) -> None:
        CLOCK.time += 10_000
        self._first = True

    def on_after_backward(self, *_: Any) -> None:
        CLOCK.time += 102 if self._first else 2
        self._first = False

    def on_validation_batch_start(self, *_: Any) -> None:
        CLOCK.time += 1000

    def on_save_checkpoint(self, *_: Any) -> None:
        CLOCK.time += 500


def timed(folder: Path, peak: float | None = 1e9, **changes: Any) -> Path:
    """The small config with these callbacks alone, a validation and checkpoints in the middle of logging intervals."""
    path = small_config(folder, **{
        "trainer.max_steps": 20, "trainer.log_every_n_steps": 4, "trainer.val_check_interval": 6, "checkpoint.keep": 9,
        "trainer.logger": False, "model.init_args.lr_scheduler": None, "checkpoint.every_n_train_steps": 5,
        "checkpoint.monitor": None, "trainer.limit_val_batches": 1, **changes,
    })  # fmt: skip
    config = yaml.safe_load(path.read_text())
    callback = {"class_path": NAME, "init_args": {"peak": peak}}
    config.update(UNWATCHED)
    config["trainer"]["callbacks"] = [callback, {"class_path": "tests.callbacks.test_throughput.Turns"}]
    path.write_text(yaml.safe_dump(config))
    return path


def logged(path: Path, key: str) -> dict[int, float]:
    """The values of a column by the number of steps done."""
    with path.open(newline="") as file:
        return {int(row["step"]) + 1: float(row[key]) for row in csv.DictReader(file) if row.get(key)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_only_the_steps_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    monkeypatch.setattr(throughput, "now", CLOCK)
    config, metrics = timed(tmp_path, **{"trainer.accumulate_grad_batches": accumulate}), tmp_path / "run/metrics.csv"
    main(["fit", "--config", str(config)])
    assert logged(metrics, "throughput/images_per_sec") == dict.fromkeys([4, 8, 12, 16, 20], 32 / 2)
    middle = str(tmp_path / "run/checkpoints/step=10.ckpt")
    main(["fit", "--config", str(config), "--trainer.max_steps", "24", "--ckpt_path", middle])
    assert logged(metrics, "throughput/images_per_sec") == dict.fromkeys([4, 8, 12, 16, 20, 24], 32 / 2)
    network = UNet(in_channels=1, size=8, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(), groups=4)
    share = 3 * by_layers(network, torch.zeros(1, 1, 8, 8), torch.zeros(1)) * 16 / 1e9
    assert list(logged(metrics, "throughput/mfu").values()) == pytest.approx([share] * 6)
    memory = list(logged(metrics, "throughput/memory_gib").values())
    assert 0.1 < memory[0] <= memory[-1] < 100


def test_a_step_on_its_own_is_timed_from_the_second_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "now", CLOCK)
    every = {"trainer.log_every_n_steps": 1, "trainer.max_steps": 7, "checkpoint.every_n_train_steps": 1}
    main(["fit", "--config", str(timed(tmp_path, **every))])
    found = logged(tmp_path / "run/metrics.csv", "throughput/images_per_sec")
    assert found == dict.fromkeys(range(2, 8), 32 / 2)


@pytest.mark.slow
def test_two_processes_have_the_images_and_the_peak_of_two(tmp_path: Path) -> None:
    """By the clock on the wall; so the share by the rate, which does not depend on it."""
    config, share = timed(tmp_path), {}
    for n in (1, 2):
        root = tmp_path / str(n)
        words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(root), "--trainer.devices", str(n),
                 "--trainer.strategy", "ddp"]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "diffusion_lightning", *words], check=True, env=environment)
        rate, mfu = (logged(root / "metrics.csv", f"throughput/{key}") for key in ("images_per_sec", "mfu"))
        assert list(rate) == [4, 8, 12, 16, 20]
        share[n] = [mfu[step] / rate[step] for step in rate]
    assert [2 * x for x in share[2]] == pytest.approx(share[1], rel=1e-5)
