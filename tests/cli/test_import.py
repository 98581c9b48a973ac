"""Checkpoints of other projects, made in their formats, through `import` and into every command."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

import diffusion_lightning
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.interop import Diffusers, OpenAI, ReleasedDiT
from diffusion_lightning.interop.diffusers import unet_config
from diffusion_lightning.loading import start_from
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT, UNet
from diffusion_lightning.objectives import LossAware
from diffusion_lightning.schedules import Linear

from ..conftest import small_config
from ..support.rows import rows
from ..support.weights import random_unet


def randomised(network: Any) -> Any:
    for p in network.parameters():
        p.data = torch.randn_like(p) * (0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
    return network.eval()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}


def of_diffusers(**changes: Any) -> UNet2DModel:
    return randomised(
        UNet2DModel(
            **{
                "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "norm_num_groups": 4,
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **changes,
            }
        )
    )  # fmt: skip


DDPM = {
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}


@pytest.mark.parametrize("details", [DDPM, {}], ids=["DDPM's", "diffusers' own example's"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pipeline_of_diffusers(tmp_path: Path, details: dict, prediction: str) -> None:
    theirs = of_diffusers(**details)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200, prediction_type=prediction)
    DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path / "theirs")
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    model = diffusion_lightning.load(tmp_path / "ours.ckpt")
    assert model.schedule.T == 200
    torch.testing.assert_close(model.schedule.alpha_bar[1:].float(), scheduler.alphas_cumprod, rtol=5e-4, atol=1e-9)
    x = torch.randn(2, 1, 8, 8)
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(200)
    for t in (1, 50, 200):
        with torch.no_grad():
            expected = theirs(x, t - 1).sample
            torch.testing.assert_close(
                model.denoiser.network(x, torch.tensor([t - 1] * 2)), expected, rtol=1e-5, atol=1e-5
            )
            x_0 = ddim.step(expected, t - 1, x).pred_original_sample
            torch.testing.assert_close(model.denoiser(x, t).x_0.clamp(-1, 1), x_0, rtol=1e-3, atol=1e-3)
    main(["predict", "--ckpt_path", str(tmp_path / "ours.ckpt"), "--n", "3", "--out", str(tmp_path / "drawn"),
          "--sampler", "DDIM", "--sampler.steps", "2", "--trainer.accelerator", "cpu"])  # fmt: skip
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3


def test_there_and_back_by_the_commands(run: Path, tmp_path: Path) -> None:
    """An exported pipeline imported again gives the same tensors; its schedule's betas are kept as a table."""
    last = run / "checkpoints/last.ckpt"
    main(["export", str(last), str(tmp_path / "out")])
    main(["import", str(tmp_path / "out"), str(tmp_path / "back.ckpt")])
    ours, back = diffusion_lightning.load(last), diffusion_lightning.load(tmp_path / "back.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))
    torch.testing.assert_close(back.schedule.alpha_bar, ours.schedule.alpha_bar, rtol=1e-12, atol=0)


def test_a_network_of_diffusers_with_classes(tmp_path: Path) -> None:
    theirs = of_diffusers(num_class_embeds=3)
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    model = diffusion_lightning.load(tmp_path / "ours.ckpt")
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([3, 700, 40]), torch.tensor([2, 0, 1])
    with torch.no_grad():
        expected = theirs(x, t, class_labels=y).sample
        torch.testing.assert_close(model.denoiser.network(x, t, model.conditioner(y)), expected, rtol=1e-5, atol=1e-5)


def test_the_older_layout_of_diffusers(tmp_path: Path) -> None:
    """All files in one folder, a .bin, and the attentions' names before 0.13, as DDPM's checkpoints were put up."""
    theirs = of_diffusers(**DDPM)
    old = {}
    for name, x in theirs.state_dict().items():
        for new, before in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            name = name.replace(new, before)
        old[name] = x
    (tmp_path / "theirs").mkdir()
    torch.save(old, tmp_path / "theirs/diffusion_pytorch_model.bin")
    (tmp_path / "theirs/config.json").write_text(json.dumps({**theirs.config, "_class_name": "UNet2DModel"}))
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    (tmp_path / "theirs/scheduler_config.json").write_text(json.dumps({**scheduler, "beta_schedule": "linear"}))
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    model = diffusion_lightning.load(tmp_path / "ours.ckpt")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser.network(x, t), theirs(x, t).sample, rtol=1e-5, atol=1e-5)
    assert type(model.schedule).__name__ == "Linear"


