"""The selftest passes here, and fails where something is wrong."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning import images, random
from diffusion_lightning.cli import main
from diffusion_lightning.cli.selftest import run
from diffusion_lightning.modules.base import batches
from diffusion_lightning.samplers import DDIM, Step
from diffusion_lightning.schedules import Schedule

from ..support.commands import fails

CPU = torch.device("cpu")


def failures() -> list[str]:
    return [result.check.what for result in run(CPU) if not result.passed]


def test_the_table_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    main(["selftest", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.endswith("  yes")]
    assert len(rows) >= 15
    assert lines[-1].startswith(f"all {len(rows)} checks passed in ")
    header = next(line for line in lines if line.startswith("what"))
    for column in ("expected", "found", "tolerance", "pass"):
        assert column in header


def truncated(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


def antialiased(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)


def half_pixel(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x.float(), size=(size, size), mode="bilinear", align_corners=False)


def blind_to_rank(position: int, full: int, size: int, world: int, rank: int, device: torch.device) -> Tensor:
    return torch.arange(position * full, position * full + size)


def wrong_mean(self: DDIM, x_t: Tensor, at: Step) -> Tensor:
    signal, noise = at.schedule.scales(at.t, x_t)
    return signal * at.prediction.x_0 + noise * at.prediction.eps


def raises(*args: object) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("where", "name", "wrong", "caught"),
    [
        (images, "to_uint8", truncated, "grey levels"),
        (images, "resize_tf1", antialiased, "resize"),
        (images, "resize_tf1", half_pixel, "resize"),
        (batches, "in_blocks", blind_to_rank, "noise that two devices"),
        (Schedule, "_apply", nn.Module._apply, "half-precision"),
        (DDIM, "step", wrong_mean, "DDIM"),
        (random, "philox", raises, "Philox"),
    ],
)
def test_what_is_wrong_is_caught(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, wrong: Callable, caught: str
) -> None:
    monkeypatch.setattr(where, name, wrong)  # without it there are none, as the test above shows
    assert any(caught in what for what in failures())


def test_a_failure_ends_the_command_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "to_uint8", truncated)
    assert "1 of 39 checks failed (grey levels" in fails(capsys, "selftest", "--device", "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert f"no device {device}" in fails(capsys, "selftest", "--device", device)
