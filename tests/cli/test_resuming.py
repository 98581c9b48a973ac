"""Going on from a checkpoint: which one, and with which configuration."""

import copy
import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning.callbacks import Checkpoint
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import changes, main, run_folder
from diffusion_lightning.cli.changes import Kind, compared, global_batch
from diffusion_lightning.loggers import weights_and_biases

from ..conftest import put
from ..support.commands import fails
from ..support.resuming import INIT, files, on

tried = pytest.mark.tried("Resuming")


# Which checkpoint

LEFT = {
    "a numbered one": (["step=2.ckpt", "step=10.ckpt"], "step=10.ckpt"),
    "the best": (["best.ckpt"], "best.ckpt"),
    "a numbered one and the best": (["best.ckpt", "step=4.ckpt"], "step=4.ckpt"),
    "a numbered one and a state at fault": (["nonfinite.ckpt", "step=4.ckpt"], "step=4.ckpt"),
    "a numbered one and half of the last": ([".last.ckpt.0a1b2c3d.part", "step=4.ckpt"], "step=4.ckpt"),
    "a numbered one and half of an earlier version's": (["last.ckpt.part", "step=4.ckpt"], "step=4.ckpt"),
}


@tried
@pytest.mark.parametrize("asked", [None, "last"], ids=["a fresh run", "the last"])
@pytest.mark.parametrize("left", LEFT)
def test_where_last_ckpt_is_missing_the_newest_one_is_named_and_nothing_starts(
    tmp_path: Path, left: str, asked: str | None
) -> None:
    names, newest = LEFT[left]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(ValueError, match=rf"--ckpt_path \S*{newest} or choose another folder by"):
        run_folder.start(tmp_path, asked)


@tried
@pytest.mark.parametrize("asked", [None, "last"], ids=["a fresh run", "the last"])
def test_a_state_at_fault_alone_is_never_gone_on_from(tmp_path: Path, asked: str | None) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/nonfinite.ckpt").touch()
    with pytest.raises(ValueError, match=r"nonfinite\.ckpt.*move them away, since they are states at fault"):
        run_folder.start(tmp_path, asked)


@tried
@pytest.mark.parametrize("half", [".last.ckpt.0a1b2c3d.part", "last.ckpt.part"], ids=["this version's", "an earlier's"])
def test_half_a_checkpoint_alone_is_not_gone_on_from(tmp_path: Path, half: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / half).touch()
    assert run_folder.start(tmp_path, "last") is None


@tried
def test_without_last_ckpt_the_metrics_are_not_cut(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "checkpoints/last.ckpt").unlink()
    before = files(copied)
    said = fails(capsys, *on(copied, "--trainer.max_steps", "3"))
    assert f"--ckpt_path {copied}/checkpoints/step=4.ckpt" in said
    assert files(copied) == before


@tried
@pytest.mark.parametrize("damage", ["cut short", "empty", "without its last byte"])
def test_where_last_ckpt_is_damaged_the_whole_one_is_named(copied: Path, damage: str) -> None:
    last = copied / "checkpoints/last.ckpt"
    whole = last.read_bytes()
    last.unlink()  # it is one file with step=4.ckpt
    last.write_bytes({"cut short": whole[:1000], "empty": b""}.get(damage, whole[:-1]))
    (copied / "checkpoints/step=9.ckpt").write_bytes(whole[:-100])
    (copied / "checkpoints/nonfinite.ckpt").write_bytes(whole)
    with pytest.raises(ValueError, match=r"step=4\.ckpt is whole: go on from it by --ckpt_path \S*step=4\.ckpt"):
        run_folder.opened(str(last))


