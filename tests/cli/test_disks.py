"""Full disks, folders that are none, file systems that can do less, and runs without images or numbers."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from diffusion_lightning.callbacks import Checkpoint, FiniteLoss
from diffusion_lightning.callbacks.base import folder as callbacks_folder
from diffusion_lightning.callbacks.base import save_picture, save_table
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.cli.commands import FORMATS
from diffusion_lightning.cli.run_folder import taken
from diffusion_lightning.data import Digits
from diffusion_lightning.loggers import MetricsFile
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.schedules import Cosine

from ..conftest import BARE, small_config, tiny_unet
from ..support.commands import fails
from ..support.disks import full_disk
from ..support.rows import rows

TRIED = pytest.mark.tried("Full disks and broken folders")
QUIET = (*BARE, "--trainer.logger", "false", "--trainer.limit_val_batches", "0",
         "--checkpoint.monitor", "null", "--trainer.enable_progress_bar", "false")  # fmt: skip


# Places that cannot be written to, found at the start


def spoil(root: Path, place: str) -> Path:
    """A file where a folder of the run should be, or a folder in the place of a file."""
    at = root / place
    at.parent.mkdir(exist_ok=True)
    if "." in place:
        at.mkdir()
    else:
        at.write_text("mine")
    return at


@TRIED
@pytest.mark.parametrize(
    "place",
    ["", "checkpoints", "samples", "chains", "wandb", "config.yaml", "metrics.csv"],
    ids=lambda place: place or "the run's folder",
)
def test_a_place_of_the_run_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    at = spoil(tmp_path / "run", place)
    trainer: Any = SimpleNamespace(is_global_zero=True, fast_dev_run=False, default_root_dir=str(tmp_path / "run"))
    with pytest.raises(OSError, match=re.escape(f"'{at}'")):
        taken(trainer, "fit").__enter__()
    assert at.is_dir() or at.read_text() == "mine"


@TRIED
def test_a_folder_that_is_a_file_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = spoil(tmp_path / "run", "checkpoints")
    monkeypatch.setattr(Diffusion, "training_step", lambda *_: pytest.fail("it trains"))
    said = fails(capsys, "fit", "--config", str(small_config(tmp_path)))
    assert f"error: {at}: " in said
    assert "choose another place" in said


def commands(run: Path, out: str) -> dict[str, list[str]]:
    """Each command that writes a place, with that place."""
    ckpt, images = str(run / "checkpoints/last.ckpt"), str(run)
    few = ["--trainer.enable_progress_bar", "false", "--n", "3", "--sampler", "DDIM", "--sampler.steps", "2"]
    scored = ["score", images, images, "--extractor", "digits"]
    return {
        "predict": ["predict", "--ckpt_path", ckpt, *few, "--out", out],
        "predict into an archive": ["predict", "--ckpt_path", ckpt, *few, "--out", f"{out}.npz"],
        "edit": ["edit", "film", "--ckpt_path", ckpt, "--out", f"{out}.webp"],
        **{f"export {kind}": ["export", ckpt, out, "--format", kind] for kind in FORMATS},
        "import": ["import", ckpt, f"{out}.ckpt"],
        **{f"score --{kind}": [*scored, f"--{kind}", f"{out}.png"] for kind in ("json", "save", "pairs")},
    }


COMMANDS = list(commands(Path(), ""))


@TRIED
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_below_a_file_is_found_at_the_start(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").write_text("mine")
    said = fails(capsys, *commands(run, str(tmp_path / "file/out"))[command])
    assert f"error: {tmp_path / 'file'}" in said
    assert "a file is where a folder should be" in said
    assert (tmp_path / "file").read_text() == "mine"


# Full disks


@TRIED
@pytest.mark.parametrize(
    "command",
    [
        "predict",
        "predict into an archive",
        *(
            pytest.param(f"export {k}", marks=[pytest.mark.slow] if k == "program" else [])
            for k in FORMATS
            if k != "lora"
        ),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = commands(run, str(tmp_path / "out"))[command]
    # Room for a lock and its name, and in the case of the archive for its pictures, but not for what is made.
    with full_disk({"predict": 200, "predict into an archive": 450}.get(command, 1500)):
        said = fails(capsys, *words)
    assert "File too large: make room there" in said
    assert str(tmp_path / "out") in said
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    if command == "predict into an archive":
        assert left == [f"out.npz.parts/00000{k}.png" for k in range(3)]
        assert f"{len(left)} samples are kept in {tmp_path / 'out.npz.parts'}, and the same command goes on" in said
    else:
        assert left == []
    main(words)


@TRIED
def test_a_disk_that_is_full_at_the_start_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path)
    with full_disk():
        said = fails(capsys, "fit", "--config", str(config), *QUIET)
    assert f"error: {tmp_path / 'run'}: File too large: make room there, or choose another place" in said


class FillsUp(Callback):
    """From a step on, no file has room for more than this many bytes."""

    def __init__(self, step: int, room: int) -> None:
        self.step, self.disk = step, full_disk(room)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.disk.__enter__()

    def on_exception(self, *args: Any) -> None:
        self.disk.__exit__(None, None, None)


@pytest.fixture
def files_of_any_length() -> Iterator[None]:
    """Afterwards, also if a run that was to end in an error does not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@TRIED
