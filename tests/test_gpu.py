"""What holds on a GPU as it does on a CPU: `pytest -m gpu`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning import random
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.data.base.images import Bytes
from diffusion_lightning.extractors import InceptionV3
from diffusion_lightning.images import to_uint8
from diffusion_lightning.loading import load
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT, UNet
from diffusion_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Sampler
from diffusion_lightning.schedules import Cosine

from .conftest import UNWATCHED, small_config
from .support.exactness import same, state
from .support.rows import rows
from .support.weights import random_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions in float32 as on a CPU, where they would be in TF32; nothing compiled for other tests."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def module() -> Diffusion:
    torch.manual_seed(0)
    net = UNet(in_channels=1, size=16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), groups=8, dropout=0.1)
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.xavier_uniform_(p)
    return Diffusion(net, Cosine(100), (1, 16, 16)).eval()


@pytest.mark.parametrize("fused", [False, True])
def test_draws_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setattr(random, "_fused", None)
    if fused:
        random.fuse()
    for seed in (3, torch.tensor([1, 2**40, 7])):
        here, there = torch.arange(3), torch.arange(3, device="cuda")
        for draw in (random.words, lambda n, *place: random.normal((n,), *place)):
            cpu, gpu = (draw(1001, seed, "x", 5, sample) for sample in (here, there))
            assert gpu.is_cuda
            if cpu.dtype == torch.int64:
                assert torch.equal(cpu, gpu.cpu())
            else:
                torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "sampler", [Ancestral(steps=10), DDIM(10), DPMSolver(10), Heun(10)], ids=lambda s: type(s).__name__
)
def test_samples_are_those_of_a_cpu(sampler: Sampler) -> None:
    made = [module().to(device).generate(4, sampler).cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)
    assert made[0].std() > 0.1


@pytest.mark.parametrize("reduced", [False, True])
def test_compiled_the_network_and_its_gradients_are_those_of_a_cpu(reduced: bool) -> None:
    """Group norms are computed in another way there."""
    found = []
    for device in ("cpu", "cuda"):
        made = module().to(device)
        net = made.denoiser.network
        if device == "cuda":
            made.compile()
        x_t, t = torch.linspace(-1, 1, 8 * 256, device=device).view(8, 1, 16, 16), torch.arange(8, device=device) * 10
        for _ in range(3):  # as it comes, recorded, and by what was recorded
            net.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=reduced and device == "cuda"):
                output = net(x_t, t)
            output.float().square().mean().backward()
        slopes = {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}
        found.append((output.float().detach().cpu(), slopes))
    (cpu, grads), (gpu, others) = found
    bound = 0.03 if reduced else 1e-4
    assert (gpu - cpu).norm() <= bound * cpu.norm()
    for name, grad in grads.items():
        assert (others[name] - grad).norm() <= 2 * bound * grad.norm() + 1e-7, name


@pytest.mark.parametrize("make", [UNet, DiT])
@pytest.mark.parametrize("compiled", [False, True])
def test_attention_to_tokens_and_its_gradients_are_those_of_a_cpu(make: type[Any], compiled: bool) -> None:
    """Padding of NaN too."""
    shape = {"channels": 32, "multipliers": (1, 2), "groups": 8, "dropout": 0.0, "cross_attention": (8,), "heads": 4}
    kwargs: dict[str, Any] = shape if make is UNet else {"width": 32, "depth": 2, "heads": 4}
    found = []
    for device in ("cpu", "cuda"):
        draw = torch.Generator().manual_seed(0)
        net = make(in_channels=1, size=16, token_width=24, **kwargs)
        for p in net.parameters():
            p.data.copy_(float(p.ndim == 1) + torch.randn(p.shape, generator=draw) * 0.1)
        given = [torch.randn(shape, generator=draw) for shape in ((3, 1, 16, 16), (3, net.condition_width), (3, 7, 24))]
        mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
        given[2][~mask] = torch.nan
        x_t, vector, tokens = (x.to(device).requires_grad_() for x in given)
        net.to(device)
        if compiled and device == "cuda":
            if make is UNet:
                net.set_memory_format(torch.device(device), False, compiled=True)
            net.compile(dynamic=False)
        output = net(x_t, torch.tensor([0, 3, 9], device=device), (vector, tokens, mask.to(device)))
        slopes = torch.autograd.grad(output.square().mean(), [x_t, vector, tokens, *net.parameters()])
        found.append([x.detach().cpu() for x in (output, *slopes)])
    for cpu, gpu in zip(*found, strict=True):
        assert cpu.isfinite().all()
        assert (gpu - cpu).norm() <= 2e-4 * cpu.norm() + 1e-7


class Strict(Callback):
    """In some steps, in which nothing is logged, shown or saved and all is recorded, nothing waits for the device."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 5 <= trainer.global_step < 10 else "default")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


