"""What each choice brings on the digits: trains configs/digits.yaml with one thing changed at a time.

    python -m benchmarks.choices [NAME ...]

The same seed and the same 1,500 steps for all. `fd_digits` is what the last validation logs (297 samples of the
averaged weights, 300 of the 1,000 times), bits/dim what `test` reports for the 297 held-out images at all times. About
four minutes a row on two CPU cores; runs/choices/ keeps the runs, and what is finished is not trained again.
"""

import csv
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/digits.yaml"
ROOT = Path("runs/choices")
MODEL = "--model.init_args."

V = [f"{MODEL}parameterization", "Velocity"]
MIN_SNR = [f"{MODEL}weighting", "MinSNR"]
LEARNED = [f"{MODEL}network.init_args.out_channels", "2"]

CHOICES: dict[str, list[str]] = {
    "ε, cosine, simple, fixed variance": [],
    "x_0": [f"{MODEL}parameterization", "X0"],
    "v": V,
    "linear": [f"{MODEL}schedule", "Linear"],
    "min-SNR": MIN_SNR,
    "learned variance": LEARNED,
    "v, min-SNR": [*V, *MIN_SNR],
    "learned variance, the bound alone, loss-aware t": [
        *LEARNED, f"{MODEL}weighting", "ZeroWeight", f"{MODEL}timesteps", "LossAware",
    ],
}  # fmt: skip


def folder(name: str) -> Path:
    """Where a choice's run lies."""
    return ROOT / name.replace("ε", "eps").replace(",", "").replace(" ", "_")


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "diffusion_lightning", *words, "--trainer.logger", "false"], check=True)


def train(name: str) -> None:
    """Fits and tests a choice, unless that is done."""
    root = folder(name)
    last = root / "checkpoints/last.ckpt"
    if not last.exists():
        command("fit", "--config", CONFIG, "--trainer.default_root_dir", str(root),
                "--trainer.val_check_interval", "1500", *CHOICES[name])  # fmt: skip
    if not (root / "test.csv").exists():
        command("test", "--ckpt_path", str(last), "--trainer.callbacks", "[]")


def last_row(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


def row(name: str) -> str:
    """A line of the table of docs/choosing.md."""
    root = folder(name)
    fit, test = last_row(root / "metrics.csv"), last_row(root / "test.csv")
    distance, bits, error = (
        float(row[key])
        for row, key in (
            (fit, "val/fd_digits"),
            (test, "test/bits_per_dim"),
            (test, "test/bits_per_dim_error"),
        )
    )
    return f"| {name} | {distance:.3f} | {bits:.3f} ± {error:.3f} |"


def main(*names: str) -> None:
    names = names or tuple(CHOICES)
    for name in names:
        train(name)
    print("| changed | `val/fd_digits` | `test/bits_per_dim` |\n|---|---|---|")
    for name in names:
        print(row(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