@pytest.mark.usefixtures("files_of_any_length")
def test_a_checkpoint_that_finds_no_room_ends_the_run_and_spares_the_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path)
    words = ["fit", "--config", str(config), *QUIET, "--trainer.callbacks", "tests.cli.test_disks.FillsUp"]
    said = fails(capsys, *words, "--trainer.callbacks.step", "3", "--trainer.callbacks.room", "3000")
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert f"{last}: File too large: make room there, or choose another place" in said
    assert said.endswith(f"; {last} is saved, and the same command with --ckpt_path last goes on")
    assert read(last)["global_step"] == read(last.with_name("step=2.ckpt"))["global_step"] == 2
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "step=2.ckpt"]


class Breaks(Callback):
    """After the first validation, what is written beside the checkpoints cannot be written any more."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        root = Path(trainer.default_root_dir)
        if trainer.sanity_checking or (root / "metrics.csv").is_dir():
            return
        for name in ("samples", "chains"):
            (root / name).rename(root / f"earlier {name}")
            (root / name).write_text("in the way")
        (root / "metrics.csv").unlink(missing_ok=True)
        (root / "metrics.csv").mkdir()
        (root / "closest_pairs.png").unlink(missing_ok=True)
        (root / "closest_pairs.png").mkdir()


@TRIED
def test_a_picture_or_a_row_that_cannot_be_written_costs_a_warning_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(callbacks_folder, "_warned", set())
    config = small_config(tmp_path, **{"trainer.enable_progress_bar": False})
    main(
        [
            "fit",
            "--config",
            str(config),
            "--trainer.logger",
            "false",
            "--trainer.callbacks+",
            "tests.cli.test_disks.Breaks",
        ]
    )
    root = tmp_path / "run"
    assert read(root / "checkpoints/last.ckpt")["global_step"] == 6
    said = [str(warning.message) for warning in recwarn]
    for name in ("samples", "chains", "closest_pairs.png", "metrics.csv"):
        assert len([words for words in said if words.startswith(str(root / name))]) == 1, (name, said)


@TRIED
def test_pictures_and_tables_without_room_are_left_out_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    monkeypatch.setattr(callbacks_folder, "_warned", set())
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    sheet = torch.zeros(8, 8, 1, dtype=torch.uint8)
    recwarn.clear()
    with full_disk():
        for step in (1, 2):
            save_picture(trainer, f"samples/step={step}.png", sheet, "samples", step)
            save_table(tmp_path / "samplers.csv", [("a", "b"), (1, 2)])
    assert len([w for w in recwarn if "File too large: it is left out and the work goes on" in str(w.message)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["samples"]
    assert list((tmp_path / "samples").iterdir()) == []
    save_picture(trainer, "samples/step=3.png", sheet, "samples", 3)
    assert (tmp_path / "samples/step=3.png").exists()


@TRIED
def test_rows_without_room_wait_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1.0}, 1)
    recwarn.clear()
    with full_disk(12):
        for step in (2, 3):
            log.log_metrics({"a": float(step)}, step)
    (warned,) = recwarn
    assert "File too large: the metrics wait in memory" in str(warned.message)
    log.log_metrics({"a": 4.0}, 4)
    assert [(row["step"], row["a"]) for row in rows(tmp_path / "metrics.csv")] == [
        (str(k), f"{k}.0") for k in range(1, 5)
    ]
    with full_disk(12):
        log.log_metrics({"a": 5.0}, 5)
    log.finalize("success")
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2", "3", "4", "5"]


# File systems without hard links


def small_fit(folder: Path, *callbacks: Callback, data: LightningDataModule | None = None) -> None:
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=6, logger=False, callbacks=list(callbacks),
        val_check_interval=2, check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(Diffusion(tiny_unet(), Cosine(T=20), (1, 8, 8)), data or Digits(batch_size=32))


@TRIED
@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP"])
def test_without_hard_links_checkpoints_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    def none(*_: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "link", none)
    small_fit(tmp_path, Checkpoint(every_n_train_steps=3))
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step=6.ckpt"]
    assert (folder / "last.ckpt").read_bytes() == (folder / "step=6.ckpt").read_bytes()


# Numbers that are none


class Says(Callback):
    """Logs these values, one a validation."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("val/said", next(self.values))


NAN, INF = float("nan"), float("inf")


