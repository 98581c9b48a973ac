"""Every config: what it is made of, from the very objects that `fit` would train; and two steps of it on made files."""

import gzip
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision.datasets
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

import diffusion_lightning
from diffusion_lightning import loading
from diffusion_lightning.callbacks import EMA, Checkpoint, GenerativeMetrics, LossByTimestep, SampleGrid
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.cli.fit import CLI
from diffusion_lightning.extractors import inception
from diffusion_lightning.networks import UNet
from diffusion_lightning.networks.unet import Attention
from diffusion_lightning.optim import LinearWarmup
from diffusion_lightning.samplers import DDIM, Heun
from diffusion_lightning.schedules import Cosine, Linear, LogSigma, Schedule

from ..conftest import ROOT
from ..support.callbacks import metric
from ..support.commands import fails
from ..support.pictures import with_broken
from ..support.rows import rows
from ..support.torchvision_sets import (
    idx,
    md5,
)

Built = list[tuple[Trainer, Any, Any]]

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
OVERLAY = ROOT / "configs/overlays/inception.yaml"


class Recipe(NamedTuple):
    """What a config is pinned to; the defaults are what most have in common."""

    data: str
    parameters: int
    schedule: tuple[str, int]
    optimizer: tuple[str, float]  # its class and learning rate
    warmup: int | None
    steps: int
    dropout: float
    flip: bool
    batch: int = 128
    clip: float | None = 1.0
    decay: float = 0.9999
    release: str = "DDPM"
    parameterization: str = "Epsilon()"
    weighting: str = "Simple()"
    timesteps: str = "Uniform()"
    vlb_weight: float = 0.0
    bound: tuple[float | None, float | None] = (None, None)  # m of the measured reverse process, and of its decoder
    rescaled: bool = False  # the times that the network is fed
    heads: int = 1
    ema_warmup: bool = False
    monitor: str = "val/fid"
    watched: tuple[int, str, int] | None = (5000, "DDIM", 50)  # samples, sampler and steps in training
    tested: tuple[int, str, int, float | None] | None = None  # samples, sampler, steps and its variance in `test`
    x_0: float | None = 1.0  # the bound of x_0 in a sampler
    slope: str | None = None  # in which `Heun` averages
    metrics: tuple[str, ...] = ("FrechetDistance", "KID", "InceptionScore", "PrecisionRecall")
    extractor: str | None = "inception"


IDDPM: dict[str, Any] = {"dropout": 0.3, "flip": False, "clip": None, "release": "IDDPM", "rescaled": True,
                         "steps": 500_000, "warmup": None, "heads": 4, "watched": (5000, "Ancestral", 100),
                         "tested": (50_000, "Ancestral", 4000, None)}  # fmt: skip
PLAIN: dict[str, Any] = {"monitor": "val/loss", "watched": None, "metrics": (), "extractor": None}
SMALL: dict[str, Any] = {"optimizer": ("AdamW", 5e-4), "warmup": 200, "steps": 20_000, "dropout": 0.1, "flip": False,
                         "decay": 0.999, "ema_warmup": True, **PLAIN}  # fmt: skip
DIGITS: dict[str, Any] = {"optimizer": ("AdamW", 2e-3), "warmup": None, "steps": 2000, "dropout": 0.0, "flip": False,
                          "decay": 0.995, "watched": (297, "Heun", 18), "tested": (1485, "Heun", 18, None),
                          "extractor": "digits", "monitor": "val/fd_digits",
                          "metrics": ("FrechetDistance", "KID", "PrecisionRecall", "ClassCoverage",
                                      "NearestNeighbours")}  # fmt: skip
