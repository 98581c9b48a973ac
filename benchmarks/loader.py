"""What the data costs: the start of a run on CIFAR-10, and the loader's share of a training step.

    python -m benchmarks loader

On made pixels in CIFAR-10's true format, 50,000 and 10,000 images: (a) the seconds from the end of the imports to the
end of the first optimizer step of a small network through Lightning, (b) fetching, flipping and scaling a batch of 16
against a step of DDPM's network (35.7M parameters) in float32 on the CPU. Interleaved, medians; seconds are this
machine's, shares travel.
"""

import hashlib
import io
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision.datasets
from lightning.pytorch import Callback, Trainer

from diffusion_lightning.data import CIFAR10
from diffusion_lightning.metrics.evaluation import hashed
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Linear

from .measure import interleaved, machine, options, report, seconds


class Python2Pickler(pickle._Pickler):
    """Strings and bytes as Python 2 wrote them, which is how CIFAR-10 was written."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self: Any, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2(value: Any) -> bytes:
    """A pickle of Python 2 and numpy 1."""
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def write_cifar10(root: Path, n: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Six batches of n made images in `root/cifar-10-batches-py`; gives the attributes that torchvision checks by."""
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(seed)
    folder.mkdir(parents=True)

    def write(name: str, value: Any) -> list[str]:
        data = python2(value)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str) -> list[str]:
        pixels, labels = draw.integers(0, 256, (n, 3072), np.uint8), draw.integers(0, 10, n).tolist()
        return write(name, {"batch_label": name, "labels": labels, "data": pixels, "filenames": ["made.png"] * n})

    meta = write("batches.meta", {"num_cases_per_batch": n, "label_names": [f"kind {k}" for k in range(10)]})
    return {
        "train_list": [batch(f"data_batch_{k}") for k in range(1, 6)],
        "test_list": [batch("test_batch")],
        "meta": {"filename": meta[0], "key": "label_names", "md5": meta[1]},
    }


class FirstStep(Callback):
    """When the first optimizer step was done."""

    at = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        self.at = self.at or time.perf_counter()


def start(root: Path) -> float:
    """Seconds to the first step."""
    began, first = time.perf_counter(), FirstStep()
    network = UNet(in_channels=3, size=32, channels=16, multipliers=(1, 2), blocks=1, attention=(), groups=4)
    module = Diffusion(network, Linear(1000), (3, 32, 32))
    trainer = Trainer(
        max_steps=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[first],
    )  # fmt: skip
    trainer.fit(module, datamodule=CIFAR10(root, batch_size=16, flip=True))
    return first.at - began


def share(root: Path, batch: int, rounds: int) -> dict[str, Any]:
    """What fetching a batch takes of a step, a row."""
    data = CIFAR10(root, batch_size=batch, flip=True)
    data.setup("fit")
    module = Diffusion(UNet(), Linear(1000), data.shape)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    batches: Iterator[Any] = iter(data.train_dataloader())
    taken: list[Any] = [None]

    def load() -> None:
        taken[0] = data.on_after_batch_transfer(next(batches), 0)

    def step() -> None:
        x_0, _ = taken[0]
        t, eps = torch.randint(1, 1001, (batch,)), torch.randn_like(x_0)
        prediction = module.denoiser(module.schedule.q_sample(x_0, t, eps), t)
        (prediction.output - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found = interleaved({"load": load, "step": step}, rounds)
    cost, whole = found["load"], found["load"] + found["step"]
    return {"batch": batch, "loader, ms": 1e3 * cost, "step, ms": 1e3 * whole, "share": f"{cost / whole:.2%}"}


def main(args: Sequence[str]) -> None:
    given = options("loader", sizes=("cifar10",)).parse_args(args)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, value in write_cifar10(root).items():
            setattr(torchvision.datasets.CIFAR10, name, value)
        print(f"from the imports to the end of the first step: {start(root):.1f} s")
        reference = CIFAR10(root).reference("train")
        print(
            f"hashing the {len(reference):,} images for the metrics' cache: {seconds(lambda: hashed(reference)):.1f} s"
        )
        report("loader", machine("cpu"), [share(root, given.batch or 16, given.rounds or 9)], given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
