"""torch.compile as a flag: what is computed, what a checkpoint holds and how a run resumes stay what they are."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config
import yaml
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import cpu_vec_isa

from diffusion_lightning import random
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.loading import load
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base import compiling
from diffusion_lightning.modules.base.compiling import blocks
from diffusion_lightning.networks import DiT
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Cosine

from ..conftest import UNWATCHED, small_config, tiny_unet
from ..support.commands import fails
from ..support.exactness import same, state
from ..support.rows import rows

CHANGES: dict[str, Any] = {
    "model.init_args.network.init_args.multipliers": [1, 2],
    "model.init_args.network.init_args.dropout": 0.0,
    "trainer.logger": False,
    "trainer.log_every_n_steps": 1,
    "checkpoint.keep": None,
}


def config(folder: Path) -> Path:
    """A small one, whose samples are of one size: every other one is compiled for."""
    path = small_config(folder, **CHANGES)
    found = yaml.safe_load(path.read_text())
    found.update({**UNWATCHED, "metrics": found["metrics"]})
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.fixture(autouse=True)
def anew() -> None:
    """What other tests had compiled is forgotten."""
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    """How often something was compiled."""
    return counters["stats"]["unique_graphs"]


def test_blocks_are_the_members_of_lists_with_parameters() -> None:
    net = tiny_unet()
    assert blocks(net) == [*net.down, *net.middle, *net.up]
    dit = DiT(in_channels=1, size=8, width=32, depth=3, heads=2)
    assert blocks(dit) == list(dit.blocks)
    assert blocks(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize(("device", "graphs", "sharded", "recorded"), [
    ("cuda", True, False, True), ("cuda", False, False, False), ("cuda", True, True, False), ("cpu", True, False, None),
])  # fmt: skip
def test_kernels_are_recorded_on_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, graphs: bool, sharded: bool, recorded: bool | None
) -> None:
    asked: list[dict[str, Any]] = []
    fused: list[bool] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **given: asked.append(given))
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.setattr(random, "fuse", lambda: fused.append(True))
    compiling.compile_network(tiny_unet(), torch.device(device), sharded, graphs)
    assert asked
    for given in asked:
        assert given["dynamic"] is False
        assert given["options"]["deterministic"]  # else the code depends on what was fast when it was tried
        assert given["options"].get("triton.cudagraphs") == recorded
    assert bool(fused) == (device == "cuda")


@pytest.mark.parametrize(("accumulate", "world", "graphs"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_kernels_are_not_recorded_where_gradients_are_added_up(
    monkeypatch: pytest.MonkeyPatch, accumulate: int, world: int, graphs: bool
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(compiling, "compile_network", lambda *given: asked.append(given))
    module = Diffusion(tiny_unet(), Cosine(20), (1, 8, 8), compile=True)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=torch.device("cuda")), accumulate_grad_batches=accumulate, world_size=world
    )
    module.configure_model()
    assert asked == [(module.denoiser.network, torch.device("cuda"), False, graphs)]


def test_a_missing_compiler_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    says = fails(capsys, "fit", "--config", str(config(tmp_path)), "--model.init_args.compile", "true")
    assert "compile is true, but there is no C++ compiler g++ or clang++" in says
    assert "set the model's compile to false" in says


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails within the making of code, where PyTorch logs what it was to be given."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    cpu_vec_isa.pick_vec_isa()  # the first look for a compiler, once a process: it works
    with torch._inductor.config.patch({"cpp.cxx": (None, "false")}):
        says = fails(capsys, "fit", "--config", str(config(tmp_path)), "--model.init_args.compile", "true")
    assert "torch.compile could make no code of the network" in says
    assert says.endswith("set model.init_args.compile to false")


@pytest.mark.slow
def test_a_compiled_run_trains_what_an_eager_one_does_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    eagerly = ["fit", "--config", str(config(tmp_path))]
    compiled = [*eagerly, "--model.init_args.compile", "true"]
    main([*eagerly, "--trainer.default_root_dir", str(tmp_path / "eager")])
    assert not graphs()
    main([*compiled, "--trainer.default_root_dir", str(tmp_path / "whole")])
    assert graphs()
    eager, whole = (rows(tmp_path / name / "metrics.csv") for name in ("eager", "whole"))
    for key in ("train/loss", "train/grad_norm", "val/loss", "val/fd_digits"):
        values = [[float(row[key]) for row in side if row.get(key)] for side in (eager, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)
        assert values[0]
    names = [list(read(tmp_path / name / "checkpoints/last.ckpt")["state_dict"]) for name in ("eager", "whole")]
    assert names[0] == names[1]

    # Resumed when everything compiled is forgotten, as in a new process.
    torch._dynamo.reset()
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "whole/metrics.csv", tmp_path / "again")
    source = str(tmp_path / "whole/checkpoints/step=4.ckpt")
    main([*compiled, "--trainer.default_root_dir", str(tmp_path / "again"), "--ckpt_path", source])
    same(state(tmp_path / "again"), state(tmp_path / "whole"))
    assert rows(tmp_path / "again/metrics.csv")[-1]["val/loss"] == whole[-1]["val/loss"]

    found = graphs()
    assert load(tmp_path / "whole/checkpoints/last.ckpt").generate(2, DDIM(2)).isfinite().all()
    assert graphs() == found  # nobody waits for a compiler who only asks for two images


@pytest.mark.slow
def test_generate_gives_the_same_images_once_compiled() -> None:
    """In the order of calls of any size: what is computed does not depend on what was asked for before."""
    module = Diffusion(tiny_unet(), Cosine(20), (1, 8, 8)).eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    sampler = DDIM(5)
    eager = module.generate(6, sampler, batch_size=3)
    module.compile()
    module.generate(4, sampler)
    after = module.generate(6, sampler, batch_size=3)
    assert graphs()
    torch.testing.assert_close(after, eager, rtol=1e-3, atol=1e-4)
    assert not torch.equal(after, torch.zeros_like(after))
    torch._dynamo.reset()
    torch.testing.assert_close(module.generate(6, sampler, batch_size=3), after, rtol=0, atol=0)
