"""What others make of an exported model: diffusers' pipelines, safetensors, torch.export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from safetensors.torch import load_file

import diffusion_lightning
from diffusion_lightning import random
from diffusion_lightning.cli import main
from diffusion_lightning.denoising import log_variance
from diffusion_lightning.interop.export import check_pipeline, pipeline
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import UNet
from diffusion_lightning.records import read
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

from ..conftest import small_config
from ..support.rows import rows


def written(out: str) -> set[str]:
    return {Path(line.removeprefix("wrote ")).name for line in out.splitlines() if line.startswith("wrote ")}


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run as `fit` left it, whatever others have evaluated in it since."""
    copy, folder = tmp_path_factory.mktemp("fitted"), tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    shutil.copy(run / "metrics.csv", copy)
    main(["export", str(copy / "checkpoints/last.ckpt"), str(folder), "--format", "pipeline", "weights", "program"])
    return folder


def start(model: Diffusion, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    seeds = torch.arange(n)
    return seeds, random.normal(model.shape, seeds, "x_T", model.schedule.T, torch.zeros_like(seeds))


def test_diffusers_draws_the_same_images_by_ddim(run: Path, exported: Path) -> None:
    """From the same x_T, nothing clipped on either side, and by the pipeline with both clipped."""
    model = diffusion_lightning.load(run / "checkpoints/last.ckpt")
    pipeline = DDIMPipeline.from_pretrained(exported)
    seeds, x_T = start(model, 4)
    for steps in (3, 12):
        for clip in (None, 1.0):
            with torch.no_grad():
                ours = DDIM(steps=steps, clip=clip)(model.denoiser, model.schedule, x_T, seeds=seeds)
            scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=clip is not None)
            scheduler.set_timesteps(steps)
            x = x_T
            with torch.no_grad():
                for t in scheduler.timesteps:
                    x = scheduler.step(pipeline.unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
            assert ours.std() > 0.3
            # Hardly trained and not clipped, the network's images are hundreds in size: relative to that.
            assert (x - ours).abs().max() < 1e-4 * (1 if clip else ours.abs().max())
    made = pipeline(batch_size=2, num_inference_steps=3, use_clipped_model_output=True, output_type="np",
                    generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    x_T = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = DDIM(steps=3)(model.denoiser, model.schedule, x_T)
    torch.testing.assert_close(torch.from_numpy(made).permute(0, 3, 1, 2) * 2 - 1, ours, rtol=0, atol=1e-4)


def test_the_weights_are_the_averaged_ones(run: Path, exported: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    weights = load_file(exported / "model.safetensors")
    name = "denoiser.network.conv_in.weight"
    assert torch.equal(weights[name], checkpoint["callbacks"]["EMA"]["average"][name])
    assert not torch.equal(weights[name], checkpoint["state_dict"][name])
    unet = load_file(exported / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(unet["conv_in.weight"], weights[name])
    config = yaml.safe_load((exported / "config.yaml").read_text())
    assert config["model"]["init_args"]["schedule"]["init_args"]["T"] == 12


def test_the_scheduler_has_the_schedules_own_betas(run: Path, exported: Path) -> None:
    schedule = diffusion_lightning.load(run / "checkpoints/last.ckpt").schedule
    scheduler = DDPMPipeline.from_pretrained(exported).scheduler
    found = torch.tensor(scheduler.config.trained_betas, dtype=torch.float64)
    torch.testing.assert_close(torch.cumprod(1 - found, 0), schedule.alpha_bar[1:], rtol=1e-12, atol=0)


def test_algorithm_2_by_the_exported_pipeline(exported: Path) -> None:
    """It runs at all steps and ends in bytes."""
    assert len(DDPMPipeline.from_pretrained(exported)(batch_size=2, num_inference_steps=12).images) == 2


def test_the_program_needs_no_package(run: Path, exported: Path) -> None:
    model = diffusion_lightning.load(run / "checkpoints/last.ckpt")
    denoiser = torch.export.load(exported / "denoiser.pt2").module()
    for n in (2, 5):
        x_T, t = start(model, n)[1], torch.arange(1, n + 1)
        with torch.no_grad():
            expected = model.denoiser(x_T, t)
            found = denoiser(x_T, t)
        assert len(found) == 2
        for a, b in zip(found, expected, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_card_says_what_it_is_and_what_was_measured(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    front, _, rest = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    assert "Digits(batch_size=32" in rest
    assert "| steps | 6 |" in rest
    assert "moving average, decay 0.5" in rest
    assert "By `fit`" in rest
    assert "`val/fd_digits`" in rest
    assert "DDPMPipeline.from_pretrained" in rest


@pytest.mark.slow
def test_the_card_has_the_figures_of_test_and_no_path_of_this_disk(run: Path, tmp_path: Path) -> None:
    """Of this checkpoint alone: not of another step's, though its row lies in the same file."""
    copy = tmp_path / "somewhere/run"
    shutil.copytree(run, copy)
    last = copy / "checkpoints/last.ckpt"
    main(["test", "--ckpt_path", str(last), "--trainer.logger", "false", "--trainer.default_root_dir", str(copy)])
    assert rows(copy / "test.csv")[-1]["step"] == "6"
    checkpoint = torch.load(last, weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    config["data"]["init_args"]["root"] = str(tmp_path / "somewhere")
    torch.save({**checkpoint, "config": yaml.safe_dump(config)}, last)
    main(["export", str(last), str(tmp_path / "out"), "--format", "weights"])
    card = (tmp_path / "out/README.md").read_text()
    assert "By `test`" in card
    assert "`test/bits_per_dim`" in card
    assert "root=somewhere" in card
    assert str(tmp_path) not in card
    torch.save({**checkpoint, "global_step": 5}, copy / "checkpoints/other.ckpt")
    main(["export", str(copy / "checkpoints/other.ckpt"), str(tmp_path / "other"), "--format", "weights"])
    assert "Nothing: no figures" in (tmp_path / "other/README.md").read_text()


def test_a_pipeline_draws_images_of_the_models_size(tmp_path: Path) -> None:
    """Also where the network was built for another, which it takes as well."""
    changes = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "checkpoint.monitor": None}
    network = {"model.init_args.network.init_args.size": 16, "model.init_args.shape": [1, 8, 8]}
    config = small_config(tmp_path, **changes, **network)
    main(["fit", "--config", str(config), "--trainer.logger", "false"])
    main(["export", str(tmp_path / "run/checkpoints/last.ckpt"), str(tmp_path / "out")])
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipeline(batch_size=1, num_inference_steps=2).images[0].size == (8, 8)


@pytest.mark.slow
def test_a_learned_variance_is_exported_too(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        **{
            "trainer.max_steps": 1,
            "trainer.limit_val_batches": 0,
            "checkpoint.monitor": None,
            "model.init_args.network.init_args.out_channels": 2,
            "model.init_args.network.init_args.scale_shift": True,
            "model.init_args.network.init_args.attention": [8],
            "model.init_args.network.init_args.release": "IDDPM",
        },
    )
    main(["fit", "--config", str(config), "--trainer.logger", "false"])
    last = tmp_path / "run/checkpoints/last.ckpt"
    main(["export", str(last), str(tmp_path / "out")])
    assert "Nothing: no figures" in (tmp_path / "out/README.md").read_text()
    pipeline, model = DDPMPipeline.from_pretrained(tmp_path / "out"), diffusion_lightning.load(last)
    assert pipeline.scheduler.config.variance_type == "learned_range"
    assert len(pipeline(batch_size=1, num_inference_steps=12).images) == 1
    _, x = start(model, 2)
    for index in (3, 11):
        with torch.no_grad():
            theirs, ours = pipeline.unet(x, index).sample, model.denoiser.network(x, torch.tensor([index] * 2))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # A step of algorithm 2 from t = 12 to 11 with a known noise, clipped as the exported scheduler says.
    generator = torch.Generator().manual_seed(0)
    step = pipeline.scheduler.step(theirs, 11, x, generator=generator).prev_sample
    noise = torch.randn(x.shape, generator=generator.manual_seed(0))
    with torch.no_grad():
        prediction = model.denoiser(x, 12)
    mean, _ = model.schedule.posterior(prediction.x_0.clamp(-1, 1), x, 12, 11)
    sigma = log_variance(model.schedule, 12, 11, prediction.var_mix).mul(0.5).exp()
    torch.testing.assert_close(mean + sigma * noise, step, rtol=1e-4, atol=1e-4)


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(SystemExit):
        main(["export", str(run / "checkpoints/last.ckpt"), str(tmp_path)])
    assert f"{tmp_path} exists already and is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_a_pipeline_cannot_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    config["model"]["init_args"]["rescale_timesteps"] = True
    torch.save({**checkpoint, "config": yaml.safe_dump(config)}, tmp_path / "rescaled.ckpt")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "rescaled.ckpt"), str(tmp_path / "out")])
    assert "schedulers feed it whole numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["export", str(tmp_path / "rescaled.ckpt"), str(tmp_path / "out"), "--format", "weights"])
    assert written(capsys.readouterr().out) == {"README.md", "config.yaml", "model.safetensors"}
    assert json.loads(json.dumps(yaml.safe_load((tmp_path / "out/config.yaml").read_text()))) == {
        "model": config["model"]
    }


def test_a_network_of_diffusers_is_trained_and_exported_as_it_is(tmp_path: Path) -> None:
    config = yaml.safe_load(small_config(tmp_path).read_text())
    config["model"]["init_args"]["network"] = {
        "class_path": "diffusers.UNet2DModel",
        "init_args": {
            "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
        },
    }  # fmt: skip
    config["trainer"].update(max_steps=2, limit_val_batches=0)
    config["checkpoint"]["monitor"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "config.yaml"), "--trainer.logger", "false"])
    last = tmp_path / "run/checkpoints/last.ckpt"
    main(["export", str(last), str(tmp_path / "out")])
    pipeline, model = DDPMPipeline.from_pretrained(tmp_path / "out"), diffusion_lightning.load(last)
    _, x = start(model, 2)
    with torch.no_grad():
        assert torch.equal(pipeline.unet(x, 5).sample, model.denoiser(x, 6).eps)


@pytest.mark.slow
def test_a_program_with_classes(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, **{"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "checkpoint.monitor": None}
    )
    classes = {"class_path": "ClassLabels", "init_args": {"classes": 10, "width": 32}}
    changed = yaml.safe_load(config.read_text())
    changed["model"]["init_args"]["conditioner"] = classes
    config.write_text(yaml.safe_dump(changed))
    main(["fit", "--config", str(config), "--trainer.logger", "false"])
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(SystemExit):
        main(["export", last, str(tmp_path / "out")])
    main(["export", last, str(tmp_path / "out"), "--format", "program"])
    card = (tmp_path / "out/README.md").read_text()
    assert "torch.full((4,), 12), torch.zeros(4, dtype=torch.long))" in card
    model = diffusion_lightning.load(last)
    denoiser = torch.export.load(tmp_path / "out/denoiser.pt2").module()
    x, t, y = start(model, 3)[1], torch.tensor([1, 5, 12]), torch.tensor([0, 9, 10])
    with torch.no_grad():
        expected, found = model.denoiser(x, t, model.conditioner(y)), denoiser(x, t, y)
    torch.testing.assert_close(found[0], expected.x_0, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], model.denoiser(x, t, model.conditioner(y.flip(0))).x_0)


BASE = {"in_channels": 1, "size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one level": {"multipliers": (1,), "attention": (8,)},
    "three levels": {"multipliers": (1, 2, 3), "attention": (4,)},
    "a level wider than the last": {"multipliers": (1, 3, 2)},
    "levels alike": {"multipliers": (1, 1)},
    "a first multiplier of 2": {"multipliers": (2, 2)},
    "a first multiplier of 2 and then 1": {"multipliers": (2, 1), "attention": ()},
    "a single level of multiplier 2": {"multipliers": (2,), "attention": ()},
    "a first multiplier of 3 that resamples in blocks": {"multipliers": (3, 3), "resample_blocks": True},
    "two blocks": {"blocks": 2},
    "no blocks": {"blocks": 0, "multipliers": (1, 1), "attention": ()},
    "no blocks on the way down to wider levels": {"blocks": 0, "attention": ()},
    "no blocks and attention": {"blocks": 0},
    "no attention": {"attention": ()},
    "attention at all sizes": {"attention": (8, 4)},
    "attention at the first size": {"attention": (8,)},
    "two heads at one width": {"heads": 2, "multipliers": (1, 1), "attention": (8, 4)},
    "two heads at two widths": {"heads": 2, "attention": (8, 4)},
    "two heads in the middle alone": {"heads": 2, "attention": ()},
    "heads of four features": {"head_channels": 4, "attention": (8, 4)},
    "heads as wide as the first level": {"head_channels": 8, "attention": (8, 4)},
    "scale and shift": {"scale_shift": True},
    "resampling in blocks": {"resample_blocks": True},
    "resampling in blocks, with scale and shift": {"resample_blocks": True, "scale_shift": True, "attention": (8,)},
    "the details of IDDPM": {"release": "IDDPM"},
    "two groups": {"groups": 2},
    "one group": {"groups": 1},
    "groups as many as features": {"groups": 8},
    "a predicted variance": {"out_channels": 2},
    "three channels": {"in_channels": 3},
    "dropout": {"dropout": 0.3},
    "another size": {"size": 16, "attention": (8,)},
}
REFUSED = {
    "a first multiplier of 2", "a first multiplier of 2 and then 1", "a single level of multiplier 2",
    "a first multiplier of 3 that resamples in blocks", "two heads at two widths", "no blocks and attention",
    "no blocks on the way down to wider levels",
}  # fmt: skip


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_pipeline_of_any_unet_opens_in_diffusers_and_computes_the_same_or_is_refused(
    name: str, tmp_path: Path
) -> None:
    """Before anything is written."""
    network = UNet(**{**BASE, **SETTINGS[name]})
    for p in network.parameters():  # not near zero, where every network is the same
        torch.nn.init.normal_(p, std=0.2)
    model = Diffusion(network, Linear(T=12), (network.in_channels, network.size, network.size)).eval()
    if name in REFUSED:
        with pytest.raises(ValueError, match=r"UNet2DModel.*export its weights or its program instead of a pipeline"):
            check_pipeline(model)
        return
    check_pipeline(model)
    pipeline(model, {}, tmp_path)
    found = DDPMPipeline.from_pretrained(tmp_path)
    x = torch.randn(2, *model.shape)
    with torch.no_grad():
        ours, theirs = network(x, torch.tensor([3, 3])), found.unet(x, 3).sample
    assert ours.std() > 0.03
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.tried("Numbers, precision and words")
def test_a_first_multiplier_of_2_is_refused_by_the_command_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    config["model"]["init_args"]["network"]["init_args"]["multipliers"] = [2, 2]
    weights = read(config["model"], Diffusion, "model").make().state_dict()
    torch.save({**checkpoint, "config": yaml.safe_dump(config), "state_dict": weights, "callbacks": {}},
               tmp_path / "wide.ckpt")  # fmt: skip
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "wide.ckpt"), str(tmp_path / "out"), "--format", "weights", "pipeline"])
    assert "multipliers [2, 2]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["export", str(tmp_path / "wide.ckpt"), str(tmp_path / "out"), "--format", "weights"])