# With which configuration

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "diffusion_lightning.modules.Diffusion",
        "init_args": {
            "network": {"class_path": "diffusion_lightning.networks.UNet",
                        "init_args": {"channels": 8, "multipliers": [1, 2], "dropout": 0.0}},
            "schedule": {"class_path": "diffusion_lightning.schedules.Cosine", "init_args": {"T": 12, "s": 0.008}},
            "shape": [1, 8, 8], "parameterization": None, "rescale_timesteps": False, "conditioner": None,
            "timesteps": None, "weighting": None, "vlb_weight": None, "vlb": None, "compile": False,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-3, "betas": [0.9, 0.999]}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR",
                             "init_args": {"max_lr": 2e-3, "total_steps": 6}},
        },
    },
    "data": {"class_path": "diffusion_lightning.data.Digits",
             "init_args": {"batch_size": 32, "flip": False, "num_workers": 0}},
    "ema": {"decay": 0.5, "warmup": False},
    "checkpoint": {"every_n_train_steps": 2, "monitor": None, "mode": "min", "keep": 1},
    "trainer": {
        "default_root_dir": "runs/a", "accelerator": "cpu", "devices": "auto", "num_nodes": 1, "strategy": "auto",
        "precision": None, "max_steps": 6, "accumulate_grad_batches": 1, "val_check_interval": 3,
        "limit_val_batches": None, "limit_train_batches": None, "overfit_batches": 0.0, "gradient_clip_val": 1.0,
        "logger": None, "enable_progress_bar": None,
        "callbacks": [{"class_path": "diffusion_lightning.callbacks.SampleGrid", "init_args": {"n": 4}}],
    },
    "grid": {"class_path": "diffusion_lightning.callbacks.SampleGrid", "init_args": {"n": 4}},
    "init_from": None,
}  # fmt: skip

KEYS: dict[Kind, list[tuple[str, Any]]] = {
    Kind.REFUSED: [
        ("seed_everything", 1),
        (f"{INIT}.network.init_args.channels", 16),
        (f"{INIT}.network.init_args.multipliers", [1, 2, 2]),
        (f"{INIT}.network.init_args.dropout", 0.1),
        (f"{INIT}.network", {"class_path": "diffusion_lightning.networks.DiT", "init_args": {}}),
        (f"{INIT}.schedule", {"class_path": "diffusion_lightning.schedules.Linear", "init_args": {"T": 12}}),
        (f"{INIT}.schedule.init_args.T", 13),
        (f"{INIT}.parameterization", {"class_path": "diffusion_lightning.denoising.Velocity"}),
        (f"{INIT}.weighting", {"class_path": "diffusion_lightning.objectives.MinSNR", "init_args": {"gamma": 5}}),
        (f"{INIT}.timesteps", {"class_path": "diffusion_lightning.objectives.Stratified"}),
        (f"{INIT}.conditioner", {"class_path": "diffusion_lightning.conditioning.ClassLabels", "init_args": {}}),
        (f"{INIT}.rescale_timesteps", True),
        (f"{INIT}.vlb_weight", 0.1),
        (f"{INIT}.optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lr": 2e-3}}),
        ("data", {"class_path": "diffusion_lightning.data.MNIST", "init_args": {}}),
        ("data.init_args.flip", True),
        ("trainer.limit_train_batches", 5),
        ("trainer.overfit_batches", 0.5),
        ("trainer.precision", "bf16-true"),
    ],
    Kind.ANEW: [
        (f"{INIT}.optimizer.init_args.lr", 1e-3),
        (f"{INIT}.optimizer.init_args.betas", [0.8, 0.999]),
        (f"{INIT}.lr_scheduler", None),
        (f"{INIT}.lr_scheduler.init_args.total_steps", 9),
    ],
    Kind.APPLIED: [
        ("ema.decay", 0.9),
        ("checkpoint.every_n_train_steps", 5),
        ("checkpoint.monitor", "val/loss"),
        (f"{INIT}.compile", True),
        ("data.init_args.num_workers", 2),
        ("trainer.max_steps", 9),
        ("trainer.val_check_interval", 5),
        ("trainer.limit_val_batches", 0),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.gradient_clip_val", None),
        ("trainer.callbacks", []),
        ("grid", None),
        ("grid.init_args.n", 9),
        ("trainer.devices", 2),
        ("trainer.accelerator", "gpu"),
        ("trainer.strategy", "ddp"),
    ],
    Kind.SILENT: [
        ("trainer.default_root_dir", "runs/b"),
        ("trainer.logger", False),
        ("trainer.enable_progress_bar", False),
        ("init_from", "x.ckpt"),
    ],
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    put(config, key, value)
    return config