@pytest.fixture(scope="module")
def iddpm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, UNet]:
    """A file of improved-diffusion's kind, and the configuration of its model."""
    folder = tmp_path_factory.mktemp("iddpm")
    network = randomised(
        UNet(1, 8, 8, (1, 2), 1, (4,), 0.0, 4, out_channels=2, heads=2, scale_shift=True, release="IDDPM")
    )
    torch.save(OpenAI().write(network, weights(network)), folder / "ema_0.9999_500000.pt")
    arguments = {"multipliers": [1, 2], "attention": [4], "out_channels": 2, "heads": 2, "scale_shift": True,
                 "release": "IDDPM"}  # fmt: skip
    config = small_config(
        folder,
        **{f"model.init_args.network.init_args.{key}": value for key, value in arguments.items()},
        **{"model.init_args.rescale_timesteps": True},
    )
    return folder / "ema_0.9999_500000.pt", config, network


@pytest.mark.slow
def test_a_file_of_improved_diffusion_through_every_command(
    iddpm: tuple[Path, Path, UNet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, config, network = iddpm
    ckpt = tmp_path / "ours.ckpt"
    main(["import", str(source), str(ckpt), "--config", str(config)])
    assert "from improved-diffusion" in capsys.readouterr().out
    model = diffusion_lightning.load(ckpt)
    assert model.denoiser.rescale_timesteps
    assert all(
        torch.equal(a, b) for a, b in zip(model.denoiser.network.parameters(), network.parameters(), strict=True)
    )
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.logger", "false"]
    main(["validate", "--ckpt_path", str(ckpt), *root])
    assert (tmp_path / "run/validate.csv").exists()
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--ckpt_path", str(ckpt), *root])
    assert "holds imported weights and no training to go on with" in capsys.readouterr().err
    main(["fit", "--config", str(config), "--init_from", str(ckpt), *root, "--trainer.max_steps", "1",
          "--model.init_args.optimizer.lr", "1e-12", "--model.init_args.lr_scheduler", "null"])  # fmt: skip
    tuned = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert tuned["global_step"] == 1
    for name, p in network.named_parameters():
        torch.testing.assert_close(tuned["state_dict"][f"denoiser.network.{name}"], p.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "holds weights and does not say of which network or schedule: give a configuration"),
        (["CONFIG", "--model.init_args.network.init_args.blocks", "2"], "has no input_blocks.2.0.in_layers"),
        (["CONFIG", "--model.init_args.network.init_args.channels", "16"], r"\[32, 8\], but the network's time_mlp1"),
        (["CONFIG", "--model.init_args.network.init_args.attention", "[]"], "has no output_blocks.1.1.conv.weight"),
        (["CONFIG", "--model.init_args.conditioner", "ClassLabels", "--model.init_args.conditioner.classes", "10",
          "--model.init_args.conditioner.width", "32"], r"table of classes is missing, the model's conditioner's is"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(
    iddpm: tuple[Path, Path, UNet], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    source, config, _ = iddpm
    words = [f"--config={config}" if word == "CONFIG" else word for word in options]
    with pytest.raises(SystemExit):
        main(["import", str(source), str(tmp_path / "ours.ckpt"), *words])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert not list(tmp_path.iterdir())


def test_dit_with_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = randomised(DiT(in_channels=1, size=8, patch=2, out_channels=2, **{**DiT.S, "depth": 2}))
    labels = ClassLabels(10, 384)
    theirs = ReleasedDiT().write(network, weights(network)) | {ReleasedDiT.labels: labels.table.weight.detach()}
    saved = {"model": {k: torch.zeros_like(x) for k, x in theirs.items()}, "ema": theirs, "opt": {}}
    torch.save({**saved, "args": argparse.Namespace(model="DiT-S/2")}, tmp_path / "theirs.pt")
    main(["import", str(tmp_path / "theirs.pt"), str(tmp_path / "ours.ckpt")])
    model = diffusion_lightning.load(tmp_path / "ours.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(model.denoiser.network.parameters(), network.parameters(), strict=True)
    )
    conditioner: Any = model.conditioner
    assert torch.equal(conditioner.table.weight, labels.table.weight)
    assert model.shape == (1, 8, 8)
    assert model.predicts_variance
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        expected = network(x, t, labels(y))
        assert torch.equal(model.denoiser.network(x, t, model.conditioner(y)), expected)
    main(["predict", "--ckpt_path", str(tmp_path / "ours.ckpt"), "--n", "2", "--out", str(tmp_path / "drawn"),
          "--sampler", "DDIM", "--sampler.steps", "2", "--trainer.accelerator", "cpu"])  # fmt: skip
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2


def test_a_file_that_holds_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": nn.Linear(2, 2)}, tmp_path / "code.pt")
    for source, says in ((tmp_path / "code.pt", "holds more than weights: nothing was loaded"),
                         (tmp_path / "none.pt", "does not exist"), (tmp_path, "has no config.json")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["import", str(source), str(tmp_path / "ours.ckpt")])
        assert says in capsys.readouterr().err


def test_the_schedule_of_the_source_and_the_configuration_must_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_unet("no attention")
    theirs = UNet2DModel.from_config(unet_config(model))
    theirs.load_state_dict(Diffusers().write(model, weights(model)))
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    unet = {"size": 16, "channels": 32, "multipliers": [1, 3], "attention": [], "groups": 16, "blocks": 1}
    objects = {"network": {"class_path": "UNet", "init_args": unet}, "schedule": {"class_path": "Cosine"}}
    config = {"class_path": "Diffusion", "init_args": {"shape": [3, 16, 16], **objects}}
    text = {"model": config, "data": {"class_path": "diffusion_lightning.data.Digits"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(text))
    words = ["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt"), "--config", str(tmp_path / "config.yaml")]
    with pytest.raises(SystemExit):
        main(words)
    assert (
        "was trained with T = 1000 and alpha_bar_T = 4.04e-05, but the configuration's schedule"
        in capsys.readouterr().err
    )
    main([*words, "--model.init_args.schedule", "Linear"])


def test_a_scheduler_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_diffusers().save_pretrained(tmp_path / "theirs/unet")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "theirs/scheduler")
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    assert "FlowMatchEulerDiscreteScheduler has no betas" in capsys.readouterr().err
    (tmp_path / "theirs/unet/config.json").write_text('{"in_chan')
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    assert "config.json is cut short or no JSON" in capsys.readouterr().err


def test_an_imported_model_is_validated_on_data_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DDPMPipeline(of_diffusers(), DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "theirs")
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours.ckpt")])
    words = [
        "validate",
        "--ckpt_path",
        str(tmp_path / "ours.ckpt"),
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit):
        main(words)
    assert "name them by --data" in capsys.readouterr().err
    main([*words, "--data", "Digits"])
    assert float(rows(tmp_path / "run/validate.csv")[-1]["val/loss"]) > 0


def test_a_start_takes_buffers_too_and_nothing_else_of_the_run(tmp_path: Path) -> None:
    """A network with running averages, whose times were drawn by its losses, starts a run with uniform times."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return self.norm(x_t)

    first = Diffusion(Normed(), Linear(5), (1, 4, 4), timesteps=LossAware())
    nn.init.constant_(first.denoiser.network.norm.running_mean, 0.7)  # type: ignore[union-attr, arg-type]
    torch.save({"state_dict": first.state_dict()}, tmp_path / "first.ckpt")
    second = Diffusion(Normed(), Linear(5), (1, 4, 4))
    start_from(second, str(tmp_path / "first.ckpt"))
    assert second.state_dict()["denoiser.network.norm.running_mean"] == pytest.approx(0.7)
