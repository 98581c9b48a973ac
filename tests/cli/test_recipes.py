"""The configs that come with the package, by their names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_lightning.cli import fit, main, recipes

from ..conftest import BARE, ROOT
from ..support.commands import fails

NAMES = {path.stem: path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "sweeps"}


def test_all_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert listed.keys() == NAMES.keys()
    for name, line in listed.items():
        assert len(line) <= 140, line
        assert NAMES[name].read_text(encoding="utf-8").startswith(f"# {line.partition(name)[2].strip()}")


@pytest.mark.parametrize("name", NAMES)
def test_one_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", name])
    assert capsys.readouterr().out == NAMES[name].read_text(encoding="utf-8")


def test_the_first_one_is_short() -> None:
    assert len(NAMES["digits"].read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--config", "digits"], ["--config", str(NAMES["digits"])]),
        (["-c", "ddp"], ["-c", str(NAMES["ddp"])]),
        (["--config=mnist"], [f"--config={NAMES['mnist']}"]),
        (["--config", "digits.yaml"], ["--config", "digits.yaml"]),
        (["--config", "./digits"], ["--config", "./digits"]),
        (["--config", "{model: null}"], ["--config", "{model: null}"]),
        (["--data", "digits"], ["--data", "digits"]),
        (["--ckpt_path=digits"], ["--ckpt_path=digits"]),
    ],
)
def test_a_name_after_config_is_a_recipe_and_a_path_stays(words: list[str], found: list[str]) -> None:
    assert recipes.resolved(words) == found


def test_a_file_of_ones_own_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("trainer: {max_steps: 1}")
    assert recipes.resolved(["--config", "digits"]) == ["--config", "digits"]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_an_unknown_name_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no file and no recipe digit (did you mean digits?)" in fails(capsys, command, "--config", "digit")
    assert "no file and no recipe mist" in fails(capsys, "recipes", "mist")


def test_a_recipe_trains_by_its_name(tmp_path: Path) -> None:
    quiet = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null"]
    main(["fit", "--config", "digits", "--trainer.default_root_dir", str(tmp_path), *BARE, *quiet,
          "--trainer.max_steps", "2"])  # fmt: skip
    made: dict[str, Any] = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert made["model"]["class_path"] == "diffusion_lightning.modules.Diffusion"
    assert made["trainer"]["max_steps"] == 2


@pytest.mark.parametrize("overlay", recipes.overlays())
def test_an_overlay_goes_over_a_recipe(overlay: str) -> None:
    text = fit.described(recipes.resolved(["--config", "digits", "--config", overlay]))
    assert yaml.safe_load(text)["model"]["class_path"] == "diffusion_lightning.modules.Diffusion"