PINNED = {
    "digits": Recipe("Digits", 1_062_497, ("Cosine", 1000), ("AdamW", 2e-3), None, 1500, 0.0, False, decay=0.995,
                     watched=(297, "Ancestral", 300), tested=(1485, "Ancestral", 1000, None), extractor="digits",
                     metrics=("FrechetDistance", "KID", "PrecisionRecall", "ClassCoverage", "NearestNeighbours"),
                     monitor="val/fd_digits"),
    "cifar10_ddpm": Recipe("CIFAR10", 35_746_307, ("Linear", 1000), ("Adam", 2e-4), 5000, 800_000, 0.1, True,
                           bound=(1.0, 0.0), tested=(50_000, "Ancestral", 1000, 1.0)),
    "cifar10_v_min_snr": Recipe("CIFAR10", 35_746_307, ("Cosine", 1000), ("Adam", 2e-4), 5000, 800_000, 0.1, True,
                                parameterization="Velocity()", weighting="MinSNR(gamma=5.0)", bound=(1.0, 0.0),
                                tested=(50_000, "Ancestral", 1000, 1.0)),
    "cifar10_edm": Recipe("CIFAR10", 35_746_307, ("LogSigma", 1000), ("Adam", 1e-3), 19_531, 390_625, 0.13, True, 512,
                          clip=None, decay=0.99929, ema_warmup=True, parameterization="EDM(sigma_data=0.5)",
                          timesteps="LogNormal(mean=-1.2, std=1.2)", watched=(5000, "Heun", 18),
                          tested=(50_000, "Heun", 18, None), x_0=None, slope="sigma"),
    "cifar10_flow": Recipe("CIFAR10", 35_746_307, ("RectifiedFlow", 1000), ("Adam", 2e-4), 5000, 400_000, 0.1, True,
                           parameterization="Flow()", rescaled=True, watched=(5000, "Heun", 25),
                           tested=(50_000, "DDIM", 100, None), x_0=None, slope="tau"),
    "digits_edm": Recipe("Digits", 1_062_497, ("LogSigma", 1000), parameterization="EDM(sigma_data=0.75)",
                         timesteps="LogNormal(mean=-1.2, std=1.2)", slope="sigma", **DIGITS),
    "digits_flow": Recipe("Digits", 1_062_497, ("RectifiedFlow", 1000), parameterization="Flow()", rescaled=True,
                          timesteps="LogNormal(mean=0.0, std=1.0)", slope="tau", **DIGITS),
    "celeba64_ddpm": Recipe("CelebA", 78_700_803, ("Linear", 1000), ("Adam", 2e-4), 5000, 500_000, 0.1, True,
                            bound=(1.0, 0.0), tested=(50_000, "Ancestral", 1000, 1.0)),
    "cifar10_iddpm": Recipe("CIFAR10", 52_546_438, ("Cosine", 4000), ("AdamW", 1e-4), vlb_weight=0.001, **IDDPM),
    "cifar10_iddpm_vlb": Recipe("CIFAR10", 52_546_438, ("Cosine", 4000), ("AdamW", 1e-4), weighting="ZeroWeight()",
                                timesteps="LossAware(history=10, uniform=0.001)", vlb_weight=1.0, **IDDPM),
    "imagenet64_iddpm": Recipe("ImageFolder", 121_063_942, ("Cosine", 4000), ("AdamW", 1e-4), vlb_weight=0.001,
                               **{**IDDPM, "steps": 1_500_000, "dropout": 0.0}),
    "mnist": Recipe("MNIST", 3_939_393, ("Cosine", 1000),
                    **{**SMALL, "watched": (1000, "DDIM", 50), "tested": (10_000, "Ancestral", 1000, None),
                       "extractor": "mnist", "monitor": "val/fd_mnist",
                       "metrics": ("FrechetDistance", "PrecisionRecall", "ClassCoverage", "NearestNeighbours")}),
    "fashion_mnist": Recipe("FashionMNIST", 3_939_393, ("Cosine", 1000), **SMALL),
    "folder": Recipe("ImageFolder", 17_217_923, ("Cosine", 1000), ("AdamW", 2e-4), 1000, 100_000, 0.1, True, 32,
                     ema_warmup=True, **PLAIN),
    "folder_classes": Recipe("ImageFolder", 17_218_691, ("Cosine", 1000), ("AdamW", 2e-4), 1000, 100_000, 0.1, True, 32,
                             ema_warmup=True, **PLAIN),
    "folder_captions": Recipe("ImageFolder", 23_588_227, ("Cosine", 1000), ("AdamW", 2e-4), 1000, 100_000, 0.1, False,
                              32, ema_warmup=True, **PLAIN),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Several wait for each other longer than they work on nets as small as these."""
    torch.set_num_threads(1)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """What `fit` would train: the trainer, the model and the data.

    It is not run, a network gives zeros, and Inception has no weights.
    """
    found: Built = []

    def fit(self: Trainer, model: Any, train: Any, val: Any, data: Any, *_: Any) -> None:
        model.trainer = self
        found.append((self, model, data))

    def zeros(self: UNet, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return x_t.new_zeros(len(x_t), self.conv_out.out_channels, *x_t.shape[2:])

    monkeypatch.setattr(Trainer, "_fit_impl", fit)
    monkeypatch.setattr(CLI, "_check_trained", lambda cli: None)  # no step is
    monkeypatch.setattr(UNet, "forward", zeros)
    monkeypatch.setattr(inception, "_found_or_downloaded", lambda: Path("published"))
    monkeypatch.setattr(inception, "is_published", lambda path: True)
    monkeypatch.setattr(inception, "_load", lambda network, path: None)
    monkeypatch.setattr(inception, "_network", nn.Identity)
    return found


def the(kind: type, trainer: Trainer) -> Any:
    """The one callback of a kind, or None."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    assert len(found) <= 1
    return found[0] if found else None


def test_every_config_is_pinned() -> None:
    others = {
        "cifar10_ect",
        "cifar10_progressive",
        "cifar10_r3gan",
        "digits_classifier",
        "digits_consistency",
        "digits_gan",
        "digits_progressive",
        "digits_v",
        "folder_ldm",
        "folder_ldm_stage",
        "imagenet256_dit_xl2",
        "latent_scenes",
        "latent_scenes_stage",
        "scenes",
        "scenes_dit",
        "stable_diffusion_lora",
    }  # of other kinds
    assert {*PINNED, *others} == CONFIGS.keys()


# 36 to 120 million weights take seconds to make: of the others of CIFAR-10's there is one of each network here.
LARGE = ["celeba64_ddpm", "imagenet64_iddpm", "cifar10_iddpm_vlb", "cifar10_v_min_snr", "cifar10_flow"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else []) for n in PINNED])
def test_recipe(name: str, built: Built, tmp_path: Path) -> None:
    main(["fit", "--config", str(CONFIGS[name]), "--trainer.default_root_dir", str(tmp_path)])
    ((trainer, model, data),) = built
    network, schedule, ema = model.denoiser.network, model.schedule, the(EMA, trainer)
    made = model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    warmup = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    (group,) = optimizer.param_groups
    evaluation = the(GenerativeMetrics, trainer)

    def protocol(stage: str) -> tuple[Any, ...] | None:
        if evaluation is None:
            return None
        n, sampler = evaluation.protocol[stage]
        sampler = sampler or model.own_sampler()
        steps = len(sampler.times(schedule)) - 1
        variance = getattr(sampler, "variance", None)
        return n, type(sampler).__name__, steps, *([variance] if stage == "test" else [])

    metrics = evaluation.metrics if evaluation else []
    samplers = [x or model.own_sampler() for _, x in evaluation.protocol.values()] if evaluation else []
    grid = the(SampleGrid, trainer)
    samplers += [grid.sampler] if grid else []
    assert PINNED[name] == Recipe(
        data=type(data).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        schedule=(type(schedule).__name__, schedule.T),
        optimizer=(type(optimizer).__name__, optimizer.defaults["lr"]),
        warmup=warmup.steps if isinstance(warmup, LinearWarmup) else None,
        steps=trainer.max_steps,
        dropout=common(module.p for module in network.modules() if isinstance(module, nn.Dropout)),
        flip=data.flip,
        batch=data.batch_size,
        clip=trainer.gradient_clip_val,
        decay=ema.decay,
        release=network.release,
        parameterization=called(model.denoiser.parameterization),
        weighting=called(model.loss.weighting),
        timesteps=called(model.timesteps),
        vlb_weight=model.loss.vlb_weight,
        bound=(model.vlb.variance, model.vlb.decoder),
        rescaled=model.denoiser.rescale_timesteps,
        heads=common(module.heads for module in network.modules() if isinstance(module, Attention)),
        ema_warmup=ema.warmup,
        monitor=the(Checkpoint, trainer).monitor,
        watched=protocol("val"),
        tested=protocol("test"),
        x_0=common(sampler.clip for sampler in samplers),
        slope=next((sampler.variable for sampler in samplers if isinstance(sampler, Heun)), None),
        metrics=tuple(type(metric).__name__ for metric in metrics),
        extractor=common(metric.extractor.name for metric in metrics) if metrics else None,
    )
    check_table(schedule)
    assert model.compiles == (trainer.max_steps > 100_000)  # where minutes at the start are nothing
    assert model.predicts_variance == (network.conv_out.out_channels == 2 * model.shape[0]) == ("iddpm" in name)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.0)
    assert (trainer.num_devices, trainer.accumulate_grad_batches, trainer.gradient_clip_algorithm) == (1, 1, None)
    if evaluation:  # beside all training images, and by more samples than the distance has features
        assert evaluation.split == "train"
        assert not metrics[0].allow_few
        assert min(n for n, _ in evaluation.protocol.values()) > metrics[0].num_features


