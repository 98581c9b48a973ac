"""Runs that are killed, moved to another number of processes, poisoned or out of disk; each against the undisturbed."""

import contextlib
import multiprocessing
import os
import random as chance
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.loading import load
from diffusion_lightning.samplers import DDIM, Heun, Sampler

from .conftest import BARE, UNWATCHED, small_config
from .support.commands import fails
from .support.exactness import ADVERSARIAL, EVERYTHING, STEPS, child, framed, powers, same, state
from .support.pair import run_in
from .support.rows import rows


def fit(config: Path, root: Path, kill: Any = None) -> bool:
    """Runs `fit --ckpt_path last`, SIGKILLed when `kill(root, seconds)` says so; True where it ended by itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_lightning.cli.fit"])
    arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(root), "--ckpt_path", "last"]
    process = context.Process(target=child, args=(arguments,))
    process.start()
    since = time.monotonic()
    while process.is_alive():
        if kill is not None and kill(root, time.monotonic() - since):
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet, or has just ended
                os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
                return False
        time.sleep(0.002)
    assert process.exitcode == 0
    return True


@pytest.mark.slow
def test_killed_ten_times_and_resumed_is_bitwise_the_undisturbed_run(tmp_path: Path) -> None:
    """At random moments, some of them while a checkpoint is written and some in validation."""
    config = framed(tmp_path, "flow", **EVERYTHING)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(config, whole)

    generator = chance.Random(0)
    last = broken / "checkpoints/last.ckpt"

    def written() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    def parts() -> set[tuple[str, int]]:
        found = set()
        for path in last.parent.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):  # renamed in the meantime
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    for number in range(10):
        kind = ("at random", "writing", "at random", "validating", "at random")[number % 5]
        delay = generator.uniform(0, 0.3)
        pictures, before, seen = len(list((broken / "samples").glob("*.png"))), written(), 0.0
        left = parts()  # by a kill in the middle of writing

        def now(
            root: Path, seconds: float, kind: str = kind, delay: float = delay, pictures: int = pictures,
            before: int = before, left: set[tuple[str, int]] = left,
        ) -> bool:  # fmt: skip
            nonlocal seen
            if kind == "writing":
                return bool(parts() - left)
            if kind == "validating":  # the grid is drawn, the metrics are not
                return len(list((root / "samples").glob("*.png"))) > pictures
            if not seen and written() != before:  # some time after the first checkpoint of this attempt
                seen = seconds
            return seen > 0 and seconds > seen + delay

        assert not fit(config, broken, now), f"ended before kill {number}"
        print(f"killed {kind}, last checkpoint at step {read(last)['global_step'] if last.exists() else 0} of {STEPS}")
    assert fit(config, broken)
    same(state(whole), state(broken))
    assert len(state(whole)["snapshots"]) == 140 // 24  # every third step's, thinned to every 24th


@pytest.mark.slow
@pytest.mark.tried("Resuming")
def test_killed_before_and_after_a_discriminator_starts_is_bitwise_the_undisturbed_run(tmp_path: Path) -> None:
    """An autoencoder, SIGKILLed in training: once before its discriminator takes part, and once after."""
    config = tmp_path / "autoencoder.yaml"
    config.write_text(yaml.safe_dump(ADVERSARIAL))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(config, whole)
    last = broken / "checkpoints/last.ckpt"

    def reached() -> int:
        return read(last)["global_step"] if last.exists() else 0

    start, steps = ADVERSARIAL["model"]["init_args"]["adversarial_from"], ADVERSARIAL["trainer"]["max_steps"]
    for after, until in ((4, start), (start + 4, steps)):
        seen = 0.0

        def now(root: Path, seconds: float, after: int = after) -> bool:
            nonlocal seen
            if not seen and reached() >= after:
                seen = seconds
            return seen > 0 and seconds > seen + 0.02  # some steps on

        assert not fit(config, broken, now), f"ended before it was killed after step {after}"
        assert after <= reached() < until
        own, theirs = read(last)["optimizer_states"][0]["param_groups"]
        known = read(last)["optimizer_states"][0]["state"]
        assert set(own["params"]) <= set(known)
        assert set(known) & set(theirs["params"]) == (set(theirs["params"]) if after > start else set())
    assert fit(config, broken)
    assert state(broken)["step"] == steps
    same(state(whole), state(broken))


@pytest.mark.parametrize("frame", ["EDM", pytest.param("flow", marks=pytest.mark.slow)])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, frame: str) -> None:
    """In one process, at a step between two snapshots."""
    config = framed(tmp_path, frame, **{
        "trainer.max_steps": 8, "trainer.callbacks": [powers(every=1, keep=3)], "trainer.logger": False,
        "trainer.limit_val_batches": 0, "checkpoint.monitor": None, "checkpoint.every_n_train_steps": 5,
        "checkpoint.keep": None, "model.init_args.network.init_args.dropout": 0.2, "model.init_args.lr_scheduler": None,
    })  # fmt: skip
    whole, again = tmp_path / "whole", tmp_path / "again"
    words = ["fit", "--config", str(config), *(word for key in UNWATCHED for word in (f"--{key}", "null"))]
    main([*words, "--trainer.default_root_dir", str(whole)])
    (again / "averages").mkdir(parents=True)
    shutil.copy(whole / "averages/step=4.ckpt", again / "averages")
    (again / "averages/step=7.ckpt").write_bytes(b"of what is done again")
    middle = whole / "checkpoints/step=5.ckpt"
    main([*words, "--trainer.default_root_dir", str(again), "--ckpt_path", str(middle)])
    same(state(whole), state(again))
    assert list(state(again)["snapshots"]) == ["step=4.ckpt", "step=8.ckpt"]


@pytest.mark.slow
def test_another_number_of_processes_gives_the_same_trajectory(tmp_path: Path) -> None:
    """1 process with batch 64 against 2 with 32, and against 2 resumed from 1 in mid-epoch; float32, gloo.

    The losses of each step, and the averages of `PowerEMA` at the end.
    """
    steps = 300
    settings = {
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.logger": False,
        "model.init_args.optimizer.init_args.lr": 2e-4,
        "model.init_args.lr_scheduler": None,
        "checkpoint.every_n_train_steps": 100,
        "checkpoint.keep": None,
        "trainer.callbacks": [powers(every=100, keep=3)],
    }
    config = framed(tmp_path, "EDM", **settings)

    def losses(name: str, processes: int, *arguments: str) -> list[float]:
        share = [
            "--data.init_args.batch_size",
            str(64 // processes),
            "--trainer.strategy",
            ("auto", "ddp")[processes - 1],
        ]
        run_in(processes, ["fit", "--config", str(config), *share, *arguments], tmp_path / name)
        return [float(row["train/loss"]) for row in rows(tmp_path / name / "metrics.csv")]

    alone, together = losses("one", 1), losses("two", 2)
    moved = losses("moved", 2, "--ckpt_path", str(tmp_path / "one/checkpoints/step=100.ckpt"))
    back = losses("back", 1, "--ckpt_path", str(tmp_path / "two/checkpoints/step=200.ckpt"))
    assert len(alone) == len(together) == steps
    for found, expected in ((together, alone), (moved, alone[100:]), (back, alone[200:])):
        assert len(found) == len(expected)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    undisturbed = state(tmp_path / "one")
    for name in ("two", "moved", "back"):
        other = state(tmp_path / name)
        for ours, theirs in zip(other["powers"]["averages"], undisturbed["powers"]["averages"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        half, wanted = (of["snapshots"]["step=300.ckpt"]["state_dict"] for of in (other, undisturbed))
        torch.testing.assert_close(half, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_two_processes_share_the_history_of_losses_and_the_bound(tmp_path: Path) -> None:
    """Times drawn by their losses, and bits/dim of the 297 held-out images: 1 process against 2."""
    config = small_config(tmp_path, **{
        "trainer.max_steps": 60, "trainer.log_every_n_steps": 1, "trainer.limit_val_batches": 0,
        "model.init_args.network.init_args.out_channels": 2, "model.init_args.optimizer.init_args.lr": 2e-4,
        "model.init_args.timesteps": {"class_path": "LossAware"}, "model.init_args.lr_scheduler": None,
    })  # fmt: skip
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        root, last = tmp_path / name, str(tmp_path / "one/checkpoints/last.ckpt")
        share = ["--data.init_args.batch_size", str(64 // processes), "--trainer.logger", "false"]
        run_in(processes, ["fit", "--config", str(config), *share], root)
        run_in(processes, ["test", "--ckpt_path", last, "--trainer.callbacks", "[]", *share], root)
        weights = read(root / "checkpoints/last.ckpt")["state_dict"]
        found.append(
            (weights, rows(root / "metrics.csv"), rows(root / "test.csv")[-1], (root / "bound.csv").read_text())
        )
    (one, losses, bits, curve), (two, other_losses, other_bits, other_curve) = found
    assert one["timesteps.seen"].sum() == 60 * 64
    assert one["timesteps.seen"][1:].min() >= 10
    assert torch.equal(one["timesteps.seen"], two["timesteps.seen"])
    torch.testing.assert_close(one["timesteps.losses"], two["timesteps.losses"], rtol=1e-3, atol=1e-5)
    for key in [key for key in losses[0] if key.startswith("train")]:
        for a, b in zip(losses, other_losses, strict=True):
            assert a[key] == b[key] == "" or float(a[key]) == pytest.approx(float(b[key]), rel=1e-3)
    for key in [key for key in bits if key.startswith("test/bits")]:
        assert float(bits[key]) == pytest.approx(float(other_bits[key]), rel=1e-5)
    assert len(curve.splitlines()) == len(other_curve.splitlines()) == 13


@pytest.mark.slow
def test_samples_are_the_same_on_two_processes(run: Path, tmp_path: Path) -> None:
    pictures = {}
    sampler = ["--sampler", "Heun", "--sampler.variable", "tau", "--sampler.steps", "6"]
    for name, extra in {
        "at once": ["--batch_size", "64"],
        "by sixteen": ["--batch_size", "16", *sampler],
        "by one": ["--batch_size", "1"],
        "on two": ["--batch_size", "16", *sampler, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
    }.items():
        out = tmp_path / name
        words = ["predict", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--n", "64", "--out", str(out), *extra]
        subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *words, "--trainer.accelerator", "cpu"],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        pictures[name] = [path.read_bytes() for path in sorted(out.iterdir())]
        assert len(pictures[name]) == 64
    assert pictures["by sixteen"] == pictures["on two"]
    assert len(set(pictures["at once"])) == 64


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(DDIM(6), marks=pytest.mark.slow, id="DDIM"),
        pytest.param(Heun(3), marks=pytest.mark.slow, id="Heun"),
        pytest.param(Heun(3, variable="tau"), id="Heun in tau"),
    ],
)
def test_samples_at_once_by_sixteen_and_one_by_one(run: Path, sampler: Sampler) -> None:
    model = load(run / "checkpoints/last.ckpt")
    at_once = model.generate(64, sampler, batch_size=64)
    for size in (16, 1):
        blocks = [model.generate(size, sampler, first=first, batch_size=size) for first in range(0, 64, size)]
        torch.testing.assert_close(torch.cat(blocks), at_once, rtol=0, atol=1e-4)
        assert torch.equal(torch.cat(blocks), model.generate(64, sampler, batch_size=size))


class Poisoned(Digits):
    """One training image is not a number."""

    image = 1234

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, y = super().on_after_batch_transfer(batch, dataloader_idx)
        poison = self.scaled(self.splits["train"][0][self.image]).to(images)
        return torch.where((images == poison).flatten(1).all(1)[:, None, None, None], torch.nan, images), y


def test_a_poisoned_image_is_reported_by_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, **{
        "data.class_path": "tests.test_exact.Poisoned", "trainer.max_steps": 60, "trainer.logger": False,
        "trainer.limit_val_batches": 0, "trainer.log_every_n_steps": 8, "checkpoint.every_n_train_steps": 5,
        "model.init_args.lr_scheduler": None,
    })  # fmt: skip
    said = fails(capsys, "fit", "--config", str(config), "--trainer.enable_progress_bar", "false")
    step = int(said.split("the loss of step ")[1].split()[0])
    data = Poisoned(batch_size=32)
    data.setup("fit")
    sample = next(i for i in range(32) if data.index(step, i) == Poisoned.image)
    assert f"is not finite for sample {sample} (t = " in said
    assert "training image 1234)" in said
    folder = tmp_path / "run/checkpoints"
    if step >= 5:
        last = read(folder / "last.ckpt")
        assert last["global_step"] <= step
        assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert step < read(folder / "nonfinite.ckpt")["global_step"] <= step + 8


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which takes root")
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    try:
        config = small_config(tmp_path, **{"trainer.logger": False, "trainer.limit_val_batches": 0})
        root = ["--trainer.default_root_dir", str(small / "run"), "--checkpoint.keep", "0"]
        main(["fit", "--config", str(config), *root, "--trainer.max_steps", "2"])
        (small / "filler").write_bytes(b"x" * (os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - 65536))
        before = (small / "run/checkpoints/last.ckpt").read_bytes()
        said = fails(capsys, "fit", "--config", str(config), *root, "--ckpt_path", "last",
                     "--trainer.enable_progress_bar", "false")  # fmt: skip
        assert "No space left on device" in said
        assert "last.ckpt" in said
        assert (small / "run/checkpoints/last.ckpt").read_bytes() == before
        assert read(small / "run/checkpoints/last.ckpt")["global_step"] == 2
        assert [p.name for p in (small / "run/checkpoints").iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_every_checkpoint_is_of_whole_steps(tmp_path: Path) -> None:
    """Of accumulated batches the last makes the step, also after a validation: each goes on to the same end."""
    steps = {"trainer.max_steps": 6, "model.init_args.lr_scheduler.init_args.total_steps": 6}
    config = small_config(tmp_path, **{
        **steps, "trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 4, "trainer.logger": False,
        "checkpoint.every_n_train_steps": 1, "checkpoint.keep": None, "checkpoint.monitor": None,
    })  # fmt: skip
    whole = tmp_path / "whole"
    main(["fit", "--config", str(config), "--trainer.default_root_dir", str(whole), *BARE])
    for step in (2, 3, 4):  # a validation follows the second and the fourth
        root = tmp_path / f"from{step}"
        (root / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / f"checkpoints/step={step}.ckpt", root / "checkpoints/last.ckpt")
        main(["fit", "--config", str(config), "--trainer.default_root_dir", str(root), "--ckpt_path", "last", *BARE])
        same(state(whole), state(root))
