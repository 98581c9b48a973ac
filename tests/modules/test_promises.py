"""What every module that makes images promises, whatever its objective: one suite for all of them."""

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.checkpoints import averaged, read
from diffusion_lightning.cli import main

from ..conftest import UNWATCHED
from ..support.commands import fails
from ..support.exactness import child, same, state
from ..support.generatives import MODELS, STEPS, words
from ..support.pair import run_in

KINDS = list(MODELS)
pytestmark = pytest.mark.slow  # a run of each, and two teachers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each."""
    made = tmp_path_factory.mktemp("promises")
    for kind in KINDS:
        if not (made / kind).exists():
            main(words(kind, made))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_function_of_its_number(folder: Path, kind: str) -> None:
    """Whatever is drawn beside it, and in whatever block; bitwise at one block size."""
    model = diffusion_lightning.load(folder / kind)
    whole = model.generate(7, seed=5, batch_size=4)
    assert whole.shape == (7, 1, 8, 8)
    assert float(whole.abs().max()) <= 1
    assert torch.equal(model.generate(3, seed=5, first=2, batch_size=4), whole[2:5])
    torch.testing.assert_close(model.generate(7, seed=5), whole, rtol=0, atol=1e-4)
    assert not torch.equal(model.generate(7, seed=6, batch_size=4), whole)
    assert not torch.equal(model.generate(7, y=3, seed=5, batch_size=4)[1:3], whole[1:3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.tried("Resuming")
def test_killed_five_times_and_resumed_is_bitwise_the_undisturbed_run(folder: Path, tmp_path: Path, kind: str) -> None:
    """SIGKILLed within a step, its gradients ready: at a stage's or curriculum's first step, last, and in between.

    Stages are of 4 steps, curricula change at every 2nd or at the 5th and 10th, and there is a checkpoint at every 2nd.
    A GAN's steps are of two updates: it dies before both, or with its generator updated and its discriminator not.
    """
    root, networks = tmp_path / "killed", 2 if kind == "GAN" else 1
    given = [*words(kind, folder), "--trainer.default_root_dir", str(root), "--ckpt_path", "last"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_lightning.cli.fit"])
    reached = 0
    for number, at in enumerate((2, 4, 5, 8, 11, None)):
        updates = None if at is None else (at - reached) * networks + number % networks
        process = context.Process(target=child, args=(given, updates))
        process.start()
        process.join()
        assert process.exitcode == (0 if at is None else -signal.SIGKILL)
        reached = read(root / "checkpoints/last.ckpt")["global_step"]
        assert reached == (STEPS if at is None else at // 2 * 2)
    same(state(folder / kind), state(root))


@pytest.mark.parametrize("kind", KINDS)
def test_validation_and_loading_see_the_average(folder: Path, kind: str) -> None:
    checkpoint = read(folder / kind / "checkpoints/last.ckpt")
    model, average = diffusion_lightning.load(folder / kind), averaged(checkpoint)
    loaded = model.state_dict()
    assert average
    assert not any(name.startswith("teacher.") for name in average)
    assert all(torch.equal(loaded[name], x) for name, x in average.items())
    assert any(not torch.equal(checkpoint["state_dict"][name], x) for name, x in average.items())


@pytest.mark.parametrize("kind", KINDS)
def test_predict_gives_what_generate_does_and_goes_on(folder: Path, tmp_path: Path, kind: str) -> None:
    given = ["predict", "--ckpt_path", str(folder / kind), "--out", str(tmp_path / "drawn"), "--seed", "4",
             "--batch_size", "4", "--trainer.accelerator", "cpu"]  # fmt: skip
    main([*given, "--n", "3"])
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "drawn").glob("*.png")}
    main([*given, "--n", "6"])
    pictures = sorted((tmp_path / "drawn").glob("*.png"))
    assert len(pictures) == 6
    assert all(path.stat().st_mtime_ns == first[path.name] for path in pictures if path.name in first)
    model = diffusion_lightning.load(folder / kind)
    own: Any = model.drawn_by()
    sampler = None if own is None else own[0](**own[1])
    made = images.to_uint8(model.generate(6, sampler, seed=4, batch_size=4))
    shown = torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in pictures])
    torch.testing.assert_close(shown.int(), made.int().view_as(shown), rtol=0, atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_test_measures_a_checkpoint(folder: Path, kind: str, tmp_path: Path) -> None:
    main(["test", "--ckpt_path", str(folder / kind), "--trainer.accelerator", "cpu", "--trainer.limit_test_batches",
          "2", "--trainer.default_root_dir", str(tmp_path)])  # fmt: skip
    text = (tmp_path / "test.csv").read_text(encoding="utf-8")
    assert "test/loss" in text
    assert ("test/bits_per_dim" in text) == (kind == "Diffusion")


@pytest.mark.parametrize("kind", KINDS)
def test_export_is_right_or_refused(folder: Path, kind: str, tmp_path: Path, capsys: Any) -> None:
    given = ["export", str(folder / kind), str(tmp_path / "out"), "--format", "weights"]
    if kind != "GAN":
        main(given)
        from safetensors.torch import load_file

        found = load_file(next((tmp_path / "out").glob("*.safetensors")))
        network = dict(diffusion_lightning.load(folder / kind).denoiser.network.state_dict())
        assert any(torch.equal(x, y) for x in found.values() for y in network.values() if x.shape == y.shape)
        if kind == "ProgressiveDistillation":  # whose scale of guidance is a condition
            for form in ("pipeline", "program"):
                says = fails(capsys, "export", str(folder / kind), str(tmp_path / form), "--format", form)
                assert f"takes the scale of guidance as a condition, but the format {form} has none" in says
    else:
        assert "holds GAN weights, but those of a Diffusion are needed" in fails(capsys, *given)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_draw_as_one(folder: Path, tmp_path: Path, kind: str) -> None:
    """Half the batch for each of two: the same losses to rounding, hence the same gradients, and the same images."""
    weights, drawn = list[dict[str, Tensor]](), list[Tensor]()
    for devices in (1, 2):
        root = tmp_path / str(devices)
        given = [*words(kind, folder),
                 "--data.init_args.batch_size", str(24 // devices), "--trainer.max_steps", "3",
                 "--trainer.val_check_interval", "6", "--grid.n", "5"]  # fmt: skip
        if kind != "GAN":  # whose masks are drawn by each device
            given += ["--model.init_args.network.init_args.dropout", "0"]
        for key in UNWATCHED.keys() - {"grid"}:
            given += [f"--{key}", "null"]
        run_in(devices, given, root)
        weights.append(read(root / "checkpoints/last.ckpt")["state_dict"])
        (picture,) = (root / "samples").glob("*step=3*.png")
        drawn.append(torch.from_numpy(np.array(Image.open(picture))).int())
    torch.testing.assert_close(*drawn, rtol=0, atol=1)
    alone, shared = weights
    assert alone.keys() == shared.keys()
    for name, x in alone.items():
        torch.testing.assert_close(shared[name], x, rtol=1e-3, atol=2e-5)
