"""Several processes that share a batch: DDP, its static graph, and FSDP2, each against the others; what is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from diffusion_lightning.callbacks import EMA, PowerEMA
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.loading import load
from diffusion_lightning.modules.base.checks import check_strategy
from diffusion_lightning.samplers import DDIM

from ..conftest import ROOT, small_config
from ..support import pair
from ..support.exactness import framed, powers, snapshots
from ..support.rows import rows

FSDP2, STATIC = (
    ["--config", str(ROOT / f"configs/overlays/{name}.yaml"), "--trainer.accelerator", "cpu"]
    for name in ("fsdp", "ddp")
)
DDP = ["--trainer.strategy", "ddp"]
DIT: dict[str, Any] = {
    "model.init_args.network": {
        "class_path": "diffusion_lightning.networks.DiT",
        "init_args": {"in_channels": 1, "size": 8, "width": 32, "depth": 3, "heads": 2},
    },
    "model.init_args.conditioner": {"class_path": "ClassLabels", "init_args": {"classes": 10, "width": 32}},
    "model.init_args.lr_scheduler.init_args.total_steps": 20,
    "model.init_args.lr_scheduler.init_args.pct_start": 0.2,
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 8,
    "trainer.log_every_n_steps": 1,
    "trainer.logger": False,
    "data.init_args.batch_size": 16,
    "checkpoint.every_n_train_steps": 12,
    "checkpoint.keep": None,
}


def counting_rank(rank: int, port: int, words: list[str], folder: Path) -> None:
    """One of two processes that leaves how much of what is averaged it held in training."""
    update, of_powers = EMA.update, PowerEMA.update

    def count(kind: str, tensors: list[torch.Tensor]) -> None:
        held = sum((x.to_local() if isinstance(x, DTensor) else x).numel() for x in tensors)
        (folder / f"{kind}{rank}").write_text(f"{held} {sum(x.numel() for x in tensors)}")

    def counting(self: EMA, module: Any) -> float:
        count("weights", list(module.parameters()))
        count("average", list(self.average.values()))
        return update(self, module)

    def counting_powers(self: PowerEMA, module: Any) -> None:
        count("powers", [x for average in self.averages for x in average.values()])
        return of_powers(self, module)

    EMA.update = counting  # type: ignore[method-assign]
    PowerEMA.update = counting_powers  # type: ignore[method-assign]
    try:
        pair.run_rank(rank, port, words, folder)
    finally:
        (folder / f"graphs{rank}").write_text(str(counters["stats"]["unique_graphs"]))


def two(words: list[str], folder: Path) -> Path:
    """Runs the command in two processes that count; gives the run's folder."""
    return pair.two(words, folder, counting_rank)


class Inside(Callback):
    """Writes a checkpoint in the middle of a validation, when the average is in the weights' place."""

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"inside={trainer.global_step}.ckpt", False)


def recipe(folder: Path, frame: str = "", **changes: Any) -> list[str]:
    """A `fit` whose validation is three blocks of samples: two for one process, one for the other.

    Args:
        folder: of its configuration.
        frame: one of `FRAMES`, with `PowerEMA` beside; none if empty.
        changes: of the configuration.
    """
    changes = {**DIT, **changes}
    path = framed(folder, frame, **changes) if frame else small_config(folder, **changes)
    config = yaml.safe_load(path.read_text())
    config["metrics"]["batch_size"] = 22
    config["trainer"]["callbacks"] = [{"class_path": "tests.distributed.test_strategies.Inside"}]
    config["trainer"]["callbacks"] += [powers(every=2, keep=5)] if frame else []
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path)]


def column(folder: Path, key: str) -> list[float]:
    return [float(row[key]) for row in rows(folder / "metrics.csv") if row.get(key)]


def same_logs(a: Path, b: Path, loss: float = 1e-5, rtol: float = 1e-4) -> None:
    for key, tolerance in {
        "train/loss": loss, "train/grad_norm": rtol, "train/lr": 1e-6, "ema/decay": 1e-6, "val/loss": rtol
    }.items():  # fmt: skip
        assert len(column(a, key)) == (2 if key == "val/loss" else 20)
        assert column(a, key) == pytest.approx(column(b, key), rel=tolerance), key