def called(made: Any) -> str:
    """An object's class and numbers."""
    numbers = {key: x for key, x in vars(made).items() if type(x) in (int, float)}
    return f"{type(made).__name__}({', '.join(f'{key}={x}' for key, x in numbers.items())})"


def common(values: Iterable[Any]) -> Any:
    """The one value that all have."""
    (value,) = set(values)
    return value


def check_table(schedule: Schedule) -> None:
    """The papers' numbers: β from 1e-4 to 0.02, s = 0.008, σ from 0.002 to 80, or τ = t/T."""
    T = schedule.T
    if isinstance(schedule, Linear):
        beta = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
        torch.testing.assert_close(beta, torch.linspace(1e-4, 0.02, T, dtype=torch.float64))
    elif isinstance(schedule, Cosine):
        f = ((torch.arange(T, dtype=torch.float64) / T + 0.008) / 1.008 * torch.pi / 2).cos().square()
        torch.testing.assert_close(schedule.alpha_bar[:-1], f / f[0])
    elif isinstance(schedule, LogSigma):
        sigma = schedule.snr(torch.arange(1, T + 1)).rsqrt()
        torch.testing.assert_close(sigma, torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64))
    else:
        torch.testing.assert_close(schedule.tau(torch.arange(T + 1)), torch.arange(T + 1, dtype=torch.float64) / T)


