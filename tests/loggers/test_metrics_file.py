"""The run's own record of its metrics."""

from pathlib import Path

from diffusion_lightning.loggers import MetricsFile

from ..support.rows import rows


def test_one_row_a_step_and_columns_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 1.0, "epoch": 0}, 9)
    log.log_metrics({"train/loss": 0.5}, 19)
    log.log_metrics({"val/loss": 0.7, "epoch": 1}, 19)
    log.log_metrics({"train/loss": 0.25}, 29)
    log.log_metrics({"epoch": 2}, 30)
    assert rows(path) == [
        {"step": "9", "train/loss": "1.0", "val/loss": ""},
        {"step": "19", "train/loss": "0.5", "val/loss": "0.7"},
        {"step": "29", "train/loss": "0.25", "val/loss": ""},
    ]


def test_a_resumed_run_goes_on_and_repeats_no_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in (9, 19, 29):
        first.log_metrics({"train/loss": float(step)}, step)
    second = MetricsFile(path)
    second.log_metrics({"train/loss": 0.0, "val/loss": 1.0}, 19)
    second.log_metrics({"train/loss": 0.0}, 29)
    assert [(row["step"], row["train/loss"]) for row in rows(path)] == [("9", "9.0"), ("19", "0.0"), ("29", "0.0")]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n9,1.0\n19,0.5\n2")
    MetricsFile(path).log_metrics({"train/loss": 0.25}, 29)
    assert [row["step"] for row in rows(path)] == ["9", "19", "29"]
