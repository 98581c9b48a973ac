"""A `DiTPipeline` of diffusers, read and written: the same latents and pixels from the same noise."""

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.dit import pipeline_dit
from torch import Tensor

import diffusion_lightning
from diffusion_lightning import checkpoints, random, records
from diffusion_lightning.callbacks.checkpoint import AtomicIO
from diffusion_lightning.cli import main
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.interop import dit_pipeline
from diffusion_lightning.loading import start_from
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import DiT
from diffusion_lightning.samplers import DDIM, Leading
from diffusion_lightning.schedules import Linear

CLASSES = 1000  # the pipeline's null condition is class 1000, whatever the network has
Y = [3, 998, 3]
SCHEDULER: dict[str, Any] = {
    "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False, "num_train_timesteps": 1000,
}  # fmt: skip


def pipeline(shared: bool = True, **changes: Any) -> DiTPipeline:
    """Of random weights, its blocks' embedders alike as in published files, or not as diffusers makes them."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=CLASSES,
    ).eval()  # fmt: skip
    for block in transformer.transformer_blocks[1:] if shared else ():
        block.norm1.emb.load_state_dict(transformer.transformer_blocks[0].norm1.emb.state_dict())
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, layers_per_block=1, norm_num_groups=4,
    ).eval()  # fmt: skip
    return DiTPipeline(transformer, vae, DDIMScheduler(**{**SCHEDULER, **changes}))


def made(folder: Path) -> Diffusion:
    """The model of what a folder holds."""
    found = dit_pipeline.read(folder, str(folder))
    trust = {str(folder)}
    model = records.read(found.model, Diffusion, "model", trust).make()
    own = {name for name in model.state_dict() if name.startswith("denoiser.network.")}
    assert own == found.weights.keys()
    model.load_state_dict(found.weights, strict=False)
    model.class_names = found.class_names
    return model.eval()


def theirs(pipe: DiTPipeline, model: Any, scale: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, np.ndarray]:
    """The pipeline's latents before its decoder, and its pixels 0 … 255, from the noise that the model draws."""
    seeds = random.seeds(0, "sample", torch.arange(len(Y)))
    x_T = random.normal(model.latent_shape, seeds, "x_T", model.schedule.T, torch.zeros_like(seeds))
    kept, decode = [], pipe.vae.decode

    def watched(z: Tensor) -> Any:
        kept.append(z)
        return decode(z)

    pipe.set_progress_bar_config(disable=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_dit, "randn_tensor", lambda *_, **__: x_T.clone())
        patch.setattr(pipe.vae, "decode", watched)
        images = pipe(Y, guidance_scale=scale, num_inference_steps=20, output_type="np").images
    return kept[0] * pipe.vae.config.scaling_factor, images.transpose(0, 3, 1, 2) * 255


def ours(model: Any, guidance: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, np.ndarray]:
    """Likewise, by the package's own loop."""
    kept, decode = [], model.first_stage.decode

    def watched(z: Tensor) -> Tensor:
        kept.append(z)
        return decode(z)

    with monkeypatch.context() as patch:
        patch.setattr(model.first_stage, "decode", watched)
        images = model.generate(len(Y), DDIM(20, clip=None, spacing=Leading()), y=torch.tensor(Y), guidance=guidance)
    return kept[0], (images.numpy() + 1) * 127.5


def alike(one: tuple[Tensor, np.ndarray], other: tuple[Tensor, np.ndarray]) -> bool:
    """To 1e-4 in latents, of their standard deviation where that is more than 1, and to one grey level in pixels."""
    return (
        float((one[0] - other[0]).abs().max()) < 1e-4 * max(1.0, float(other[0].std()))
        and float(np.abs(one[1] - other[1]).max()) < 1
    )


# DiT's β_T, at which a random network's latents are large; and less
@pytest.mark.parametrize(
    ("last", "shared"),
    [
        (0.002, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.02, True), (0.02, False), (0.002, False))),
    ],
)
def test_latents_and_pixels_are_the_pipelines_and_so_are_those_of_what_is_written(
    shared: bool, last: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(shared, beta_end=last)
    pipe.save_pretrained(tmp_path / "theirs")
    model = made(tmp_path / "theirs")
    assert model.denoiser.network.shared == shared
    assert model.shape == (3, 16, 16)
    for scale in (1.0, 4.0):
        expected, found = theirs(pipe, model, scale, monkeypatch), ours(model, scale, monkeypatch)
        assert alike(found, expected)
        assert (0.5 < expected[0].std() < 10) == (last == 0.002)
        assert expected[1].std() > 5  # grey levels
    dit_pipeline.write(model, {}, tmp_path / "ours")
    again = DiTPipeline.from_pretrained(tmp_path / "ours")
    for name, x in pipe.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], x), name
    assert alike(theirs(again, model, 4.0, monkeypatch), expected)
    assert alike(ours(made(tmp_path / "ours"), 4.0, monkeypatch), found)