def test_inception_is_laid_over(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the config's own callbacks; and refused in one sentence where its weights are not to be had."""
    both = [
        "fit",
        *(f"--config={path}" for path in (CONFIGS["fashion_mnist"], OVERLAY)),
        f"--trainer.default_root_dir={tmp_path}",
    ]
    main(both)
    ((trainer, _, _),) = built
    assert the(SampleGrid, trainer)
    assert the(LossByTimestep, trainer)
    evaluation = the(GenerativeMetrics, trainer)
    assert [type(metric).__name__ for metric in evaluation.metrics] == ["FrechetDistance", "KID", "PrecisionRecall"]
    assert common(metric.extractor.name for metric in evaluation.metrics) == "inception"
    assert the(Checkpoint, trainer).monitor == "val/fid"
    assert [n for n, _ in evaluation.protocol.values()] == [5000, 10_000]
    monkeypatch.undo()
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "the weights of Inception are not in" in fails(capsys, *both)


# Two steps of everything, on made files of the true formats


class Tiny(nn.Module):
    """An extractor in the place of Inception, whose weights are 95 MB."""

    num_features = 3
    name = "tiny"

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)).expand(-1, 3)


@pytest.fixture
def handwriting(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST and Fashion-MNIST, four gzipped IDX files each, to be downloaded from this machine."""
    folder, url = served
    draw = np.random.default_rng(0)
    names = []
    for part, n in (("train", 20), ("t10k", 6)):
        for what, values in (
            ("images-idx3", draw.integers(0, 256, (n, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            names.append(f"{part}-{what}-ubyte.gz")
            (folder / names[-1]).write_bytes(gzip.compress(idx(values)))
    for source in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", [url])
        monkeypatch.setattr(source, "resources", [(name, md5(folder / name)) for name in names])


@pytest.fixture
def pictures(tmp_path: Path) -> None:
    """A folder split in two, of 64×64 pixels."""
    draw = np.random.default_rng(0)
    for place, n in (("train", 8), ("val", 4)):
        (tmp_path / "root" / place).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"root/{place}/{i}.png")


@pytest.fixture
def mixed(tmp_path: Path) -> None:
    """Two nested folders of several sizes, formats and colours, one file of them cut short."""
    draw = np.random.default_rng(0)
    for i, suffix in enumerate(["png", "jpg", "webp"] * 4):
        folder = tmp_path / "root" / f"album {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (100 + 7 * i, 80, 3) if i % 3 else (70, 90 + i)
        Image.fromarray(draw.integers(0, 256, size, np.uint8)).save(folder / f"{i}.{suffix}")
    whole = (tmp_path / "root/album 1/1.jpg").read_bytes()
    (tmp_path / "root/album 1/broken.jpg").write_bytes(whole[: len(whole) // 2])


@pytest.fixture
def told(tmp_path: Path, mixed: None) -> None:
    """The same pictures, and a text beside each."""
    for i, path in enumerate(sorted((tmp_path / "root").glob("*/*.*"))):
        path.with_suffix(".txt").write_text(f"picture {i % 3} of an album", encoding="utf-8")


MADE = {"digits": None, "digits_edm": None, "digits_flow": None, "mnist": "handwriting", "fashion_mnist": "handwriting",
        "imagenet64_iddpm": "pictures", "folder": "mixed", "folder_classes": "mixed", "folder_captions": "told",
        "celeba64_ddpm": "celeba"}  # fmt: skip


def small(name: str, folder: Path) -> Path:
    """A config whose net is narrow and shallow, whose batches, grids and metrics are of few images, for two steps."""
    config = yaml.safe_load(CONFIGS[name].read_text())
    config["model"]["init_args"]["compile"] = False  # on a CPU it takes a minute
    network, data, trainer = config["model"]["init_args"]["network"], config["data"]["init_args"], config["trainer"]
    network["init_args"].update(channels=8, groups=4, blocks=1)
    data.update(batch_size=4)
    data.update({key: str(folder / "root") for key in ("root", "path") if key in data})
    if "num_workers" in data:
        data.update(num_workers=0)
    trainer.update(
        default_root_dir=str(folder / "run"),
        accelerator="cpu",
        max_steps=2,
        val_check_interval=2,
        logger=False,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    for key in ("grid", "chain", "metrics"):
        if key in config:
            config[key]["sampler"]["init_args"].update(steps=2)
            config[key].update(n=4)
    if "metrics" in config:
        extractor = {"class_path": "tests.cli.test_configs.Tiny"}
        config["metrics"].update(batch_size=2, metrics=[metric("FrechetDistance", extractor=extractor, allow_few=True)])
    if config["checkpoint"]["monitor"] != "val/loss":
        config["checkpoint"]["monitor"] = "val/fd_tiny"
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_the_classifier_of_noisy_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pinned, and two steps of it; what is read of its checkpoint again is its average."""
    words = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    config = str(CONFIGS["digits_classifier"])
    main(["fit", "--config", config, *words, "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"])
    found = rows(tmp_path / "metrics.csv")
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= found[-1].keys()
    model: Any = loading.module(tmp_path / "checkpoints/last.ckpt")
    schedule, network = model.schedule, model.network
    assert (type(schedule).__name__, schedule.T, network.classes, model.shape) == ("Cosine", 1000, 10, (1, 8, 8))
    assert sum(p.numel() for p in model.parameters()) == 378_186
    probabilities = model.log_probs(torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 1000])).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    said = capsys.readouterr().out  # it draws nothing
    assert "draw more" not in said
    assert "samples" not in said
    main(["validate", "--ckpt_path", str(tmp_path)])
    assert rows(tmp_path / "validate.csv")[-1]["val/accuracy"] == found[-1]["val/accuracy"]
    with pytest.raises(ValueError, match="holds NoisyClassifier weights, but those of a Diffusion are needed: let"):
        diffusion_lightning.load(tmp_path)


