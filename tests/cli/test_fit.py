"""The command, in-process, on the digits config with everything made small."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

import diffusion_lightning
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.metrics.evaluation import digest
from diffusion_lightning.samplers import DDIM

from ..conftest import small_config
from ..support.commands import fails
from ..support.hostile import Hostile
from ..support.rows import rows
from ..support.wandb_runs import config as wandb_config
from ..support.wandb_runs import history


class Foreign(torch.nn.Module):
    """A network of one's own, for images of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        return self.conv(x_t)


def test_a_run_leaves_what_the_readme_promises(run: Path) -> None:
    assert {p.name for p in run.iterdir()} >= {"checkpoints", "config.yaml", "metrics.csv", "samples", "wandb"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt", "step=6.ckpt"}
    assert {p.name for p in (run / "samples").iterdir()} == {"step=3.png", "step=6.png"}
    assert max(Image.open(run / "samples/step=6.png").size) > 100
    found = rows(run / "metrics.csv")
    # The k-th step's training metrics lie between k - 1 and k, an evaluation after k steps at k.
    assert [int(row["step"]) for row in found] == [1, 3, 5, 6]
    for key, steps in {
        "train/loss": [1, 3, 5], "train/lr": [1, 3, 5], "train/grad_norm": [1, 3, 5], "ema/decay": [1, 3, 5],
        "val/loss": [3, 6], "val/fd_digits": [3, 6],
    }.items():  # fmt: skip
        logged = [(int(row["step"]), float(row[key])) for row in found if row[key]]
        assert [step for step, _ in logged] == steps, key
        assert min(value for _, value in logged) > 0
    assert "step" not in list(found[0])[1:]


def test_a_run_ends_by_saying_where_everything_lies(run: Path) -> None:
    said = (run.parent / "stdout").read_text()
    for what in (
        "samples/step=6.png",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "diffusion-lightning predict --ckpt_path",
    ):
        assert what in said
    bar = (run.parent / "stderr").read_text()
    for what in ("6/6", "loss", "images/s", "<"):
        assert what in bar
    assert "Traceback" not in bar
    assert "Warning" not in bar


def test_the_command_it_names_draws_more(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = next(line for line in (run.parent / "stdout").read_text().splitlines() if line.startswith("draw more"))
    words = said.split("diffusion-lightning ", 1)[1].split()
    main(words)
    out = Path(words[words.index("--out") + 1])
    assert len(list(out.glob("*.png"))) == 64
    assert "wrote 64 samples" in capsys.readouterr().out


EVERYTHING_LOGGED = {
    "samples._type", "reverse_chain._type", "closest_pairs._type", "train/loss", "train/lr", "train/grad_norm",
    "train_by_t/01-01", "val_by_t/11-12", "ema/decay", "throughput/images_per_sec", "throughput/mfu",
    "throughput/memory_gib", "val/loss", "val/fd_digits", "val/kid_digits_mean", "val/precision_digits",
    "val/recall_digits", "trainer/global_step",
}  # fmt: skip


def test_weights_and_biases_holds_every_figure_the_pictures_the_config_and_the_origin(tmp_path: Path) -> None:
    """Read back from the offline runs' own files: of `fit`, and the table of samplers of `test`."""
    config = small_config(tmp_path, **{"checkpoint.every_n_train_steps": 100})
    main(["fit", "--config", str(config)])
    found = history(tmp_path / "run")
    assert {key for row in found for key in row} >= EVERYTHING_LOGGED
    steps = [row["_step"] for row in found]
    assert steps == sorted(set(steps)) == [row["trainer/global_step"] for row in found]
    told = wandb_config(tmp_path / "run")
    assert told["model"]["init_args"]["schedule"]["class_path"].endswith("Cosine")
    assert told["data_fingerprint"] == digest(Digits().reference("train"))
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", told["git_commit"])

    root = tmp_path / "tested"
    main(["test", "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"), "--trainer.default_root_dir", str(root),
          "--trainer.logger", "WeightsAndBiases", "--trainer.logger.offline", "true"])  # fmt: skip
    (folder,) = (root / "wandb").glob("offline-run-*")
    (row,) = history(root)
    assert row["_step"] == row["trainer/global_step"] == 6
    assert row.keys() >= {"samplers._type", "test/loss", "test/fd_digits", "test/bits_per_dim", "test/bound._type"}
    (table,) = (folder / "files/media/table").glob("samplers*.json")
    assert json.loads(table.read_text())["columns"][:3] == ["sampler", "steps", "fd_digits"]
    assert [row[:2] for row in json.loads(table.read_text())["data"]] == [["Ancestral", 2], ["DDIM", 2]]


def test_load_gives_the_averaged_model_from_the_file_alone(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved.ckpt"
    elsewhere.write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    model = diffusion_lightning.load(elsewhere)
    checkpoint = read(elsewhere)
    name, average = next(iter(checkpoint["callbacks"]["EMA"]["average"].items()))
    assert torch.equal(model.state_dict()[name], average)
    assert not torch.equal(checkpoint["state_dict"][name], average)
    assert not model.training
    assert model.schedule.T == 12
    assert model.generate(2, DDIM(3)).shape == (2, 1, 8, 8)


def test_predict_writes_the_samples_by_their_numbers(run: Path, tmp_path: Path) -> None:
    ckpt = str(run / "checkpoints/last.ckpt")
    main(["predict", "--ckpt_path", ckpt, "--n", "5", "--out", str(tmp_path / "a"), "--seed", "3", "--batch_size", "4"])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    main(["predict", "--ckpt_path", ckpt, "--n", "2", "--out", str(tmp_path / "b"), "--seed", "3", "--batch_size", "4",
          "--first", "3"])  # fmt: skip
    main(["predict", "--ckpt_path", ckpt, "--n", "4", "--out", str(tmp_path / "c"), "--seed", "3",
          "--sampler", "DDIM", "--sampler.steps", "2"])  # fmt: skip
    size = Image.open(tmp_path / "a/000000.png").size
    assert size == (8, 8)
    a, b, c = ([Image.open(p).tobytes() for p in sorted((tmp_path / d).iterdir())] for d in "abc")
    assert len(set(a)) == 5
    assert a[:4] != c
    assert len(b) == 2


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_needs_the_checkpoint_alone(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "config.yaml").read_text(), (run / "metrics.csv").read_text()
    main([command, "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.logger", "false"])
    assert ((run / "config.yaml").read_text(), (run / "metrics.csv").read_text()) == before
    found = rows(run / f"{command}.csv")[-1]
    short = {"validate": "val", "test": "test"}[command]
    assert float(found[f"{short}/loss"]) > 0
    if command == "test":
        parts = [float(found[f"test/bits_per_dim_{part}"]) for part in ("prior", "kl", "decoder")]
        assert float(found["test/bits_per_dim"]) == pytest.approx(sum(parts), rel=1e-9)
        assert 0 < float(found["test/bits_per_dim_error"]) < 0.1
        curve = [row.split(",") for row in (run / "bound.csv").read_text().splitlines()]
        assert curve[0] == ["t", "bits_per_dim"]
        assert [int(t) for t, _ in curve[1:]] == list(range(1, 13))
        assert float(curve[1][1]) == pytest.approx(parts[2], rel=1e-9)
        assert sum(float(bits) for _, bits in curve[2:]) == pytest.approx(parts[1], rel=1e-9)
        assert min(Image.open(run / "bound.png").size) > 300
    if command == "validate":
        logged = rows(run / "metrics.csv")[-1]
        assert float(found["val/fd_digits"]) == pytest.approx(float(logged["val/fd_digits"]), rel=1e-4)
        assert float(found["val/loss"]) == pytest.approx(float(logged["val/loss"]), rel=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        root = tmp_path / name
        main(["fit", "--config", str(small_config(tmp_path)), "--trainer.default_root_dir", str(root),
              "--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--seed_everything", seed])  # fmt: skip
        ends.append(read(root / "checkpoints/last.ckpt"))
    a, b, c = (end["state_dict"] for end in ends)
    assert all(torch.equal(a[k], b[k]) for k in a)
    first, second, _ = (end["callbacks"]["EMA"]["average"] for end in ends)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_a_fresh_run_in_a_used_folder_is_refused_with_both_mends(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    said = fails(capsys, "fit", "--config", str(small_config(run.parent)))
    assert "--ckpt_path last" in said
    assert "--trainer.default_root_dir" in said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_the_whole_of_the_science_by_options_alone(tmp_path: Path) -> None:
    """Every schedule, output, weighting and way to draw t trains, samples, tests and loads, from the command line."""
    model = "--model.init_args."
    for number, (options, sampler) in enumerate([
        (["schedule", "Sigmoid", "parameterization", "X0", "weighting", "P2", "timesteps", "Stratified"], "DPMSolver"),
        (["schedule", "ZeroTerminalSNR", "schedule.init_args.schedule", "Cosine", "parameterization", "Velocity",
          "weighting", "MinSNR"], "Heun"),
        (["network.init_args.out_channels", "2", "weighting", "Nothing", "timesteps", "LossAware", "vlb", "VLB",
          "vlb.times", "3"], "Ancestral"),
    ]):  # fmt: skip
        root = tmp_path / str(number)
        words = [f"{model}{word}" if k % 2 == 0 else word for k, word in enumerate(options)]
        config = small_config(tmp_path)
        if "schedule" in options:
            config = small_config(tmp_path, **{"model.init_args.schedule": {"class_path": "Cosine", "init_args": {}}})
        main(["fit", "--config", str(config), "--trainer.default_root_dir", str(root), "--trainer.logger", "false",
              *words])  # fmt: skip
        last = str(root / "checkpoints/last.ckpt")
        main(["test", "--ckpt_path", last, "--trainer.logger", "false", "--trainer.callbacks", "[]",
              "--model.init_args.vlb", "VLB", "--model.init_args.vlb.times", "3"])  # fmt: skip
        assert float(rows(root / "test.csv")[-1]["test/bits_per_dim"]) > 0
        main(["predict", "--ckpt_path", last, "--n", "2", "--out", str(root / "out"), "--sampler", sampler,
              "--sampler.steps", "3", "--sampler.dynamic", "0.9"])  # fmt: skip
        assert len(list((root / "out").iterdir())) == 2


def test_a_run_speaks_of_nothing_but_itself(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No advertisement of other products, and no table of Lightning's, unless it is asked for."""
    quiet = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "2"]
    main(["fit", "--config", str(small_config(tmp_path)), *quiet])
    first = capfd.readouterr()
    said = [first.out, first.err, *((run.parent / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))]
    for word in ("FLOPs", "params", "Tip:", "litlogger", "litmodels", "wandb leet", "pip install", "https://"):
        assert word not in "".join(said)
    again = ["--trainer.default_root_dir", str(tmp_path / "again"), "--trainer.enable_model_summary", "true"]
    main(["fit", "--config", str(small_config(tmp_path)), *quiet, *again])
    assert "params" in "".join(capfd.readouterr())


def test_a_dry_run_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(small_config(tmp_path)), "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "run/checkpoints").exists()
    assert "keeps nothing" in capsys.readouterr().out


def test_last_goes_on_where_the_run_ended(tmp_path: Path) -> None:
    quiet = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0"]
    config = ["--config", str(small_config(tmp_path, **{"model.init_args.lr_scheduler.init_args.total_steps": 9}))]
    main(["fit", *config, *quiet, "--ckpt_path", "last"])  # nothing to go on from: starts
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6
    main(["fit", *config, *quiet, "--ckpt_path", "last", "--trainer.max_steps", "9"])
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 9
    assert [int(row["step"]) for row in rows(tmp_path / "run/metrics.csv")] == [1, 3, 5, 7]
    assert "ckpt_path" not in (tmp_path / "run/config.yaml").read_text()


def test_a_run_starts_from_anothers_folder_and_is_validated_by_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
    main(["fit", "--config", str(small_config(tmp_path)), *quiet, "--init_from", f"{run}/best"])
    assert f"checkpoint  {run}/checkpoints/best.ckpt" in capsys.readouterr().out
    few = ["--trainer.logger", "false", "--trainer.limit_val_batches", "1", "--trainer.callbacks", "[]"]
    main(["validate", "--ckpt_path", str(tmp_path / "run"), *few])
    assert f"checkpoint  {tmp_path}/run/checkpoints/last.ckpt" in capsys.readouterr().out
    main(["validate", "--config", str(small_config(tmp_path)), "--ckpt_path", "last", *few])
    assert f"checkpoint  {tmp_path}/run/checkpoints/last.ckpt" in capsys.readouterr().out


def test_a_resumed_run_is_the_same_run_in_weights_and_biases(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root, symlinks=True)
    first = next((root / "wandb").glob("offline-run-*")).name.rpartition("-")[2]
    assert read(root / "checkpoints/last.ckpt")["wandb_id"] == first
    config = small_config(tmp_path, **{"model.init_args.lr_scheduler": None})
    wandb.finish()  # whatever run another test of this process left open
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "8",
          "--trainer.limit_val_batches", "0"])  # fmt: skip
    wandb.finish()
    ids = [path.name.rpartition("-")[2] for path in (root / "wandb").glob("offline-run-*")]
    assert ids == [first, first]


def test_a_module_of_ones_own_that_knows_no_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any LightningModule and data run under the same command."""
    (tmp_path / "own_module.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel\n\n\n"
        "class Mine(BoringModel):\n    def __init__(self) -> None:\n        super().__init__()\n\n\n"
        "class Data(BoringDataModule):\n    def __init__(self) -> None:\n        super().__init__()\n"
    )
    monkeypatch.chdir(tmp_path)
    main(["fit", "--model", "own_module.Mine", "--data", "own_module.Data", "--trainer.max_steps", "2",
          "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--model.init_args.schedule.init_args.T", "0"], "T is 0"),
        (
            ["--model.init_args.schedule", "Linear", "--model.init_args.schedule.init_args.beta_1", "0"],
            "alpha_bar must fall",
        ),
        (
            ["--model.init_args.network.init_args.in_channels", "3"],
            "the data's images have shape [1, 8, 8], but the model's shape is [3, 8, 8]",
        ),
        (["--model.init_args.shape", "[1, 10, 10]"], "which 10×10 pixels do not allow"),
        (["--model.init_args.network.init_args.size", "10"], "10 pixels do not allow"),
        (
            ["--model.init_args.shape", "[1, 16, 16]"],
            "the data's images have shape [1, 8, 8], but the model's shape is",
        ),
        (["--data.init_args.batch_size", "1501"], "one step takes 1501 images"),
        (["--trainer.accumulate_grad_batches", "50"], "one step takes 1600 images"),
        (["--model.init_args.network.init_args.channel", "8"], "channel"),
        (["--model.init_args.schedule", "Cosinus"], "Cosinus"),
        (["--model.init_args.network.class_path", "no.such.Network"], "no.such"),
        (["--trainer.max_step", "5"], "max_step"),
        (["--trainer.max_steps", "many"], "many"),
        (["--ema.decay", "1.5"], "decay is 1.5"),
        (
            ["--model.init_args.network", "tests.cli.test_fit.Foreign"],
            "the network does not take images of shape [1, 8, 8]",
        ),
        (["--trainer.max_steps", "7"], "schedule ends at step 6, but the run goes on to step 7"),
        (["--seed_everything", "true"], "seed"),
        (
            ["--model.init_args.schedule", "ZeroTerminalSNR", "--model.init_args.schedule.schedule", "Linear"],
            "Epsilon cannot give x_0 there: predict Velocity or X0",
        ),
        (["--model.init_args.weighting", "MinSNR", "--model.init_args.weighting.gamma", "0"], "gamma is 0"),
        (["--model.init_args.vlb.class_path", "VLB", "--model.init_args.vlb.init_args.variance", "2"], "variance is 2"),
        (["--model.init_args.vlb_weight", "-1"], "vlb_weight is -1"),
        (["--model.init_args.vlb_weight", ".inf"], "vlb_weight is inf"),
        (["--data.init_args.num_workers", "-1"], "num_workers is -1"),
        (["--model.init_args.network.init_args.out_channels", "3"], "or 2 with the variance"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_errors_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], says: str
) -> None:
    said = fails(capsys, "fit", "--config", str(small_config(tmp_path)), "--trainer.logger", "false", *changes)
    assert says in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("trainer.max_stepz", "optimiser", "model.init_args.schedule.init_args.betas"):
        said = fails(capsys, "fit", "--config", str(small_config(tmp_path, **{key: 1})))
        assert key.rpartition(".")[2] in said


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_unusable_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    whole = (run / "checkpoints/last.ckpt").read_bytes()
    cut, other, hostile = (tmp_path / name for name in ("cut.ckpt", "other.ckpt", "hostile.ckpt"))
    cut.write_bytes(whole[: len(whole) // 2])
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:-1]
    torch.save(checkpoint, other)
    torch.save({**checkpoint, "surprise": Hostile(tmp_path / "it ran")}, hostile)
    rest = {"fit": ["--config", str(small_config(tmp_path))], "predict": ["--out", str(tmp_path / "out")]}.get(
        command, []
    )
    quiet = [] if command == "predict" else ["--trainer.logger", "false"]
    for path, says in ((tmp_path / "no.ckpt", "does not exist"), (cut, "cut short"), (other, "another model"),
                       (hostile, "could run code")):  # fmt: skip
        assert says in fails(capsys, command, *rest, *quiet, "--ckpt_path", str(path))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "subcommand"),
        (["train"], "train"),
        (["fit"], "--config"),
        (["predict", "--out", "x"], "ckpt_path"),
        (["validate"], "--ckpt_path"),
        (["selftest", "--devise", "cpu"], "unrecognized arguments: --devise cpu"),
    ],
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert says in fails(capsys, *args)
