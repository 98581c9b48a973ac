"""diffusers' DiT as a network: its size, its one embedder, its labels' dropping, its place in a training."""

import copy
from typing import Any

import pytest
import torch

from diffusion_lightning.conditioning import ClassLabels, Labels
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiffusersDiT, DiT
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

TINY: dict[str, Any] = {"size": 8, "depth": 3, "heads": 2, "head_channels": 8, "classes": 5}


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_size_of_dit_xl_2() -> None:
    """DiT's training prints 675,129,632: its table of 256 fixed positions is among them."""
    with torch.device("meta"):
        network, own, every = DiffusersDiT(), DiT(out_channels=8), DiffusersDiT(shared=False)
        table = ClassLabels(1000, own.condition_width).table
    assert count(network) == count(own) + count(table) == 675_129_632 - 256 * 1152
    embedder = count(network.model.transformer_blocks[0].norm1.emb)
    assert count(every) == count(network) + 27 * embedder


def test_all_blocks_have_one_embedder_whose_weights_are_stored_once() -> None:
    network = DiffusersDiT(**TINY)
    assert [name for name in network.state_dict() if "class_embedder" in name] == [
        "model.transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    ]
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 4])
    every = DiffusersDiT(**TINY, shared=False)
    weights = network.state_dict()
    for name in every.state_dict().keys() - weights.keys():
        weights[name] = weights[f"model.transformer_blocks.0.norm1{name.partition('.norm1')[2]}"]
    every.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y), every(x, t, y), rtol=0, atol=0)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.zero_()
        assert not torch.equal(other(x, t, y), network(x, t, y))
        torch.testing.assert_close(network(x, t, y), every(x, t, y), rtol=0, atol=0)  # a copy has its own


def test_labels_are_dropped_by_the_conditioners_draws_alone() -> None:
    """In training mode too, in which diffusers' own class drops a tenth by the global generator in each block."""
    network = DiffusersDiT(**TINY).train()
    x, t, y = torch.randn(64, 4, 8, 8), torch.full((64,), 10), torch.arange(64) % 5
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first, second = network(x, t, y), network(x, t, y)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    labels, draw = Labels(5, dropout=0.25), Draw(0, "training", 0, torch.arange(4000))
    dropped = labels.dropped(torch.ones(4000, dtype=torch.long), draw)
    assert torch.equal(dropped == 5, draw.fractions("label dropout") < 0.25)
    assert not labels.state_dict()


def model(**changes: Any) -> Diffusion:
    return Diffusion(DiffusersDiT(**TINY), Linear(), conditioner=Labels(5, **{"dropout": 0.5, **changes}))


def test_it_trains_and_the_null_condition_has_a_row() -> None:
    trained = model()
    assert trained.predicts_variance
    assert trained.shape == (4, 8, 8)
    x, t = torch.randn(8, 4, 8, 8), torch.arange(1, 9) * 100
    draw = Draw(0, "training", 0, torch.arange(8))
    y = trained.conditioner.dropped(torch.zeros(8, dtype=torch.long), draw)
    assert set(y.tolist()) == {0, 5}
    trained._losses(x, t, draw, trained.conditioner(y)).sum().backward()
    network: Any = trained.denoiser.network
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    rows = network.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.grad.abs().sum(1)
    assert (rows > 0).tolist() == [True, False, False, False, False, True]
    guided, plain = (trained.generate(2, DDIM(2), guidance=scale) for scale in (3.0, None))
    assert not torch.allclose(guided, plain)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Diffusion(DiffusersDiT(**TINY), Linear()), "set it to Labels of 5 classes"),
        (
            lambda: Diffusion(DiffusersDiT(**TINY), Linear(), conditioner=ClassLabels(5, 16)),
            "set it to Labels of 5 classes",
        ),
        (
            lambda: Diffusion(DiffusersDiT(**TINY), Linear(), conditioner=Labels(4)),
            "the conditioner has 4 classes, but DiffusersDiT has 5",
        ),
        (lambda: DiffusersDiT(size=9), "patches of 2 pixels, which 9 pixels do not allow"),
        (lambda: Labels(0), "give classes ≥ 1"),
        (lambda: Labels(3, dropout=1.0), "dropout in"),
        (lambda: model(dropout=0.0).generate(1, DDIM(1), guidance=2.0), "the conditioner's dropout is 0"),
        (lambda: DiffusersDiT(**TINY)(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1).long()), "was built for"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
