"""What each recipe costs, as its first lines say: parameters, and the arithmetic of training and of `test`.

    python -m benchmarks.recipes

A step of training is counted as three passes forward; `test` as its samples by its sampler and the bound in bits/dim
of the set's held-out images at all times.
"""

from pathlib import Path

from diffusion_lightning.modules import Diffusion
from diffusion_lightning.records import read

from .measure import complete

CONFIGS = Path(__file__).parent.parent / "configs"
# Images that `test` finds held out; of one's own pictures, which `folder` is for, any number.
HELD_OUT = {"digits": 297, "celeba64_ddpm": 19_962, "imagenet64_iddpm": 50_000, "folder": 0, "folder_classes": 0}
OTHERS = 10_000


def row(path: Path) -> str:
    """A line of the table."""
    config = complete(path)
    model = read(config["model"], Diffusion, "model").make()
    forward, T = model.operations(), model.schedule.T
    parameters = sum(p.numel() for p in model.parameters())
    training = 3 * forward * config["data"]["init_args"]["batch_size"] * config["trainer"]["max_steps"]
    samples = 0
    if config["metrics"] is not None:
        given = config["metrics"]["init_args"]
        steps = (given["test_sampler"] or {"init_args": {}})["init_args"].get("steps") or T
        samples = given["test_n"] * steps * forward
    bound = HELD_OUT.get(path.stem, OTHERS) * T * forward
    return (
        f"| {path.stem} | {parameters:,} | {forward / 1e9:.2f} | {training / 1e15:,.1f} | {samples / 1e15:,.1f} "
        f"| {bound / 1e15:,.1f} |"
    )


def main() -> None:
    print("| config | parameters | GFLOP an image | PFLOP of training | of `test`: samples | bits/dim |")
    print("|---|---|---|---|---|---|")
    for path in sorted(CONFIGS.glob("*.yaml")):
        print(row(path))


if __name__ == "__main__":
    main()
