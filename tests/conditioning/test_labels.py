"""The condition: its table, its dropping, and its way through training and sampling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, Unconditional
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

from ..conftest import tiny_unet
from ..support.conditions import conditional, with_classes
from ..support.resumed import same_when_resumed


def test_no_condition_is_none() -> None:
    y = torch.arange(4)
    assert Unconditional()(y) is None
    assert torch.equal(Unconditional().dropped(y, Draw(0, "training", 0, y)), y)


def test_rows_of_the_table() -> None:
    labels = ClassLabels(3, 8)
    assert labels.table.weight.shape == (4, 8)
    assert torch.equal(labels(torch.tensor([2, 0, 3])), labels.table.weight[[2, 0, 3]])
    assert ClassLabels(3, 8, dropout=0.0).table.weight.shape == (3, 8)


def test_labels_are_dropped_as_often_as_asked() -> None:
    labels, draw = ClassLabels(3, 8, dropout=0.25), Draw(0, "training", 0, torch.arange(4000))
    y = torch.ones(4000, dtype=torch.long)
    dropped = labels.dropped(y, draw)
    assert torch.equal(dropped == 3, draw.fractions("label dropout") < 0.25)
    assert (dropped[dropped != 3] == 1).all()
    assert abs((dropped == 3).double().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(ClassLabels(3, 8, dropout=0.0).dropped(y, draw), y)


def test_a_condition_changes_the_image_and_the_default_takes_each_class_in_turn() -> None:
    model, sampler = conditional(), DDIM(3)
    by_default = model.generate(6, sampler)
    by_hand = model.generate(6, sampler, y=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert torch.equal(by_default, by_hand)
    other = model.generate(6, sampler, y=torch.tensor([0, 1, 2, 0, 1, 3]))
    assert torch.equal(other[:5], by_hand[:5])
    assert not torch.allclose(other[5], by_hand[5])


@pytest.mark.parametrize("first", [0, 3, 5])
def test_conditions_belong_to_numbers_in_blocks_too(first: int) -> None:
    model, sampler = conditional(), DDIM(3)
    y = torch.arange(10) % 4
    whole = model.generate(10, sampler, y=y, batch_size=4)
    part = model.generate(4, sampler, y=y[first : first + 4], first=first, batch_size=4)
    assert torch.equal(part, whole[first : first + 4])


def test_the_loss_depends_on_the_label_and_trains_its_row() -> None:
    model, x = conditional(), torch.randn(4, 1, 8, 8)
    t, draw = torch.tensor([3, 9, 15, 20]), Draw(0, "training", 0, torch.arange(4))
    losses = [model._losses(x, t, draw, torch.full((4,), y)) for y in (0, 1)]
    assert not torch.allclose(losses[0], losses[1])
    losses[1].sum().backward()
    conditioner: Any = model.conditioner
    rows = conditioner.table.weight.grad.abs().sum(1)
    assert rows[1] > 0
    assert rows[2] == rows[3] == 0


@pytest.mark.parametrize(
    ("y", "says"),
    [
        ([0, 4], "a label is 4, but the model has 3 classes: give labels 0 … 2, or 3 for the null condition"),
        ([0, -1], "a label is -1"),
        ([0], "there are 2 samples"),
    ],
)
def test_impossible_labels_are_refused(y: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        conditional().generate(2, DDIM(2), y=torch.tensor(y))


def test_a_model_without_condition_takes_none() -> None:
    model = Diffusion(tiny_unet(), Linear(20), (1, 8, 8))
    with pytest.raises(ValueError, match="y was given"):
        model.generate(2, DDIM(2), y=torch.tensor([0, 1]))


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="and a condition of width 16"):
        Diffusion(tiny_unet(), Linear(20), (1, 8, 8), conditioner=ClassLabels(3, 16))


@pytest.mark.parametrize(
    "make", [tiny_unet, lambda: DiT(1, 8, patch=4, width=24, depth=1, heads=2)], ids=["U-Net", "DiT"]
)
def test_a_width_that_is_left_out_is_the_networks(make: Callable[[], Any]) -> None:
    network = make()
    model = Diffusion(network, Linear(20), conditioner=ClassLabels(3))
    assert model.conditioner.state_dict()["table.weight"].shape == (4, network.condition_width)
    assert model.shape == (1, 8, 8)


def test_a_network_that_states_neither_width_nor_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="ClassLabels has no width, and Conv2d states no condition_width"):
        Diffusion(nn.Conv2d(1, 1, 1), Linear(20), (1, 8, 8), conditioner=ClassLabels(3))
    with pytest.raises(ValueError, match="no shape, and Identity does not state in_channels and size"):
        Diffusion(nn.Identity(), Linear(20))


@pytest.mark.parametrize("kwargs", [{"classes": 0}, {"width": 0}, {"dropout": 1.0}])
def test_impossible_tables_are_refused(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="describe no table"):
        ClassLabels(**{"classes": 3, "width": 8, **kwargs})


@pytest.mark.slow
def test_a_conditional_run_from_fit_to_predict_and_resumed(tmp_path: Path) -> None:
    """Stopped and resumed it ends with the weights, and the table, of the undisturbed one; then samples of a class."""
    none, whole = ["--trainer.logger", "false"], same_when_resumed(with_classes(tmp_path), tmp_path)
    main(["test", "--ckpt_path", str(whole), *none])
    drawn = ["predict", "--ckpt_path", str(whole), "--n", "2", "--out", str(tmp_path / "drawn"), "--sampler", "DDIM",
             "--sampler.steps", "2"]  # fmt: skip
    main([*drawn, "--y", "3"])
    for other in ([], ["--y", "4"], ["--y", "11"]):
        with pytest.raises(SystemExit):
            main([*drawn, *other])


def test_classes_that_the_data_do_not_tell_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.zeros((300, 8, 8), dtype=np.uint8))
    config = str(
        with_classes(tmp_path, data={"class_path": "Arrays", "init_args": {"path": str(tmp_path / "images.npy")}})
    )
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--trainer.logger", "false"])
    assert "has 10 classes, but all training images are of class 0" in capsys.readouterr().err
