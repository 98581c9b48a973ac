"""Adapters that diffusers loads: the same outputs, whatever alpha is."""

from pathlib import Path
from typing import Any

import diffusers
import lightning
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lightning import checkpoints, load, records
from diffusion_lightning.conditioning import TextEncoder
from diffusion_lightning.interop.export import export
from diffusion_lightning.interop.lora import FILE, check_lora
from diffusion_lightning.modules import Diffusion, LoRA
from diffusion_lightning.modules.base.lora import B
from diffusion_lightning.networks import UNet
from diffusion_lightning.schedules import Linear

from ..support.captions import SAID

UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
    "norm_num_groups": 8, "cross_attention_dim": 16, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


WORDS: dict[str, Any] = {"words": 20, "length": 10, "layers": 1, "width": 16}
SMALL: dict[str, Any] = {
    "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "groups": 4, "token_width": 16,
    "cross_attention": [4],
}  # fmt: skip


class Wrapped(nn.Module):
    """diffusers' U-Net of Stable Diffusion behind this package's signature."""

    in_channels, size, token_width = 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        self.model = diffusers.UNet2DConditionModel(**UNET)

    def forward(self, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        return self.model(x_t, t, c[1], return_dict=False)[0]


def written(folder: Path, network: nn.Module, **lora: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of a network with random adapters, as a run would write it, and the weights that they adapt."""
    model = Diffusion(network, Linear(20), (4, 8, 8), conditioner=TextEncoder(**WORDS), lora=LoRA(**lora))
    model.conditioner.learn(SAID)
    for name, p in network.named_parameters():
        if name.endswith(B):
            nn.init.normal_(p, std=0.3)
    assert model.lora is not None
    model.lora.start("base.ckpt")
    assert model.lora.frozen is not None
    file = model.lora.frozen.write(folder / "frozen")
    kind = f"{type(network).__module__}.{type(network).__name__}"
    size = {} if isinstance(network, Wrapped) else {"in_channels": 4, "size": 8, **SMALL}
    arguments = {
        "network": {"class_path": kind, "init_args": size},
        "schedule": {"class_path": "Linear", "init_args": {"T": 20}},
        "shape": [4, 8, 8],
        "conditioner": {
            "class_path": "TextEncoder",
            "init_args": {"width": 16, "words": 20, "length": 10, "layers": 1},
        },
        "lora": {"class_path": "LoRA", "init_args": lora},
    }
    config = records.text({"model": {"class_path": "Diffusion", "init_args": arguments}})
    held = {"state_dict": model.state_dict(), checkpoints.CONFIG: config, "frozen": {"lora": file.stem}}
    torch.save({**held, "epoch": 0, "global_step": 2, checkpoints.LIGHTNING: lightning.__version__}, folder / "a.ckpt")
    return folder / "a.ckpt", {name.removeprefix("model."): x for name, x in model.lora._state().items()}


def pipeline(weights: dict[str, Tensor]) -> Any:
    """Stable Diffusion of these weights; its other parts have nothing to do here."""
    unet: Any = diffusers.UNet2DConditionModel(**UNET)
    unet.load_state_dict(weights)
    vae: Any = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    return diffusers.StableDiffusionPipeline(
        vae, None, None, unet.eval(), diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )


@pytest.mark.parametrize(
    "lora",
    [
        {"rank": 4, "alpha": 10.0},
        pytest.param({"rank": 4}, marks=pytest.mark.slow),
        pytest.param({"rank": 2, "alpha": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_diffusers_pipeline_takes_the_adapters_with_their_alpha(lora: dict[str, Any], tmp_path: Path) -> None:
    """Fault 33: an alpha that is lost scales every adapter by another number."""
    path, weights = written(tmp_path, Wrapped(), **lora)
    export(str(path), tmp_path / "out", ["lora"], [__name__])
    made, ours = pipeline(weights), load(path, [__name__]).denoiser.network
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected, before = ours(x, t, (None, tokens, None)), made.unet(x, t, tokens).sample
        made.load_lora_weights(tmp_path / "out")
        found = made.unet(x, t, tokens).sample
        made.fuse_lora()
        fused = made.unet(x, t, tokens).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-2
    assert "load_lora_weights" in (tmp_path / "out/README.md").read_text()


def test_without_its_metadata_diffusers_takes_the_rank_for_alpha(tmp_path: Path) -> None:
    """What the metadata are for: this reader, too, gives other outputs without them, and says nothing."""
    path, weights = written(tmp_path, Wrapped(), rank=4, alpha=10.0)
    export(str(path), tmp_path / "out", ["lora"], [__name__])
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(load_file(tmp_path / "out" / FILE), bare / FILE)
    outputs = []
    for folder in (tmp_path / "out", bare):
        made = pipeline(weights)
        made.load_lora_weights(folder)
        with torch.no_grad():
            outputs.append(made.unet(torch.ones(1, 4, 8, 8), 3, torch.ones(1, 5, 16)).sample)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_adapters_that_no_pipeline_takes_are_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path, UNet(4, 8, **SMALL), rank=2)
    with pytest.raises(ValueError, match="take adapters of its own networks, but the network is a UNet: export its"):
        export(str(path), tmp_path / "out", ["lora"])
    model = load(path)
    model.adapters = None
    with pytest.raises(ValueError, match="the model has no adapters, since it was trained without lora"):
        check_lora(model)
