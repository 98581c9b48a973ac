"""An average of a length chosen after the training, by the command."""

from pathlib import Path

import pytest
import torch

from diffusion_lightning import checkpoints, load
from diffusion_lightning.callbacks.base import profiles
from diffusion_lightning.cli import main
from diffusion_lightning.samplers import DDIM

from ..conftest import BARE, small_config
from ..support.commands import fails


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with snapshots at two, four and six."""
    folder = tmp_path_factory.mktemp("powers")
    main(["fit", "--config", str(small_config(folder)), *BARE, "--trainer.logger", "false", "--trainer.callbacks",
          "PowerEMA", "--trainer.callbacks.every_n_train_steps", "2", "--trainer.limit_val_batches", "0",
          "--checkpoint.monitor", "null", "--trainer.default_root_dir", str(folder / "run")])  # fmt: skip
    return folder / "run"


def test_the_tracks_own_lengths_give_the_tracks_to_half_precision(run: Path, tmp_path: Path) -> None:
    for track, sigma_rel in enumerate((0.05, 0.10)):
        out = tmp_path / f"{track}.ckpt"
        main(["average", str(run), "--sigma_rel", str(sigma_rel), "--out", str(out)])
        snapshot = checkpoints.read(run / "averages/step=6.ckpt")["state_dict"]
        found = checkpoints.read(out)["state_dict"]
        names = [name.removeprefix(f"{track}.") for name in snapshot if name.startswith(f"{track}.")]
        assert names
        for name in names:
            torch.testing.assert_close(found[name], snapshot[f"{track}.{name}"].float(), rtol=1e-3, atol=1e-5)


def test_an_average_draws_and_an_earlier_one_is_of_its_step(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "average.ckpt"
    main(["average", str(run), "--sigma_rel", "0.08", "--step", "4", "--out", str(out)])
    assert load(out).generate(2, DDIM(2)).shape == (2, 1, 8, 8)
    held = checkpoints.read(out)
    assert held["global_step"] == 4
    kept = [(profiles.exponent(s), step) for step in (2, 4, 6) for s in (0.05, 0.10)]
    share = profiles.weights(kept, [(profiles.exponent(0.08), 4)])[:, 0]
    name = "denoiser.network.conv_out.bias"
    files = [checkpoints.read(run / f"averages/step={step}.ckpt")["state_dict"] for step in (2, 4, 6)]
    values = torch.stack([file[f"{track}.{name}"].double() for file in files for track in (0, 1)])
    torch.testing.assert_close(held["state_dict"][name].double(), share @ values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sigma_rel", "0.5"], "sigma_rel is 0.5, but the mean of all weights has 0.2887"),
        (["--sigma_rel", "0.1", "--step", "7"], "at step 7 is asked for, but the snapshots end at step 6"),
        (["--sigma_rel", "long"], "invalid float value"),
    ],
)
def test_what_cannot_be_made_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert says in fails(capsys, "average", str(run), *words, "--out", str(tmp_path / "out.ckpt"))
    assert not (tmp_path / "out.ckpt").exists()


def test_a_run_without_snapshots_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    said = fails(capsys, "average", str(tmp_path), "--sigma_rel", "0.1", "--out", str(tmp_path / "out.ckpt"))
    assert "holds no snapshots: train with --trainer.callbacks+ PowerEMA" in said


def test_a_file_that_is_no_snapshot_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("checkpoints", "averages"):
        (tmp_path / place).mkdir()
    for place in ("checkpoints/last.ckpt", "averages/step=6.ckpt"):
        (tmp_path / place).write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    said = fails(capsys, "average", str(tmp_path), "--sigma_rel", "0.1", "--out", str(tmp_path / "out.ckpt"))
    assert "states no lengths of its averages" in said