@torch.no_grad()
def test_guidance_of_three_channels_is_that_of_the_released_code(tmp_path: Path) -> None:
    """Its `forward_with_cfg`, in float64: three channels of ε guided, the fourth and the variance of the condition."""
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    model = made(tmp_path).double()
    x_t, t, scale = torch.randn(3, 4, 8, 8, dtype=torch.float64), 400, 1.5
    y, index = torch.tensor([*Y, *[CLASSES] * 3]), torch.full((6,), t - 1)
    with_c, without = pipe.transformer.double()(torch.cat([x_t, x_t]), index, y).sample.chunk(2)
    eps = torch.cat([without[:, :3] + scale * (with_c[:, :3] - without[:, :3]), with_c[:, 3:4]], 1)
    alpha_bar = Linear().alpha_bar[t]
    x_0 = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    guided = {n: ClassifierFree(scale, channels=n)(model.denoiser, model.conditioner, y[:3]) for n in (3, 4, None)}
    found = {n: denoise(x_t, t, model.conditioner(y[:3])) for n, denoise in guided.items()}
    torch.testing.assert_close(found[3].eps, eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[3].x_0, x_0, rtol=1e-9, atol=1e-9)
    assert found[3].var_mix is not None
    torch.testing.assert_close(found[3].var_mix, (with_c[:, 4:] + 1) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[4].eps, found[None].eps)
    assert not torch.allclose(found[4].eps[:, 3], eps[:, 3], atol=1e-3)


def test_names_of_classes_go_there_and_back(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "theirs")
    index = tmp_path / "theirs/model_index.json"
    names = {str(k): f"thing {k}, kind {k}" for k in range(CLASSES)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    model = made(tmp_path / "theirs")
    assert model.class_names == list(names.values())
    dit_pipeline.write(model, {}, tmp_path / "ours")
    again = DiTPipeline.from_pretrained(tmp_path / "ours")
    assert again.get_label_ids(["thing 7", "kind 999"]) == [7, 999]
    del names["3"]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    assert made(tmp_path / "theirs").class_names is None


def test_the_older_name_of_the_network_is_read(tmp_path: Path) -> None:
    """As facebook/DiT-XL-2-256 has it: `Transformer2DModel`, and an autoencoder of its own scale."""
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    place = tmp_path / "transformer/config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"_class_name": "Transformer2DModel"}))
    model = made(tmp_path)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.tensor(Y)
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser.network(x, t, y), pipe.transformer(x, t, y).sample)


def test_a_run_starts_from_it(tmp_path: Path) -> None:
    """What `fit --init_from` does: the weights alone go into a fresh model, its first stage beside them."""
    pipeline().save_pretrained(tmp_path / "theirs")
    model = made(tmp_path / "theirs")
    ckpt = tmp_path / "dit.ckpt"
    AtomicIO().save_checkpoint(
        {
            "state_dict": model.state_dict(), checkpoints.CONFIG: records.text({"model": {}}), "epoch": 0,
            checkpoints.IMPORTED: "theirs", "global_step": 0, checkpoints.LIGHTNING: lightning.__version__,
        },
        str(ckpt),
    )  # fmt: skip
    found = dit_pipeline.read(tmp_path / "theirs", str(tmp_path / "theirs"))
    fresh = records.read(found.model, Diffusion, "model", {str(tmp_path / "theirs")}).make()
    start_from(fresh, str(ckpt))
    for name, x in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], x), name


def test_the_sampler_is_the_schedulers(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    sampler = records.read(dit_pipeline.read(tmp_path, str(tmp_path)).sampler, DDIM, "sampler").make()
    assert sampler.clip is None
    assert sampler.times(Linear())[:2] == [981, 961]
    pipeline(clip_sample=True).save_pretrained(tmp_path / "clips")
    with pytest.warns(UserWarning, match="the pipeline's scheduler clips x_0"):
        dit_pipeline.read(tmp_path / "clips", str(tmp_path / "clips"))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("transformer", {"_class_name": "PixArtTransformer2DModel"}, "has a PixArtTransformer2DModel as transformer"),
        ("transformer", {"norm_type": "ada_norm_single"}, "has norm_type = ada_norm_single"),
        ("transformer", {"activation_fn": "geglu"}, "has activation_fn = geglu"),
        ("transformer", {"in_channels": 3}, "takes 3 channels, but the autoencoder beside it makes latents of 4"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type is flow"),
    ],
)
def test_other_pipelines_are_refused(file: str, changes: dict, says: str, tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    place = tmp_path / file / ("scheduler_config.json" if file == "scheduler" else "config.json")
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    with pytest.raises(ValueError, match=says):
        dit_pipeline.read(tmp_path, str(tmp_path))


def test_what_no_such_pipeline_samples_from_is_not_written(tmp_path: Path) -> None:
    own = Diffusion(DiT(size=8, width=16, depth=1, heads=2), Linear())
    with pytest.raises(
        ValueError, match="the network is a DiT, but a DiTPipeline takes diffusers' own DiT, whose freq"
    ):
        dit_pipeline.write(own, {}, tmp_path)
    pipeline().save_pretrained(tmp_path / "theirs")
    model: Any = made(tmp_path / "theirs")
    model.first_stage.shift.fill_(0.1)
    with pytest.raises(ValueError, match="no AutoencoderKL of diffusers with one scale and no shift"):
        dit_pipeline.write(model, {}, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_import_and_export_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(beta_end=0.002)
    pipe.save_pretrained(tmp_path / "theirs")
    index = tmp_path / "theirs/model_index.json"
    names = {str(k): f"thing {k}" for k in range(CLASSES)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "dit.ckpt")])
    model = diffusion_lightning.load(tmp_path / "dit.ckpt")
    assert model.class_names == list(names.values())
    expected = theirs(pipe, model, 4.0, monkeypatch)
    assert alike(ours(model, 4.0, monkeypatch), expected)
    main(["export", str(tmp_path / "dit.ckpt"), str(tmp_path / "back"), "--format", "pipeline"])
    again = DiTPipeline.from_pretrained(tmp_path / "back")
    assert again.get_label_ids(["thing 7"]) == [7]
    assert alike(theirs(again, model, 4.0, monkeypatch), expected)
