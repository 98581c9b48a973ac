"""The recipes of few steps: what they are made of, and on the digits some steps of each from its teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import diffusion_lightning
from diffusion_lightning.cli import fit, main
from diffusion_lightning.curricula import ECT
from diffusion_lightning.modules import GAN
from diffusion_lightning.networks.residual_gan import Residual
from diffusion_lightning.records import read
from diffusion_lightning.schedules import Schedule

from ..conftest import ROOT

STUDENTS = {"digits_progressive": "digits_v", "digits_consistency": "digits_edm"}


def described(name: str) -> Any:
    return yaml.safe_load(fit.described(["--config", str(ROOT / f"configs/{name}.yaml")]))


@pytest.mark.parametrize(("student", "teacher"), STUDENTS.items())
def test_a_student_is_what_its_teacher_is(student: str, teacher: str) -> None:
    """The same network and prediction."""
    own, theirs = (described(name)["model"]["init_args"] for name in (student, teacher))
    for key in ("network", "parameterization", "conditioner", "rescale_timesteps"):
        assert own[key] == theirs[key]


def test_the_progressive_students_halve_from_64_steps_to_one() -> None:
    """Salimans and Ho: no averages, Adam, the rate down to nearly 0 in each stage, gradients clipped at 1."""
    config = described("digits_progressive")
    model, trainer = config["model"]["init_args"], config["trainer"]
    assert (model["first"], model["last"]) == (64, 1)
    assert model["schedule"] == described("digits_v")["model"]["init_args"]["schedule"]
    assert read(model["schedule"], Schedule, "schedule").make().T == 1024
    assert trainer["max_steps"] == 7 * model["stage_steps"]
    assert model["lr_scheduler"]["init_args"]["steps"] == model["stage_steps"] == trainer["val_check_interval"]
    assert config["checkpoint"]["every_n_train_steps"] == model["stage_steps"]
    assert config["checkpoint"]["keep"] is None
    assert model["optimizer"]["class_path"].endswith("Adam")
    assert (config["ema"]["decay"], trainer["gradient_clip_val"]) == (0.0, 1.0)


def test_consistency_is_ects_on_a_table_that_is_fine_enough() -> None:
    config = described("digits_consistency")
    model = config["model"]["init_args"]
    curriculum: Any = read(model["curriculum"], ECT, "curriculum").make()
    schedule = read(model["schedule"], Schedule, "schedule").make()
    curriculum.prepare(schedule)
    assert schedule.T >= 16_000
    assert (curriculum.q, curriculum.k, curriculum.b) == (16.0, 8.0, 1.0)
    assert (curriculum.times.mean, curriculum.times.std) == (-0.4, 1.6)
    assert curriculum.stages * curriculum.stage_steps == config["trainer"]["max_steps"]
    assert model["optimizer"]["class_path"].endswith("RAdam")
    assert (model["huber"], model["solver"]) == (0.1, None)


def test_the_gans_rate_and_penalties_fall_until_its_last_step() -> None:
    """And it is as large as the pages say."""
    config = described("digits_gan")
    model, trainer = config["model"]["init_args"], config["trainer"]
    assert trainer["max_steps"] == model["gamma_steps"] == model["lr_scheduler"]["init_args"]["steps"]
    assert model["gamma"] == [5.0, 2.0]
    made: Any = read(config["model"], GAN, "model").make()
    assert sum(p.numel() for p in made.parameters()) == 273_997


# The recipes of CIFAR-10: what their papers set


def test_cifar10_progressive_is_salimans_and_hos() -> None:
    """8192 steps of the teacher halved 13 times, 50,000 steps each; the loss, no average, no dropout."""
    config = described("cifar10_progressive")
    model, trainer = config["model"]["init_args"], config["trainer"]
    teacher = described("cifar10_v_min_snr")["model"]["init_args"]
    assert (2 * model["first"], model["last"], model["stage_steps"]) == (8192, 1, 50_000)
    assert trainer["max_steps"] == 13 * 50_000
    assert model["optimizer"]["init_args"]["lr"] == 5e-5
    assert model["lr_scheduler"]["init_args"] == {"steps": 50_000}
    assert model["weighting"]["class_path"].endswith("TruncatedSNR")
    assert (config["ema"]["decay"], trainer["gradient_clip_val"]) == (0.0, 1.0)
    assert config["data"]["init_args"]["batch_size"] == 128
    assert {**model["network"]["init_args"], "dropout": 0.1} == teacher["network"]["init_args"]
    assert model["network"]["init_args"]["dropout"] == 0
    assert model["parameterization"] == teacher["parameterization"]
    T = model["schedule"]["init_args"].pop("T"), teacher["schedule"]["init_args"].pop("T")
    assert T == (8192, 1000)  # the teacher's command says 8192 too
    assert model["schedule"] == teacher["schedule"]
    head = (ROOT / "configs/cifar10_progressive.yaml").read_text(encoding="utf-8")
    assert "--config cifar10_v_min_snr --model.init_args.schedule.init_args.T 8192" in head


def test_cifar10_ect_is_gengs() -> None:
    config = described("cifar10_ect")
    model = config["model"]["init_args"]
    curriculum: Any = read(model["curriculum"], ECT, "curriculum").make()
    curriculum.prepare(read(model["schedule"], Schedule, "schedule").make())
    assert (curriculum.q, curriculum.k, curriculum.b) == (2.0, 8.0, 1.0)
    assert (curriculum.times.mean, curriculum.times.std) == (-1.1, 2.0)
    assert (curriculum.stages, curriculum.stage_steps, config["trainer"]["max_steps"]) == (8, 25_000, 200_000)
    assert model["optimizer"]["class_path"].endswith("RAdam")
    assert model["optimizer"]["init_args"]["lr"] == 1e-4
    assert (model["huber"], model["solver"], config["ema"]["decay"]) == (0.0, None, 0.9999)
    assert (config["data"]["init_args"]["batch_size"], config["data"]["init_args"]["flip"]) == (128, False)
    sampler = config["grid"]["init_args"]["sampler"]["init_args"]
    assert (sampler["steps"], sampler["between"], sampler["clip"]) == (2, [0.821], None)
    teacher = described("cifar10_edm")["model"]["init_args"]
    assert {**model["network"]["init_args"], "dropout": 0.13} == teacher["network"]["init_args"]
    assert (model["network"]["init_args"]["dropout"], model["parameterization"]) == (0.2, teacher["parameterization"])


def test_cifar10_r3gan_is_huangs() -> None:
    config = described("cifar10_r3gan")
    model, batch = config["model"]["init_args"], config["data"]["init_args"]["batch_size"]
    assert batch == 512
    decayed = 20_000_000 // batch  # optimizer steps
    assert (model["gamma"], model["gamma_steps"]) == ([0.05, 0.005], decayed)
    assert model["optimizer"]["init_args"]["lr"] == 2e-4
    assert model["optimizer"]["init_args"]["betas"] == [0.0, 0.99]
    assert model["lr_scheduler"]["init_args"] == {"steps": decayed, "end": 5e-5 / 2e-4}
    assert 0.5 ** (batch / 5e6) == pytest.approx(config["ema"]["decay"], abs=1e-6)
    with torch.device("meta"):
        made: Any = read(config["model"], GAN, "model").make()
    G, D = (sum(p.numel() for p in net.parameters()) for net in (made.network, made.discriminator.network))
    head = (ROOT / "configs/cifar10_r3gan.yaml").read_text(encoding="utf-8")
    assert f"# {G:,} parameters" in head
    assert f"# {D:,} parameters" in head
    for net in (made.network, made.discriminator.network):
        own = [module for module in net.modules() if isinstance(module, Residual)]
        assert len(own) == 4 * 2
        assert {(block.conv_in.in_channels, block.conv.in_channels, block.conv.groups) for block in own} == {
            (768, 1536, 96)
        }
    assert made.network.latent == 64


FEW = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.logger", "false", "--grid.n", "4"]
METRICS = ["--metrics.n", "66", "--metrics.batch_size", "33"]


@pytest.mark.slow
def test_some_steps_of_the_gan(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path)]
    main(["fit", "--config", str(ROOT / "configs/digits_gan.yaml"), *place, *FEW, *METRICS])
    assert (tmp_path / "samples/step=2.png").exists()
    assert (tmp_path / "checkpoints/best.ckpt").exists()
    assert diffusion_lightning.load(tmp_path).generate(3).shape == (3, 1, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), STUDENTS.items())
def test_some_steps_of_each(student: str, teacher: str, tmp_path: Path) -> None:
    """With the recipe's own pictures and metrics, which are drawn by the student's own sampler."""
    alone = ["--chain.n", "1", "--metrics", "null", "--checkpoint.monitor", "null"]
    taught = ["--init_from", str(tmp_path / teacher), *METRICS]
    for name, more in ((teacher, alone), (student, taught)):
        config = str(ROOT / f"configs/{name}.yaml")
        main(["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path / name), *FEW, *more])
        assert (tmp_path / name / "samples/step=2.png").exists()
    model = diffusion_lightning.load(tmp_path / student)
    assert model.drawn_by()[1]["steps"] == {"digits_progressive": 64, "digits_consistency": 1}[student]
    assert model.generate(3).shape == (3, 1, 8, 8)


NARROW = {"channels": 8, "groups": 4, "blocks": 1}
NARROW_PAIR = {"channels": 16, "most": 16, "blocks": 1, "condition_width": 8}


def narrow(name: str, folder: Path, changes: dict[str, Any]) -> list[str]:
    """Two steps of a recipe of CIFAR-10, narrow, on the few images that are served."""
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    model = config["model"]["init_args"]
    model.pop("compile", None)
    for part in ("network", "discriminator"):
        if part in model:
            model[part]["init_args"].update(NARROW_PAIR if "discriminator" in model else NARROW)
    model.update(changes)
    config["data"]["init_args"].update(batch_size=4, root=str(folder / "root"))
    config["checkpoint"].update(monitor=None)
    config["grid"].update(n=4)
    config["trainer"].update(accelerator="cpu", max_steps=2, val_check_interval=2, logger=False, limit_val_batches=1,
                             num_sanity_val_steps=0, default_root_dir=str(folder / name))  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, "metrics": None, "chain": None}), encoding="utf-8")
    return ["fit", "--config", str(path)]


@pytest.mark.slow
@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize(
    ("name", "teacher", "of_teacher", "changes"),
    [
        ("cifar10_ect", "cifar10_edm", {}, {}),
        (
            "cifar10_progressive",
            "cifar10_v_min_snr",
            {"schedule": {"class_path": "Cosine", "init_args": {"T": 8192, "s": 0.008}}},
            {"first": 4, "stage_steps": 2},
        ),
        ("cifar10_r3gan", None, {}, {}),
    ],
)
def test_two_steps_of_cifar10(
    name: str, teacher: str | None, of_teacher: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    start: list[str] = []
    if teacher is not None:
        main([*narrow(teacher, tmp_path, of_teacher), "--grid", "null"])
        start = ["--init_from", str(tmp_path / teacher)]
    main([*narrow(name, tmp_path, changes), *start])
    assert (tmp_path / name / "samples/step=2.png").exists()
    assert diffusion_lightning.load(tmp_path / name).generate(3).shape == (3, 3, 32, 32)
