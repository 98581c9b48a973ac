"""What a configuration may leave out."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from diffusion_lightning.callbacks import LossByTimestep, SampleGrid, Throughput
from diffusion_lightning.cli import fit, main
from diffusion_lightning.cli.defaults import WATCHES

from ..conftest import CONFIG, put, small_config
from ..support.commands import fails

OWN = "tests.cli.test_defaults"


class Silent(nn.Module):
    """A network of any images."""


class Unknown(LightningDataModule):
    """Data whose images nobody knows before they are there."""


def described(folder: Path, *words: str, **changes: Any) -> Any:
    """The whole configuration that digits.yaml with these changes stands for."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for key, value in changes.items():
        put(config, key, value)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return yaml.safe_load(fit.described(["--config", str(folder / "config.yaml"), *words]))


@pytest.mark.parametrize("steps", [1500, 3000])
def test_the_rate_comes_down_at_the_end_of_the_run(tmp_path: Path, steps: int) -> None:
    found = described(tmp_path, "--trainer.max_steps", str(steps))
    assert found["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] == steps


def test_what_is_stated_stays(tmp_path: Path) -> None:
    rate = "model.init_args.lr_scheduler.init_args.total_steps"
    found = described(tmp_path, **{rate: 2000, "trainer.logger": {"init_args": {"name": "mine"}}})
    assert found["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] == 2000
    assert found["trainer"]["logger"]["init_args"]["name"] == "mine"


def test_a_run_without_an_end_has_no_such_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(tmp_path),
                 "--trainer.max_steps", "-1", "--trainer.max_epochs", "1", "--trainer.logger", "false")  # fmt: skip
    assert "total_steps is None, but OneCycle comes down at the end of the run" in said


@pytest.mark.parametrize(("data", "shape"), [("Digits", [1, 8, 8]), ("CIFAR10", [3, 32, 32]), (f"{OWN}.Unknown", None)])
def test_a_network_that_states_no_size_is_for_the_datas_images(tmp_path: Path, data: str, shape: Any) -> None:
    words = ["--model.init_args.network", f"{OWN}.Silent", "--data", data]
    assert described(tmp_path, *words)["model"]["init_args"]["shape"] == shape


def test_adapters_of_a_saved_configuration_are_changed_and_taken_out_in_both_places(tmp_path: Path) -> None:
    """The configuration that a run saves has them as the key `lora` and as the model's; the key decides if given."""
    key = "model.init_args.lora"
    assert described(tmp_path)["model"]["init_args"]["lora"] is None
    saved = described(tmp_path, "--lora.rank", "2")
    assert saved["lora"]["init_args"]["rank"] == 2
    assert saved["model"]["init_args"]["lora"] == saved["lora"]
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")

    def over(*words: str) -> Any:
        return yaml.safe_load(fit.described(["--config", str(tmp_path / "saved.yaml"), *words]))

    assert over() == saved
    assert over("--lora.rank", "3")["model"]["init_args"]["lora"]["init_args"]["rank"] == 3
    without = over("--lora", "null")
    assert (without["lora"], without["model"]["init_args"]["lora"]) == (None, None)
    own = described(tmp_path, **{key: {"class_path": "LoRA", "init_args": {"rank": 5}}})
    assert own["model"]["init_args"]["lora"]["init_args"]["rank"] == 5


def test_the_run_is_logged_offline_under_its_folders_name(tmp_path: Path) -> None:
    logger = described(tmp_path, "--trainer.default_root_dir", "runs/mine")["trainer"]["logger"]
    assert logger["class_path"] == "diffusion_lightning.loggers.WeightsAndBiases"
    assert (logger["init_args"]["name"], logger["init_args"]["offline"]) == ("mine", True)


@pytest.mark.parametrize("key", ["loss_by_timestep", pytest.param("throughput", marks=pytest.mark.slow)])
def test_what_costs_nothing_is_there_once(tmp_path: Path, key: str) -> None:
    kind = WATCHES[key]
    path = f"diffusion_lightning.callbacks.{kind.__name__}"
    assert described(tmp_path)[key]["class_path"] == path
    assert described(tmp_path, f"--{key}", "null")[key] is None
    listed = described(tmp_path, **{"trainer.callbacks": [{"class_path": kind.__name__}]})
    assert listed[key] is None
    assert [callback["class_path"] for callback in listed["trainer"]["callbacks"]] == [path]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that would have trained."""
    found: list[Trainer] = []
    monkeypatch.setattr(Trainer, "_fit_impl", lambda self, *_: found.append(self))
    monkeypatch.setattr(fit.CLI, "_check_trained", lambda cli: None)
    return found


def test_callbacks_of_ones_own_lose_no_watch(tmp_path: Path, started: list[Trainer]) -> None:
    own = ["--trainer.callbacks", "lightning.pytorch.callbacks.ModelSummary"]
    main(["fit", "--config", str(small_config(tmp_path)), *own, "--trainer.logger", "false"])
    names = {type(callback).__name__ for callback in started[0].callbacks}  # type: ignore[attr-defined]
    assert names >= {kind.__name__ for key, kind in WATCHES.items() if key != "reconstructions"} | {
        "ModelSummary",
        "EMA",
        "Checkpoint",
    }


def test_a_module_that_makes_no_images_is_not_watched_unasked(tmp_path: Path, started: list[Trainer]) -> None:
    main(["fit", "--model", "lightning.pytorch.demos.boring_classes.BoringModel", "--data",
          "lightning.pytorch.demos.boring_classes.BoringDataModule", "--trainer.logger", "false",
          "--trainer.default_root_dir", str(tmp_path)])  # fmt: skip
    kinds = (SampleGrid, LossByTimestep, Throughput)
    assert not [x for x in started[0].callbacks if isinstance(x, kinds)]  # type: ignore[attr-defined]


class InceptionV3(nn.Module):
    """Of the same name as an extractor."""


@pytest.mark.parametrize("spelling", ["an option", "a class_path", "a name alone"])
def test_a_name_alone_is_this_packages_class(tmp_path: Path, spelling: str) -> None:
    """Though the class above, which is a network of this name too, has been imported."""
    named: Any = {"class_path": "InceptionV3"} if spelling == "a class_path" else "InceptionV3"
    metrics = [{"class_path": "FrechetDistance", "init_args": {"extractor": named}}]
    changes = {} if spelling == "an option" else {"metrics.metrics": metrics}
    words = ["--model.init_args.network", "UNet", "--model.init_args.schedule", "Linear"]
    found = described(tmp_path, *words, **changes)
    assert found["model"]["init_args"]["schedule"]["class_path"] == "diffusion_lightning.schedules.Linear"
    if changes:
        extractor = found["metrics"]["init_args"]["metrics"][0]["init_args"]["extractor"]
        assert extractor["class_path"] == "diffusion_lightning.extractors.InceptionV3"


@pytest.mark.parametrize(
    ("key", "fix"),
    [("ema", "set ema.decay to 0"), ("checkpoint", "set checkpoint.keep to 0"), ("trainer", "leave the key out")],
)
def test_what_every_run_has_is_not_null(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, fix: str) -> None:
    (tmp_path / "none.yaml").write_text(f"{key}: null\n", encoding="utf-8")
    for words in (["--config", str(tmp_path / "none.yaml")], [f"--{key}", "null"]):
        said = fails(capsys, "fit", "--config", str(CONFIG), *words)
        assert f"{key} is null, but every run has one: " in said
        assert fix in said