@tried
@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(kind, key, value) for kind, pairs in KEYS.items() for key, value in pairs],
    ids=[f"{key} {kind.value}" for kind, pairs in KEYS.items() for key, _ in pairs],
)
def test_a_changed_key_is_refused_applied_stated_anew_or_no_change(kind: Kind, key: str, value: Any) -> None:
    """And in the other direction alike; what is refused is allowed by its name, or by that of what holds it."""
    for old, new in ((CONFIG, changed(key, value)), (changed(key, value), CONFIG)):
        found = compared(old, new)
        assert [(x.key, x.kind) for x in found] == [(key, kind)] * (kind is not Kind.SILENT)
        if kind is Kind.REFUSED:
            with pytest.raises(ValueError, match=f"--allow_changed {key}") as error:
                changes.check(found, ["seed", f"{key}x"], "a.ckpt", 6)
            assert "a.ckpt (step 6)" in str(error.value)
            assert "--init_from a.ckpt" in str(error.value)
        for allowed in ([key], [key.rpartition(".")[0]] if "." in key else [key]):
            changes.check(found, allowed, "a.ckpt", 6)
        if kind is not Kind.REFUSED:
            changes.check(found, [], "a.ckpt", 6)
        assert (key in changes.table(found, "a.ckpt", 6)) == (kind is not Kind.SILENT)


UNCHANGED = {
    "a whole number written as a decimal": ("trainer.gradient_clip_val", 1),
    "a tuple for a list": (f"{INIT}.network.init_args.multipliers", (1, 2)),
    "a class by the module that defines it": (f"{INIT}.network.class_path", "diffusion_lightning.networks.unet.UNet"),
    "an output written out that is meant where none is": (
        f"{INIT}.parameterization", {"class_path": "diffusion_lightning.denoising.Epsilon"}),
    "a weighting written out that is meant where none is": (
        f"{INIT}.weighting", {"class_path": "diffusion_lightning.objectives.Simple", "init_args": {}}),
    "a bound written out that is meant where none is": (f"{INIT}.vlb", "the default"),
}  # fmt: skip


@tried
@pytest.mark.parametrize("kind", UNCHANGED)
def test_what_is_written_otherwise_and_means_the_same_is_no_change(kind: str) -> None:
    key, value = UNCHANGED[kind]
    if value == "the default":
        value = changes._default("diffusion_lightning.likelihood.VLB")
    assert compared(CONFIG, changed(key, value)) == []
    assert compared(changed(key, value), CONFIG) == []


BATCHES = {
    # devices, batch size, accumulated: before and after, and whether a step takes as many images
    "two devices to one at the same batch size": ((2, 32, 1), (1, 32, 1), False),
    "two devices to one with twice the batch": ((2, 32, 1), (1, 64, 1), True),
    "two devices to one that accumulates": ((2, 32, 1), (1, 32, 2), True),
    "another batch size": ((1, 32, 1), (1, 16, 1), False),
    "another number of accumulated batches": ((1, 32, 1), (1, 32, 2), False),
    "the same": ((4, 8, 2), (4, 8, 2), True),
}


@tried
@pytest.mark.parametrize("recorded", [True, False], ids=["by the checkpoint's count", "by its configuration"])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_step_of_another_number_of_images_is_refused(kind: str, recorded: bool) -> None:
    sides = []
    for devices, size, accumulate in BATCHES[kind][:2]:
        config = changed("trainer.devices", devices)
        put(config, "data.init_args.batch_size", size)
        put(config, "trainer.accumulate_grad_batches", accumulate)
        sides.append(config)
    was, now, same = BATCHES[kind]
    found = global_batch(sides[0], sides[1], was[0] if recorded else None, now[0])
    assert (found == []) == same
    if not same:
        with pytest.raises(ValueError, match=f"from {was[0] * was[1] * was[2]} images a step .* --allow_changed data"):
            changes.check(found, [], "a.ckpt", 6)
        changes.check(found, ["data.init_args.batch_size"], "a.ckpt", 6)


@tried
def test_a_number_of_devices_that_cannot_be_known_refuses_nothing() -> None:
    assert global_batch(changed("trainer.accelerator", "gpu"), CONFIG, None, 1) == []
    assert global_batch(CONFIG, changed("data.init_args.batch_size", 16), None, 1) != []  # auto is one CPU


