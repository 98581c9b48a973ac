"""The recipes of few steps on the digits: what they are made of, and some steps of each from its teacher."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import diffusion_lightning
from diffusion_lightning.cli import fit, main
from diffusion_lightning.curricula import ECT
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
    assert (curriculum.q, curriculum.k, curriculum.b) == (2.0, 8.0, 1.0)
    assert (curriculum.times.mean, curriculum.times.std) == (-1.1, 2.0)
    assert curriculum.stages * curriculum.stage_steps == config["trainer"]["max_steps"]
    assert model["optimizer"]["class_path"].endswith("RAdam")
    assert (model["huber"], model["solver"]) == (0.0, None)


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), STUDENTS.items())
def test_some_steps_of_each(student: str, teacher: str, tmp_path: Path) -> None:
    """With the recipe's own pictures and metrics, which are drawn by the student's own sampler."""
    few = [
        "--trainer.max_steps",
        "2",
        "--trainer.val_check_interval",
        "2",
        "--trainer.logger",
        "false",
        "--grid.n",
        "4",
    ]
    alone = ["--chain.n", "1", "--metrics", "null", "--checkpoint.monitor", "null"]
    taught = ["--init_from", str(tmp_path / teacher), "--metrics.n", "66", "--metrics.batch_size", "33"]
    for name, more in ((teacher, alone), (student, taught)):
        config = str(ROOT / f"configs/{name}.yaml")
        main(["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path / name), *few, *more])
        assert (tmp_path / name / "samples/step=2.png").exists()
    model = diffusion_lightning.load(tmp_path / student)
    assert model.drawn_by()[1]["steps"] == {"digits_progressive": 64, "digits_consistency": 1}[student]
    assert model.generate(3).shape == (3, 1, 8, 8)
