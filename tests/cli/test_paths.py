"""Paths under the home folder: expanded once, whoever reads them, in files and in words of both spellings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_lightning.cli import fit, main
from diffusion_lightning.cli.commands import read

from ..conftest import put, small_config

QUIET = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
QUIET += ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder, and a working folder beside it in which nothing may appear."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


class Parsed(fit.CLI):
    """What the command line's own hooks are given."""

    def before_instantiate_classes(self) -> None:
        self.given = self.config[self.subcommand].as_dict()

    def instantiate_classes(self) -> None: ...

    def work(self, subcommand: str) -> None: ...


def under(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part) if isinstance(tree, list) else part]
    return tree


@pytest.mark.tried("Paths")
@pytest.mark.parametrize(
    ("spelling", "data", "data_path"),
    [("a word", "CIFAR10", "root"), ("the same word", "ImageFolder", "path"), ("the config", "CIFAR10", "root")],
    ids=["by a word", "by one word with an equals sign", "by the config"],
)
def test_every_path_of_the_configuration_lies_under_the_home_folder(
    home: Path, tmp_path: Path, spelling: str, data: str, data_path: str
) -> None:
    """The run's folder, the checkpoint, the one to start from, the data's, a logger's, and a file deep in a list."""
    keys = ["trainer.default_root_dir", "ckpt_path", "init_from", f"data.init_args.{data_path}",
            "trainer.logger.init_args.save_dir"]  # fmt: skip
    words = ["--data", data]
    config = yaml.safe_load(small_config(tmp_path).read_text())
    config["metrics"]["metrics"][0]["init_args"]["reference"] = "~/there"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    if spelling == "the config":
        more: dict[str, Any] = {"data": {"class_path": data}}
        for key in keys:
            put(more, key, "~/there")
        (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
        words = ["--config", str(tmp_path / "more.yaml")]
    for key in keys if "word" in spelling else []:
        words += [f"--{key}", "~/there"] if spelling == "a word" else [f"--{key}=~/there"]
    parsed = fit._cli(Parsed, ["fit", "--config", str(tmp_path / "small.yaml"), *words])
    keys.append("metrics.init_args.metrics.0.init_args.reference")
    assert {key: str(under(parsed.given, key)) for key in keys} == dict.fromkeys(keys, str(home / "there"))


@pytest.mark.tried("Paths")
@pytest.mark.parametrize(
    "words",
    [
        ["score", "~/a", "~/b", "--weights", "~/c", "--json=~/d", "--save", "~/e", "--pairs=~/f"],
        ["export", "~/a", "~/b"],
        ["import", "~/a", "~/b", "--config=~/c", "--data.init_args.root=~/d"],
    ],
    ids=lambda words: words[0],
)
def test_a_path_of_a_command_of_its_own_lies_under_the_home_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """At what its `main` is called with."""
    given: list[Any] = []
    monkeypatch.setattr("diffusion_lightning.cli.entry._work", lambda file, found: given.append(found))
    main(words)
    texts = str(vars(given[0]))
    assert "~" not in texts
    assert texts.count(str(home)) == sum("~/" in word for word in words)
    assert "~" not in str(vars(read([word.replace("~", str(home)) for word in words])))


@pytest.mark.tried("Paths")
def test_a_run_at_home_is_whole_and_a_second_one_is_refused(home: Path, tmp_path: Path) -> None:
    """Its metrics, checkpoints and configuration in one folder; it is drawn from by the same path."""
    (home / "small.yaml").write_text(small_config(tmp_path, **{"trainer.default_root_dir": "~/run"}).read_text())
    main(["fit", "--config=~/small.yaml", *QUIET])
    assert (home / "run/checkpoints/last.ckpt").exists()
    with pytest.raises(SystemExit):
        main(["fit", "--config", "~/small.yaml", *QUIET])
    assert (home / "run/metrics.csv").exists()
    assert yaml.safe_load((home / "run/config.yaml").read_text())["trainer"]["default_root_dir"] == str(home / "run")
    main(["predict", "--ckpt_path", "~/run/checkpoints/last.ckpt", "--n", "1", "--out=~/drawn", "--sampler", "DDIM",
          "--sampler.steps", "2"])  # fmt: skip
    assert [p.name for p in (home / "drawn").iterdir()] == ["000000.png"]