def config(folder: Path, callbacks: Sequence[str], **changes: Any) -> str:
    """A small one for the GPU with these callbacks, without evaluations; code is made for its steps alone."""
    common = {
        "trainer.accelerator": "gpu", "trainer.limit_val_batches": 0, "trainer.logger": False,
        "model.init_args.network.init_args.dropout": 0.1, "data.init_args.flip": True, "checkpoint.keep": None,
    }  # fmt: skip
    path = small_config(folder, **{**common, **changes})
    found = yaml.safe_load(path.read_text())
    found.update(UNWATCHED)
    found["trainer"]["callbacks"] = [{"class_path": name} for name in callbacks]
    path.write_text(yaml.safe_dump(found))
    return str(path)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_the_device(tmp_path: Path, compiled: bool, precision: str) -> None:
    changes = {
        "trainer.max_steps": 14, "trainer.log_every_n_steps": 12, "trainer.precision": precision,
        "model.init_args.compile": compiled, "model.init_args.lr_scheduler.init_args.total_steps": 14,
        "checkpoint.every_n_train_steps": 100,
    }  # fmt: skip
    path = config(tmp_path, ["LossByTimestep", "Throughput", "tests.test_gpu.Strict"], **changes)
    main(["fit", "--config", path])
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_run_trains_what_an_eager_one_does(tmp_path: Path, accumulate: int) -> None:
    changes = {
        "trainer.accumulate_grad_batches": accumulate, "model.init_args.network.init_args.dropout": 0.0,
        "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    found = []
    for compiled in ("false", "true"):
        path, root = config(tmp_path, ["LossByTimestep"], **changes), tmp_path / compiled
        main(["fit", "--config", path, "--trainer.default_root_dir", str(root), "--model.init_args.compile", compiled])
        found.append(
            [[float(row[key]) for row in rows(root / "metrics.csv")] for key in ("train/loss", "train/grad_norm")]
        )
    assert len(found[0][0]) == 6
    for eager, made in zip(*found, strict=True):
        assert made == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, compiled: bool) -> None:
    changes = {"trainer.precision": "bf16-mixed", "model.init_args.compile": compiled}
    path = config(tmp_path, ["LossByTimestep"], **changes)
    main(["fit", "--config", path, "--trainer.default_root_dir", str(tmp_path / "whole")])
    torch._dynamo.reset()
    source = str(tmp_path / "whole/checkpoints/step=4.ckpt")
    main(["fit", "--config", path, "--trainer.default_root_dir", str(tmp_path / "again"), "--ckpt_path", source])
    same(state(tmp_path / "again"), state(tmp_path / "whole"))


def test_images_that_fit_lie_on_the_gpu(tmp_path: Path) -> None:
    class Where(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            where.append(trainer.train_dataloader.dataset.images.device.type)  # type: ignore[union-attr]
            assert batch[0].is_cuda
            assert batch[0].dtype == torch.float32

    where: list[str] = []
    trainer = Trainer(
        accelerator="gpu", devices=1, max_steps=2, logger=False, callbacks=[Where()], limit_val_batches=0,
        enable_checkpointing=False, default_root_dir=tmp_path, enable_progress_bar=False,
    )  # fmt: skip
    net = UNet(in_channels=1, size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    trainer.fit(Diffusion(net, Cosine(20), (1, 8, 8)), Digits(batch_size=32, flip=True))
    assert where == ["cuda", "cuda"]


def test_batches_are_those_of_a_cpu() -> None:
    data = Digits(flip=True)
    data.setup("fit")
    images, y = data.splits["train"]
    here, there = Bytes(images, y, 3), Bytes(images.cuda(), y.cuda(), 3)
    for epoch, first in ((0, 0), (0, 500), (1, 0)):
        cpu, gpu = (side[epoch, torch.arange(first, first + 64)] for side in (here, there))
        assert gpu[0].is_cuda
        assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, gpu, strict=True))


def test_inception_is_that_of_a_cpu(tmp_path: Path) -> None:
    weights = str(random_weights(tmp_path / "inception.pth"))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    cpu = InceptionV3(weights)(images)
    for precision, bound in (("float32", 1e-4), ("bfloat16", 0.03)):
        gpu = InceptionV3(weights, precision).to("cuda")(images.to("cuda")).cpu()  # type: ignore[arg-type]
        assert (gpu - cpu).norm() <= bound * cpu.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_is_validated_tested_and_sampled_there(tmp_path: Path, compiled: bool) -> None:
    changes = {
        "trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed", "trainer.logger": False,
        "model.init_args.compile": compiled,
    }  # fmt: skip
    main(["fit", "--config", str(small_config(tmp_path, **changes))])
    checkpoint, out = str(tmp_path / "run/checkpoints/last.ckpt"), str(tmp_path / "samples.npz")
    main(["test", "--ckpt_path", checkpoint])
    main([
        "predict", "--ckpt_path", checkpoint, "--n", "8", "--out", out, "--sampler", "DDIM", "--sampler.steps", "3",
        "--trainer.precision", "32-true",
    ])  # fmt: skip
    expected = to_uint8(load(checkpoint).generate(8, DDIM(3))).permute(0, 2, 3, 1)
    made = torch.from_numpy(np.load(out)["arr_0"])
    assert (made.int() - expected.int()).abs().max() <= 1


def test_the_selftest_passes_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["selftest", "--device", "cuda"])
    out = capsys.readouterr().out
    assert f"on {torch.cuda.get_device_name()}" in out
    assert "checks passed in" in out