@tried
def test_a_refused_change_touches_nothing_and_one_that_is_meant_trains(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output, schedule, seed, images of a step and flips at once; the run's own record is the new one from then on."""
    changed = {
        f"{INIT}.parameterization": "Velocity", f"{INIT}.schedule": "Linear", "seed_everything": "1",
        "data.init_args.batch_size": "16", "data.init_args.flip": "true",
    }  # fmt: skip
    before = files(copied)
    words = [word for key, value in changed.items() for word in (f"--{key}", value)]
    words += [f"--{INIT}.lr_scheduler", "null", "--trainer.max_steps", "5"]
    said = fails(capsys, *on(copied, *words))
    assert "(step 4)" in said
    assert all(f"--allow_changed {key}" in said for key in changed)
    assert files(copied) == before
    main(on(copied, *words, *(f"--allow_changed={key}" for key in changed)))
    lines = capsys.readouterr().out.splitlines()
    assert all(any(key in line and "(allowed)" in line for line in lines) for key in changed)
    assert read(copied / "checkpoints/last.ckpt")["global_step"] == 5
    assert "allow_changed" not in (copied / "config.yaml").read_text()
    main(on(copied, *words))
    assert "allowed" not in capsys.readouterr().out


@tried
def test_a_requeued_job_with_the_same_configuration_is_never_refused(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the checkpoint that it once began from, and what it meant to change of that one."""
    meant = ["--seed_everything", "1", "--allow_changed", "seed_everything", "--trainer.max_steps", "6"]
    meant += [f"--{INIT}.lr_scheduler", "null", f"--{INIT}.parameterization", "Epsilon"]
    first = copied.rename(copied.parent / "first") / "checkpoints/last.ckpt"
    words = ["fit", "--config", str(copied.parent / "bare.yaml"), "--ckpt_path", str(first), *meant]
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    main([*words, "--checkpoint.every_n_train_steps", "5", "--checkpoint.keep", "2"])
    assert "seed_everything" in capsys.readouterr().out
    (copied / "checkpoints/step=5.ckpt").replace(copied / "checkpoints/last.ckpt")  # it was left there
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main([*words, "--checkpoint.every_n_train_steps", "5", "--checkpoint.keep", "2"])
    said = capsys.readouterr().out
    assert "changed since" not in said
    assert read(copied / "checkpoints/last.ckpt")["global_step"] == 6


@tried
def test_comparing_with_a_checkpoint_imports_nothing_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('it ran').touch()\nclass Evil: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"class_path": "evil.Evil", "init_args": {}}
    for key in (f"{INIT}.network", f"{INIT}.optimizer", "data", f"{INIT}.parameterization", "trainer.strategy"):
        for value in (evil, "evil.Evil"):
            old = changes.shared(changed(key, value), CONFIG)
            assert [x.key for x in compared(old, CONFIG)] == [key]
    assert not (tmp_path / "it ran").exists()


@tried
@pytest.mark.parametrize("changed_too", [False, True], ids=["alone", "with another T"])
@pytest.mark.parametrize("version", ["before an option was there", "after an option was taken away"])
def test_a_configuration_of_an_earlier_version_is_compared_by_the_options_of_this_one(
    version: str, changed_too: bool
) -> None:
    """What an option was that was not there yet, its default says."""
    old = changed(f"{INIT}.schedule.init_args.T", 13 if changed_too else 12)
    if version.startswith("before"):
        del old["model"]["init_args"]["compile"], old["model"]["init_args"]["network"]["init_args"]["dropout"]
        del old["ema"]["warmup"], old["data"]["init_args"]["flip"]
    else:
        old["trainer"]["no_such_option"] = old["model"]["init_args"]["no_such_option"] = 3
    new = copy.deepcopy(CONFIG)
    new["model"]["init_args"]["network"]["init_args"]["dropout"] = 0.1  # a U-Net's own
    if version.startswith("after"):
        old["model"]["init_args"]["network"]["init_args"]["dropout"] = 0.1
    assert [x.key for x in compared(changes.shared(old, new), new)] == [f"{INIT}.schedule.init_args.T"] * changed_too
    put(new, "data.init_args.flip", True)
    assert "data.init_args.flip" in [x.key for x in compared(changes.shared(old, new), new)]


# What 'applied' means


def groups(root: Path) -> dict[str, Any]:
    return read(root / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"][0]


@tried
def test_the_optimizers_arguments_and_the_decay_are_the_new_ones(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the configuration says that is written then, though a trainer restores the checkpoint's."""
    new = {"lr": 5e-4, "betas": [0.8, 0.99], "weight_decay": 0.1}
    words = [word for key, value in new.items() for word in (f"--{INIT}.optimizer.init_args.{key}", str(value))]
    main(on(copied, "--trainer.max_steps", "6", f"--{INIT}.lr_scheduler", "null", "--ema.decay", "0.25", *words))
    found = groups(copied)
    assert {"lr": found["lr"], "betas": list(found["betas"]), "weight_decay": found["weight_decay"]} == new
    rows = list(csv.DictReader((copied / "metrics.csv").open()))
    assert [float(row["train/lr"]) for row in rows[4:]] == pytest.approx([5e-4] * 2)
    assert [float(row["ema/decay"]) for row in rows] == [0.5] * 4 + [0.25] * 2
    written = yaml.safe_load((copied / "config.yaml").read_text())
    assert written["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 5e-4
    assert written["ema"]["decay"] == 0.25
    said = capsys.readouterr().out
    for key, text in ((f"{INIT}.optimizer.init_args.lr", "0.002 → 0.0005"), ("ema.decay", "0.5 → 0.25")):
        assert any(key in line and text in line for line in said.splitlines())


@tried
def test_an_optimizer_of_another_class_begins_without_a_state(copied: Path) -> None:
    """If it is meant."""
    words = [f"--{INIT}.optimizer", "torch.optim.SGD", f"--{INIT}.optimizer.init_args.lr", "1e-4",
             f"--{INIT}.optimizer.init_args.momentum", "0.9", f"--{INIT}.lr_scheduler", "null"]  # fmt: skip
    main(on(copied, "--trainer.max_steps", "5", *words, "--allow_changed", f"{INIT}.optimizer"))
    state = read(copied / "checkpoints/last.ckpt")["optimizer_states"][0]
    assert set(state["state"][0]) == {"momentum_buffer"}
    assert state["param_groups"][0]["momentum"] == 0.9


@tried
def test_a_step_of_two_batches_in_the_place_of_one_takes_the_same_images(copied: Path) -> None:
    """From batches of 32 to twice 16, in mid-epoch."""
    words = on(copied, f"--{INIT}.lr_scheduler", "null", f"--{INIT}.optimizer.init_args.lr", "1e-4",
               "--trainer.max_steps", "7", "--trainer.val_check_interval", "2")  # fmt: skip
    other = Path(shutil.copytree(copied, copied.parent / "other"))
    main(words)
    main([*words, "--trainer.default_root_dir", str(other), "--data.init_args.batch_size", "16",
          "--trainer.accumulate_grad_batches", "2"])  # fmt: skip
    a, b = (read(root / "checkpoints/last.ckpt") for root in (copied, other))
    assert a["global_step"] == b["global_step"] == 7
    for name, x in a["state_dict"].items():
        torch.testing.assert_close(x, b["state_dict"][name], rtol=1e-4, atol=1e-5)
    assert b["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 14


@tried
@pytest.mark.parametrize(
    ("monitor", "mode", "kept"),
    [("val/loss", "min", True), ("val/fid", "min", False), ("val/loss", "max", False)],
    ids=["the same", "another metric", "the other direction"],
)
def test_the_best_of_another_metric_is_no_best(monitor: str, mode: Any, kept: bool) -> None:
    earlier = Checkpoint(monitor="val/loss")
    earlier.best = 0.25
    later, before = Checkpoint(monitor=monitor, mode=mode), Checkpoint(monitor=monitor, mode=mode)
    later.load_state_dict(earlier.state_dict())
    assert later.best == (0.25 if kept else None)
    before.load_state_dict({"best": 0.25})  # an earlier version's
    assert before.best == 0.25


# In Weights & Biases


@tried
def test_the_parts_of_a_run_are_in_the_order_of_their_steps_and_not_of_the_clock(tmp_path: Path) -> None:
    """Of starts on machines whose clocks differ; the second, of an earlier version, tells no step and comes first."""
    starts = {"20250103_000000": "0", "20250101_000000": None, "20250102_000000": "20", "20250102_000001": "10"}
    for clock, step in starts.items():
        folder = tmp_path / f"wandb/offline-run-{clock}-abcd1234"
        folder.mkdir(parents=True)
        if step is not None:
            (folder / weights_and_biases.FIRST).write_text(step)
    found = [path.name.split("-")[2] for path in weights_and_biases._folders(tmp_path, "abcd1234")]
    assert found == ["20250101_000000", "20250103_000000", "20250102_000001", "20250102_000000"]


@tried
def test_a_start_in_weights_and_biases_tells_its_first_step(tmp_path: Path) -> None:
    import wandb

    logger = weights_and_biases.WeightsAndBiases(save_dir=str(tmp_path), id="abcd1234", offline=True)
    for step in (7, 8):
        logger.log_metrics({"loss": 1.0}, step)
    logger.finalize("success")
    wandb.teardown()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert (folder / weights_and_biases.FIRST).read_text() == "7"
