"""The way down of a U-Net, and its pooling by attention against PyTorch's own."""

from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lightning.networks import HalfUNet
from diffusion_lightning.networks.half_unet import AttentionPool

SMALL: dict[str, Any] = {"classes": 5, "in_channels": 2, "size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1,
                         "attention": (4,), "groups": 4, "heads": 2}  # fmt: skip


def test_pooling_is_attention_of_the_mean_to_all() -> None:
    pool, x = AttentionPool(8, 9, 2, 8).double(), torch.randn(3, 8, 3, 3).double()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([pool.query.weight, pool.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([pool.query.bias, pool.key_value.bias]))
        theirs.out_proj.load_state_dict(pool.out.state_dict())
    pixels = x.flatten(2).mT
    tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], 1) + pool.place
    torch.testing.assert_close(pool(x), theirs(tokens[:, :1], tokens, tokens)[0][:, 0], rtol=1e-10, atol=1e-10)


def test_each_image_and_its_time_have_logits_of_their_own() -> None:
    network = HalfUNet(**SMALL).eval()
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0, 5, 500, 999])
    found = network(x, t)
    assert found.shape == (4, 5)
    for k in range(4):
        torch.testing.assert_close(network(x[k : k + 1], t[k : k + 1]), found[k : k + 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, t.flip(0)), found, atol=1e-4)


def test_every_parameter_and_the_image_have_a_gradient() -> None:
    network, x = HalfUNet(**SMALL), torch.randn(4, 2, 8, 8, requires_grad=True)
    network(x, torch.tensor([0, 5, 500, 999])).square().sum().backward()
    for name, p in [("the image", x), *network.named_parameters()]:
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"classes": 1}, "classes is 1, but"), ({"size": 7}, "levels halve the image 1 times, which 7 pixels"),
     ({"groups": 3}, "a level of 8 features cannot be normalised in 3 groups"),
     ({"attention": (5,)}, "attention is set at 5 pixels, but the U-Net's levels are at"),
     ({"heads": 3}, "attention over 16 features cannot be split among 3 heads")],
)  # fmt: skip
def test_impossible_networks_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HalfUNet(**{**SMALL, **changes})