def same_runs(a: Path, b: Path, loss: float = 1e-5, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """All that was logged, the weights and the average."""
    same_logs(a, b, loss, rtol)
    one, other = (read(folder / "checkpoints/last.ckpt") for folder in (a, b))
    close(one["state_dict"], other["state_dict"], rtol=rtol, atol=atol)
    close(average(one), average(other), rtol=rtol, atol=atol)
    for here, there in zip(tracks(one), tracks(other), strict=True):
        close(here, there, rtol=rtol, atol=atol)
    kept, others = snapshots(a), snapshots(b)
    for name in kept.keys() & others.keys():
        assert kept[name]["global_step"] == others[name]["global_step"]
        close(kept[name]["state_dict"], others[name]["state_dict"], rtol=rtol and 2e-3, atol=atol and 1e-4)  # halves


def tracks(checkpoint: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The averages of `PowerEMA`; none without it."""
    return checkpoint["callbacks"].get("PowerEMA", {}).get("averages", [])


def average(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return checkpoint["callbacks"]["EMA"]["average"]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=f"{name} differs")


@pytest.mark.slow
def test_shards_train_what_whole_weights_do(tmp_path: Path) -> None:
    """FSDP2 against DDP over 20 steps; half of the parameters a process; checkpoints of whole tensors in one file."""
    config = recipe(tmp_path, "flow")
    ddp, fsdp = two([*config, *DDP], tmp_path / "ddp"), two([*config, *FSDP2], tmp_path / "fsdp")
    same_runs(ddp, fsdp)
    assert [row["step"] for row in rows(fsdp / "metrics.csv") if row["val/fd_digits"]] == ["8", "16"]
    assert column(fsdp, "val/fd_digits") == pytest.approx(column(ddp, "val/fd_digits"), rel=1e-3)
    for kind in ("weights", "average", "powers"):
        counts = [[int(n) for n in (fsdp / f"{kind}{rank}").read_text().split()] for rank in (0, 1)]
        (a, total), (b, of_other) = counts
        assert a + b == total == of_other
        assert max(a, b) < 0.55 * total
    assert load(fsdp / "checkpoints/last.ckpt").generate(2, DDIM(2)).isfinite().all()

    # Two averages more, half of each a process, and snapshots of whole tensors, of which one of another length is made.
    assert len(tracks(read(fsdp / "checkpoints/last.ckpt"))) == 2
    assert list(snapshots(fsdp)) == list(snapshots(ddp)) == [f"step={k}.ckpt" for k in (12, 16, 20, 4, 8)]
    for folder in (fsdp, ddp):
        main(["average", str(folder), "--sigma_rel", "0.07", "--out", str(folder / "average.ckpt")])
    of_shards, of_wholes = (read(folder / "average.ckpt")["state_dict"] for folder in (fsdp, ddp))
    close(of_shards, of_wholes, rtol=2e-3, atol=1e-4)
    assert load(fsdp / "average.ckpt").generate(2, DDIM(2)).isfinite().all()

    # Written while the average was in the weights' place, and by whoever wrote it.
    inside, theirs = (read(folder / "inside=16.ckpt") for folder in (fsdp, ddp))
    close(inside["state_dict"], theirs["state_dict"], rtol=1e-4, atol=1e-5)
    close(average(inside), average(theirs), rtol=1e-4, atol=1e-5)
    name = next(iter(average(inside)))
    assert not torch.equal(average(inside)[name], inside["state_dict"][name])

    # Resumed at step 12: by as many processes, bit for bit; on one device with the whole batch; and DDP's, on shards.
    for source, name in ((fsdp, "again"), (fsdp, "one"), (ddp, "moved")):
        (tmp_path / name).mkdir()
        shutil.copy(source / "metrics.csv", tmp_path / name)
        words = [*config, "--ckpt_path", str(source / "checkpoints/step=12.ckpt")]
        if name == "one":
            whole = ["--data.batch_size", "32", "--trainer.default_root_dir", str(tmp_path / name)]
            main([*words, *whole, "--trainer.enable_progress_bar", "false"])
        else:
            two([*words, *FSDP2], tmp_path / name)
    assert list(snapshots(tmp_path / "again")) == [f"step={k}.ckpt" for k in (16, 20)]
    same_runs(tmp_path / "again", fsdp, loss=0, rtol=0, atol=0)
    same_runs(tmp_path / "one", fsdp)
    same_runs(tmp_path / "moved", fsdp)


UNET: dict[str, Any] = {
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 16,
    "trainer.accumulate_grad_batches": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.logger": False,
    "model.init_args.network.init_args.dropout": 0.2,
    "model.init_args.network.init_args.attention": [4],
    "model.init_args.network.init_args.out_channels": 2,
    "model.init_args.timesteps": {"class_path": "LossAware", "init_args": {"history": 2}},
    "model.init_args.lr_scheduler.init_args.total_steps": 20,
    "model.init_args.lr_scheduler.init_args.pct_start": 0.2,
    "data.init_args.batch_size": 16,
    "checkpoint.every_n_train_steps": 12,
}


@pytest.mark.slow
def test_a_static_graph_changes_nothing(tmp_path: Path) -> None:
    """With dropout, a learned variance and times by their losses."""
    changes = {**UNET, "trainer.accumulate_grad_batches": 1, "trainer.val_check_interval": 8}
    config = ["fit", "--config", str(small_config(tmp_path, **changes))]
    same_runs(two([*config, *STATIC], tmp_path / "static"), two([*config, *DDP], tmp_path / "ddp"), 0, 0, 0)


@pytest.mark.slow
def test_shards_of_a_unet_under_accumulation_and_in_test(tmp_path: Path) -> None:
    # Shards are not channels-last, in whose order dropout is drawn, and a rounding may move a time drawn by the losses.
    plain = {**UNET, "model.init_args.network.init_args.dropout": 0.0, "model.init_args.timesteps": None}
    config = ["fit", "--config", str(small_config(tmp_path, **plain))]
    ddp, fsdp = two([*config, *DDP], tmp_path / "ddp"), two([*config, *FSDP2], tmp_path / "fsdp")
    same_runs(fsdp, ddp)
    measured = []
    for strategy, name in ((DDP, "whole"), (FSDP2, "sharded")):
        words = ["test", "--config", config[-1], "--ckpt_path", str(fsdp / "checkpoints/last.ckpt"), *strategy]
        measured.append(rows(two(words, tmp_path / name) / "test.csv")[0])
    for key in ("step", "test/loss", "test/bits_per_dim", "test/bits_per_dim_error", "test/fd_digits"):
        assert float(measured[0][key]) == pytest.approx(float(measured[1][key]), rel=1e-4), key


@pytest.mark.slow
def test_shards_in_bfloat16(tmp_path: Path) -> None:
    """Autocast chooses the types, as it does over whole weights.

    The weights themselves are no measure: softmax does not see the bias of the keys, whose gradient is rounding alone,
    and Adam makes whole steps of it.
    """
    config = [*recipe(tmp_path), "--trainer.precision", "bf16-mixed"]
    ddp, fsdp = two([*config, *DDP], tmp_path / "ddp"), two([*config, *FSDP2], tmp_path / "fsdp")
    same_logs(fsdp, ddp, loss=1e-3, rtol=1e-2)


# What is refused, before any process waits for another


class Own:
    """A strategy of whose ways with parameters nothing is known."""


def trainer_with(strategy: Any) -> Any:
    return SimpleNamespace(strategy=strategy, num_nodes=2, num_devices=4, accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (FSDPStrategy(), "the strategy is FSDPStrategy, which packs the parameters into flat pieces, but the EMA"),
        (Own(), "the strategy is Own, but the EMA and the order of the images are made for one device, DDP and FSDP2"),
        (DDPStrategy(static_graph=True), "static_graph is true, but a step takes 2 batches"),
        (ModelParallelStrategy(tensor_parallel_size=2), "tensor_parallel_size is 2, but the networks have no plan"),
        (ModelParallelStrategy(data_parallel_size=4), "data_parallel_size is 4, but the run has 8 devices"),
    ],
)
def test_what_breaks_the_average_is_refused(strategy: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_strategy(trainer_with(strategy))


@pytest.mark.parametrize(
    "strategy",
    [
        DDPStrategy(),
        ModelParallelStrategy(),
        ModelParallelStrategy(8, 1),
        SingleDeviceStrategy(torch.device("cpu")),
    ],
)
def test_what_works_is_not_refused(strategy: Any) -> None:
    check_strategy(trainer_with(strategy))


def test_a_command_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = ["fit", "--config", str(small_config(tmp_path)), *FSDP2, "--trainer.devices", "1"]
    with pytest.raises(SystemExit):
        main([*config, "--trainer.strategy.init_args.tensor_parallel_size", "2"])
    said = capfd.readouterr().err
    assert "error: tensor_parallel_size is 2, but the networks have no plan of how to cut a layer: leave it out" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_compiled_code_trains_the_same_on_several_devices(tmp_path: Path) -> None:
    """A DiT whole under DDP, and in blocks under FSDP2, against DDP without a compiler."""
    config = recipe(tmp_path, "", **{"trainer.max_steps": 8, "trainer.val_check_interval": 4})
    sides = {"eager": DDP, "whole": STATIC, "shards": FSDP2}
    made = {}
    for name, strategy in sides.items():
        compiled = [] if name == "eager" else ["--model.init_args.compile", "true"]
        made[name] = two([*config, *strategy, *compiled], tmp_path / name)
    compiled_for = {name: [int((made[name] / f"graphs{rank}").read_text()) for rank in (0, 1)] for name in sides}
    assert compiled_for["eager"] == [0, 0]
    assert min(compiled_for["whole"] + compiled_for["shards"]) > 0
    for name in ("whole", "shards"):
        for key, n in (("train/loss", 8), ("train/grad_norm", 8), ("val/loss", 2)):
            values = column(made[name], key)
            assert len(values) == n
            assert values == pytest.approx(column(made["eager"], key), rel=1e-3), (name, key)
