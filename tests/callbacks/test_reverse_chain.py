"""The chain's picture: what is in it, where it lies, and that it is the way of the very samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.callbacks.reverse_chain import ReverseChain
from diffusion_lightning.callbacks.sample_grid import SampleGrid
from diffusion_lightning.cli import main
from diffusion_lightning.denoising import Velocity
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM, Ancestral, Heun, Karras, Leading, Sampler, Trailing, UniformLogSNR
from diffusion_lightning.schedules import Cosine, Linear, Schedule, ZeroTerminalSNR

from ..conftest import tiny_unet
from ..support.callbacks import Album, with_callbacks

SAMPLER = {"class_path": "DDIM", "init_args": {"steps": 7}}


def test_after_every_validation_the_way_of_the_samples_that_generate_gives(tmp_path: Path) -> None:
    config = with_callbacks(
        tmp_path,
        ("sample_grid.SampleGrid", {"n": 3, "sampler": SAMPLER, "seed": 5}),
        ("reverse_chain.ReverseChain", {"n": 3, "frames": 4, "sampler": SAMPLER, "seed": 5}),
        **{"checkpoint.monitor": None},
    )
    main(["fit", "--config", str(config)])
    kept = [(key, step) for key, step, _ in Album.pictures]
    assert kept == [("samples", 3), ("reverse_chain", 3), ("samples", 6), ("reverse_chain", 6)]
    assert {path.name for path in (tmp_path / "run/chains").iterdir()} == {"step=3.png", "step=6.png"}

    model, sampler = diffusion_lightning.load(tmp_path / "run/checkpoints/last.ckpt"), DDIM(7)
    chain = np.asarray(Image.open(tmp_path / "run/chains/step=6.png"))
    assert np.array_equal(chain, np.asarray(Album.pictures[-1][2]))
    assert chain.shape == (3 * 72 + 8, 4 * 72 + 8)
    final, start = model.generate(3, sampler, seed=5), model.generate(3, start_only, seed=5)
    assert np.array_equal(chain[:, -80:], column(final))
    assert np.array_equal(chain[:, :80], column(start))
    grid = np.asarray(Image.open(tmp_path / "run/samples/step=6.png"))
    assert np.array_equal(grid, images.grid(images.to_uint8(final)).squeeze(-1).numpy())

    words = ["--config", str(config), "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt")]
    for command, *others in (("validate",), ("test", "test/bound")):
        main([command, *words])
        assert [(key, step) for key, step, _ in Album.pictures] == [
            (key, 6) for key in ("samples", "reverse_chain", *others)
        ]
        assert np.array_equal(chain, np.asarray(Album.pictures[1][2]))


def start_only(denoise: Any, schedule: Schedule, x_T: Tensor, c: Tensor | None, seeds: Tensor) -> Tensor:
    return x_T


def column(samples: Tensor) -> np.ndarray:
    return images.grid(images.to_uint8(samples), columns=1).squeeze(-1).numpy()


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), ZeroTerminalSNR(Linear())], ids=["linear", "cosine", "zero"])
@pytest.mark.parametrize("spacing", [Trailing(), Leading(), UniformLogSNR(), Karras()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [3, 9, 10, 50, 1000])
def test_the_frames_are_even_in_what_there_is_to_see(schedule: Schedule, spacing: Any, steps: int) -> None:
    """Of the angles that a sampler visits: no frame could lie nearer to its place, others' frames aside."""
    chain, visited, frames = shown(Ancestral(steps, spacing=spacing), schedule)
    assert len(frames) == chain.columns == min(10, steps + 1)
    assert {frames[0], frames[-1]} == {max(visited), 0}
    free = set(visited) - set(frames)
    angle = {t: float(torch.atan2(*reversed(schedule.alpha_sigma(t)))) for t in visited}
    top = angle[frames[0]]
    for k, t in enumerate(frames[1:-1], start=1):
        wanted = top * (1 - k / (len(frames) - 1))
        assert abs(angle[t] - wanted) <= min([abs(angle[s] - wanted) for s in free], default=top) + 1e-12


def shown(sampler: Sampler, schedule: Schedule) -> tuple[ReverseChain, list[int], list[int]]:
    """A chain, the times that its sampler visits, and those that are shown, in their order."""
    chain = ReverseChain(sampler=sampler)
    chain.setup(None, Diffusion(tiny_unet(), schedule, (1, 8, 8), Velocity()), "fit")  # type: ignore[arg-type]
    visited = sampler.times(schedule)
    return chain, visited, [t for t in visited if t in chain._shown]


def test_under_the_cosine_schedule_even_angles_are_even_times() -> None:
    _, _, frames = shown(Heun(None, spacing=Trailing()), Cosine(s=1e-6))
    assert frames == pytest.approx([1000 - k * 1000 / 9 for k in range(10)], abs=3)


def test_each_frame_is_the_x_t_of_its_step() -> None:
    """The chain of Ancestral, from the start again with the very draws, cut off at each frame; within ±1 as shown."""
    model = Diffusion(tiny_unet(), Cosine(12), (1, 8, 8))
    chain = ReverseChain(n=2, frames=6, sampler=Ancestral())
    chain.setup(None, model, "fit")  # type: ignore[arg-type]
    made = chain.make(model, 2, 3)
    assert made.shape == (2, 6, 1, 8, 8)
    frames = sorted(chain._shown, reverse=True)

    class Cut(Ancestral):
        end: int
        found: Tensor

        def times(self, schedule: Schedule) -> list[int]:
            return [t for t in range(12, -1, -1) if t >= self.end]

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            self.found = super().__call__(*args, **kwargs)
            return self.found

    for k, t in enumerate(frames[1:], start=1):
        cut = Cut()
        cut.end = t
        model.generate(2, cut, first=3)
        assert torch.equal(made[:, k], cut.found.clamp(-1, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ReverseChain(n=0), "a picture of 0 samples"),
        (lambda: SampleGrid(n=-1), "a picture of -1 samples"),
        (lambda: ReverseChain(frames=1), "a chain of 1 frames"),
    ],
)
def test_pictures_of_nothing_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_sampler_of_too_many_steps_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="takes 50 steps, but the schedule has T = 12"):
        shown(DDIM(50), Cosine(12))