@TRIED
@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        pytest.param((NAN, 2.0, 1.0), "min", 6, marks=pytest.mark.slow),
        ((NAN, 2.0, 3.0), "min", 4),
        pytest.param((1.0, NAN, 2.0), "min", 2, marks=pytest.mark.slow),
        pytest.param((NAN, 2.0, 3.0), "max", 6, marks=pytest.mark.slow),
        ((NAN, NAN, NAN), "max", None),
    ],
    ids=str,
)
def test_a_value_that_is_no_number_is_never_the_best(
    tmp_path: Path, values: tuple[float, ...], mode: Any, best: int | None
) -> None:
    small_fit(tmp_path, Says(*values), Checkpoint(every_n_train_steps=100, monitor="val/said", mode=mode))
    path = tmp_path / "checkpoints/best.ckpt"
    assert (read(path)["global_step"] if path.exists() else None) == best


@TRIED
def test_a_best_that_an_earlier_version_kept_as_nan_is_beaten(tmp_path: Path) -> None:
    checkpoint = Checkpoint(every_n_train_steps=100, monitor="val/said")
    checkpoint.load_state_dict({"best": NAN})
    small_fit(tmp_path, Says(3.0, NAN, 5.0), checkpoint)
    assert checkpoint.best == 3.0


@TRIED
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_validation_that_is_no_number_is_reported_once(tmp_path: Path, value: float) -> None:
    with pytest.warns(UserWarning, match="val/said is not finite after step 4: look at the validation images") as said:
        small_fit(tmp_path, Says(1.0, value, value), FiniteLoss())
    assert len([w for w in said if "val/said" in str(w.message)]) == 1


# Loaders without batches


class Once(IterableDataset):
    """A stream that does not say its length, and is read to its end by the first epoch."""

    def __init__(self) -> None:
        self.images = iter([(torch.zeros(1, 8, 8), 0)] * 60)

    def __iter__(self) -> Any:
        return self.images


class NoBatches(LightningDataModule):
    """Digits, but one of the splits is empty."""

    def __init__(self, split: str = "train", stream: bool = False) -> None:
        super().__init__()
        self.split, self.stream, self.digits = split, stream, Digits(batch_size=32)

    def setup(self, stage: str) -> None:
        self.digits.trainer = self.trainer
        self.digits.setup(stage)

    def _of(self, split: str) -> Any:
        if split != self.split:
            return getattr(self.digits, f"{split}_dataloader")()
        images = TensorDataset(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))
        return DataLoader(Once() if self.stream else images, batch_size=4)

    def train_dataloader(self) -> Any:
        return self._of("train")

    def val_dataloader(self) -> Any:
        return self._of("val")

    def test_dataloader(self) -> Any:
        return self._of("test")


OWN = ("--data", "tests.cli.test_disks.NoBatches", "--data.init_args.split")


@TRIED
@pytest.mark.filterwarnings("ignore:Total length")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*OWN, "train"], "the training loader gives no batch"),
        pytest.param(
            [*OWN, "train", "--data.init_args.stream", "true", "--trainer.max_steps", "50"],
            "the training loader gives no batch",
            marks=pytest.mark.slow,
        ),
        (["--trainer.limit_train_batches", "0"], "no step was trained, since the training data has no batches"),
        (["--trainer.max_steps", "0"], "trainer.max_steps is 0"),
        pytest.param(
            ["--trainer.fast_dev_run", "true", *OWN, "train"],
            "the training loader gives no batch",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["none", "a stream that ends for good", "limited to none", "no steps", "a dry run of none"],
)
def test_a_training_without_batches_is_an_error_and_names_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    config = small_config(tmp_path, **{"model.init_args.lr_scheduler": None})
    said = fails(capsys, "fit", "--config", str(config), *QUIET, *words)
    assert says in said
    assert (tmp_path / "run/checkpoints/last.ckpt").exists() == ("--data.init_args.stream" in words)


@TRIED
@pytest.mark.filterwarnings("ignore:Total length")
def test_a_best_checkpoint_without_validation_images_is_an_error_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUIET, "--checkpoint.monitor", "val/loss", "--trainer.limit_val_batches", "1.0", *OWN, "val"]
    said = fails(capsys, "fit", "--config", str(small_config(tmp_path)), *words)
    assert "the validation loader gives no batch" in said


@TRIED
@pytest.mark.filterwarnings("ignore:Total length")
@pytest.mark.parametrize("command", ["validate", pytest.param("test", marks=pytest.mark.slow)])
def test_an_evaluation_without_batches_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    split = "val" if command == "validate" else "test"
    said = fails(
        capsys, command, "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.logger", "false",
        "--trainer.callbacks", "[]", "--trainer.default_root_dir", str(tmp_path / "out"),
        f"--trainer.limit_{split}_batches", "0",
    )  # fmt: skip
    assert f"{command} found no batches, so there are no figures" in said