# One of the digits, of downloaded sets and of folders: the others differ by their words, which `test_recipe` reads,
# and run among the slow tests.
RUN = ["digits_flow", "cifar10_v_min_snr", "folder_classes"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in RUN else pytest.mark.slow) for n in PINNED])
def test_two_steps(name: str, request: pytest.FixtureRequest, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Of `fit`, with the downloads, the decoding, a validation and a checkpoint from which it is built again."""
    made = MADE.get(name, "cifar")
    if made:
        request.getfixturevalue(made)
    main(["fit", "--config", str(small(name, tmp_path))])
    found = rows(tmp_path / "run/metrics.csv")[-1]
    assert float(found["val/loss"]) > 0
    assert ("val/fd_tiny" in found) == (PINNED[name].watched is not None)
    assert (tmp_path / "run/samples/step=2.png").exists()
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert read(last)["global_step"] == 2
    model = diffusion_lightning.load(last)
    assert model.generate(2, DDIM(2)).shape == (2, *model.shape)
    named = [str(warning.message) for warning in recwarn if "cannot be read" in str(warning.message)]
    assert len(named) == name.startswith("folder")
    assert all("broken.jpg" in message for message in named)


@pytest.mark.slow
def test_the_folder_trains_on_3000_files_and_names_the_three_that_are_broken(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """PNG, JPEG and WebP; cut short, empty, and no picture at all."""
    folder = with_broken(tmp_path / "root")
    main(["fit", "--config", str(small("folder", tmp_path))])
    said = [str(warning.message) for warning in recwarn if "cannot be read" in str(warning.message)]
    assert said
    assert "3 of 3000 pictures cannot be read and are left out" in said[0]
    assert all(str(folder / name) in said[0] for name in ("1/0001.jpeg", "2/0009.png", "5/0005.webp"))
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2
