"""The loss by bins of t, against sums by hand, over resumes and accumulated batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from diffusion_lightning.callbacks import LossByTimestep
from diffusion_lightning.data import Digits
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.schedules import Linear

from ..conftest import tiny_unet
from ..support.rows import rows


class Spy(Callback):
    """Keeps what a step returns."""

    def __init__(self) -> None:
        self.train: list[dict] = []
        self.val: list[dict] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train.append(outputs)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.val.append(outputs)


def run(
    folder: Path, callback: LossByTimestep, T: int = 50, **kwargs: Any
) -> tuple[Trainer, Spy, list[dict[str, str]]]:
    torch.manual_seed(0)
    module, spy = Diffusion(tiny_unet(), Linear(T), (1, 8, 8)), Spy()
    ckpt_path = kwargs.pop("ckpt_path", None)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        logger=CSVLogger(folder, "", ""), log_every_n_steps=2, callbacks=[spy, callback], enable_checkpointing=False,
        val_check_interval=kwargs.get("max_steps", 4) * kwargs.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None, num_sanity_val_steps=0, **kwargs,
    )  # fmt: skip
    trainer.fit(module, Digits(batch_size=100), ckpt_path=ckpt_path)
    return trainer, spy, rows(folder / "metrics.csv")


def by_hand(outputs: list[dict], low: int, high: int) -> float:
    t, losses = (torch.cat([o[key] for o in outputs]) for key in ("t", "losses"))
    return losses[(t >= low) & (t <= high)].double().mean().item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_band_is_the_mean_of_its_examples(tmp_path: Path, accumulate: int) -> None:
    _, spy, logged = run(tmp_path, LossByTimestep(bins=5), max_steps=4, accumulate_grad_batches=accumulate)
    bands = {"01-10": (1, 10), "11-20": (11, 20), "21-30": (21, 30), "31-40": (31, 40), "41-50": (41, 50)}
    for step, seen in (("1", spy.train[: 2 * accumulate]), ("3", spy.train[2 * accumulate :])):
        found = next(row for row in logged if row["step"] == step and row["train_by_t/01-10"])
        for name, (low, high) in bands.items():
            assert float(found[f"train_by_t/{name}"]) == pytest.approx(by_hand(seen, low, high), rel=1e-6)
    found = next(row for row in logged if row["val_by_t/01-10"])
    assert len(spy.val) == 3
    for name, (low, high) in bands.items():
        assert float(found[f"val_by_t/{name}"]) == pytest.approx(by_hand(spy.val, low, high), rel=1e-6)


@pytest.mark.parametrize(("T", "bands", "names"), [(7, 3, ["1-2", "3-4", "5-7"]), (2, 10, ["1-1", "2-2"])])
def test_bands_cover_every_time_once(tmp_path: Path, T: int, bands: int, names: list[str]) -> None:
    _, spy, logged = run(tmp_path, LossByTimestep(bands), T=T, max_steps=2)
    assert [key.partition("/")[2] for key in logged[0] if key.startswith("val_by_t")] == names
    found = next(row for row in logged if row[f"val_by_t/{names[0]}"])
    for name in names:
        low, high = map(int, name.split("-"))
        assert float(found[f"val_by_t/{name}"]) == pytest.approx(by_hand(spy.val, low, high), rel=1e-6)


def test_a_resume_in_the_middle_of_an_interval_logs_the_same(tmp_path: Path) -> None:
    _, _, whole = run(tmp_path / "whole", LossByTimestep(5), max_steps=4)
    trainer, _, _ = run(tmp_path / "first", LossByTimestep(5), max_steps=3)
    trainer.save_checkpoint(tmp_path / "3.ckpt")
    _, _, rest = run(tmp_path / "rest", LossByTimestep(5), max_steps=4, ckpt_path=tmp_path / "3.ckpt")
    expected, found = (next(row for row in logged if row["step"] == "3" and row["train_by_t/01-10"])
                       for logged in (whole, rest))  # fmt: skip
    for key in (key for key in expected if key.startswith("train_by_t")):
        assert found[key] == expected[key]


def test_no_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="0 bins is none"):
        LossByTimestep(bins=0)
