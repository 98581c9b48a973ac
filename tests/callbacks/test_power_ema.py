"""The averages that snapshots are made of: their update, their files, their way through a stop."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_lightning import checkpoints
from diffusion_lightning.callbacks import Checkpoint, PowerEMA, power_ema
from diffusion_lightning.callbacks.base import folder, profiles


class Root(LightningModule):
    """After optimizer step k its one weight is √k."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(77.0))  # which never counts

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.w * 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.w.data.fill_(self.global_step**0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trained(folder: Path, steps: int, ema: PowerEMA, resume: bool = False, accumulate: int = 1) -> Root:
    module = Root()
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate,
        callbacks=[ema, Checkpoint(every_n_train_steps=7)],
    )  # fmt: skip
    data: DataLoader[Any] = DataLoader(torch.zeros(1000, 1), batch_size=1)  # type: ignore[arg-type]
    trainer.fit(module, data, ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
    return module


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step=")) for path in (folder / "averages").glob("*.ckpt"))


def mean(gamma: float, n: int) -> float:
    """Of √k, k = 1 … n, by the discrete profile."""
    reach = (torch.arange(n + 1, dtype=torch.float64) / n) ** (gamma + 1)
    return float(((reach[1:] - reach[:-1]) * torch.arange(1, n + 1).double().sqrt()).sum())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_averages_are_those_of_their_profiles(tmp_path: Path, accumulate: int) -> None:
    """Beside a weight that steps before the callback sees it; the initial one never counts."""
    ema = PowerEMA(every_n_train_steps=10)
    trained(tmp_path, 40, ema, accumulate=accumulate)
    for gamma, average in zip(ema.gammas, ema.averages, strict=True):
        assert float(average["w"]) == pytest.approx(mean(gamma, 40), rel=0.02)
    assert steps_of(tmp_path) == [10, 20, 30, 40]
    kept = checkpoints.read(tmp_path / "averages/step=40.ckpt")
    assert (kept["global_step"], kept["sigma_rel"]) == (40, [0.05, 0.10])
    for track, own in enumerate(ema.averages):
        assert kept["state_dict"][f"{track}.w"].dtype == torch.float16
        assert torch.equal(kept["state_dict"][f"{track}.w"], own["w"].half())


def test_no_more_than_so_many_stay(tmp_path: Path) -> None:
    trained(tmp_path, 50, PowerEMA(every_n_train_steps=2, keep=4))
    assert steps_of(tmp_path) == [16, 32, 48]
    assert PowerEMA(every_n_train_steps=2, keep=4).distance(8) == 2


def test_a_resumed_run_has_the_averages_of_the_undisturbed(tmp_path: Path) -> None:
    whole, halves = PowerEMA(every_n_train_steps=5), PowerEMA(every_n_train_steps=5)
    trained(tmp_path / "whole", 30, whole)
    trained(tmp_path / "halves", 18, PowerEMA(every_n_train_steps=5))
    trained(tmp_path / "halves", 30, halves, resume=True)
    for ours, theirs in zip(halves.averages, whole.averages, strict=True):
        assert torch.equal(ours["w"], theirs["w"])
    assert steps_of(tmp_path / "halves") == steps_of(tmp_path / "whole")


def test_snapshots_of_steps_that_are_done_again_are_removed(tmp_path: Path) -> None:
    trained(tmp_path, 14, PowerEMA(every_n_train_steps=5))
    (tmp_path / "averages/step=20.ckpt").write_bytes(b"of a future that is not")
    trained(tmp_path, 15, PowerEMA(every_n_train_steps=5), resume=True)
    assert steps_of(tmp_path) == [5, 10, 15]


def test_snapshots_make_an_average_of_another_length(tmp_path: Path) -> None:
    """As the mathematics says of continuous time, to the few steps and the half precision here."""
    ema = PowerEMA(every_n_train_steps=10)
    trained(tmp_path, 200, ema)
    files = [checkpoints.read(path) for path in (tmp_path / "averages").glob("*.ckpt")]
    kept = [(gamma, file["global_step"]) for file in files for gamma in ema.gammas]
    values = torch.stack([file["state_dict"][f"{track}.w"].double() for file in files for track in (0, 1)])
    gamma = profiles.exponent(0.15)
    found = profiles.weights(kept, [(gamma, 200)])[:, 0] @ values
    assert float(found) == pytest.approx(mean(gamma, 200), rel=0.01)


def test_other_lengths_are_refused_at_a_resume(tmp_path: Path) -> None:
    trained(tmp_path, 7, PowerEMA())
    with pytest.raises(ValueError, match=r"averages have sigma_rel \[0.05, 0.1\], but this run's have \[0.07, 0.1\]"):
        trained(tmp_path, 14, PowerEMA([0.07, 0.10]), resume=True)


GOOD = {"sigma_rel": [0.05, 0.1], "updates": 3, "averages": [{"w": torch.zeros(())}] * 2}


@pytest.mark.parametrize(
    "bad",
    [{"updates": "x"}, {"updates": -1}, {"updates": True}, {"averages": [{}]}, {"averages": "ab"},
     {"averages": [1, 2]}, {"averages": [{"w": 1.0}] * 2}, {"averages": None}],
    ids=str,
)  # fmt: skip
def test_a_state_that_is_none_is_refused(bad: dict[str, Any]) -> None:
    PowerEMA().load_state_dict(GOOD)
    with pytest.raises(ValueError, match="is no 2 averages and a number of updates: use another checkpoint"):
        PowerEMA().load_state_dict({**GOOD, **bad})


@pytest.mark.parametrize("average", [{"v": torch.zeros(())}, {"w": torch.zeros(1)}], ids=["a name", "a shape"])
def test_averages_of_another_model_are_refused_before_a_step(tmp_path: Path, average: dict[str, Tensor]) -> None:
    ema = PowerEMA()
    ema.load_state_dict({**GOOD, "averages": [average] * 2})
    with pytest.raises(ValueError, match="of other parameters than the model's"):
        trained(tmp_path, 2, ema)


@pytest.mark.parametrize(("every", "keep"), [(0, 8), (10, 1)])
def test_too_few_snapshots_are_refused(every: int, keep: int) -> None:
    with pytest.raises(ValueError, match="made of several snapshots"):
        PowerEMA(every_n_train_steps=every, keep=keep)


def test_a_snapshot_without_room_costs_a_warning_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def full(tensors: dict[str, Any], stream: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "_warned", set())
    monkeypatch.setattr(power_ema.torch, "save", full)
    ema = PowerEMA(every_n_train_steps=5)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=10, logger=False, callbacks=[ema],
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(Root(), DataLoader(torch.zeros(1000, 1), batch_size=1))  # type: ignore[arg-type]
    assert (trainer.global_step, ema.updates, steps_of(tmp_path)) == (10, 10, [])
    assert len([w for w in recwarn if "it is left out and the work goes on" in str(w.message)]) == 1
