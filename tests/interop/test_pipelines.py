"""Latent pipelines of diffusers, tiny and in the true layout, in and out: the same embeddings, latents and images."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline, PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import diffusion_lightning
from diffusion_lightning import checkpoints, random, records
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, PretrainedText
from diffusion_lightning.denoising import Flow
from diffusion_lightning.first_stages import Pretrained
from diffusion_lightning.guidance import guided
from diffusion_lightning.interop.convert import convert
from diffusion_lightning.interop.diffusers import OLD
from diffusion_lightning.interop.export import check_pipeline, pipeline
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.networks import ConditionUNet, UNet
from diffusion_lightning.samplers import DDIM, Leading, Sampler
from diffusion_lightning.schedules import Linear

from ..support.commands import fails
from ..support.pipelines import SCHEDULER, UNET, latent_diffusion, stable_diffusion

CAPTIONS = ["a Grey cat, dog", "x" * 40]  # one is padded, one is cut
STEPS = 20


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StableDiffusionPipeline]:
    folder = tmp_path_factory.mktemp("published") / "sd"
    return folder, stable_diffusion(folder)


@pytest.fixture(scope="module")
def imported(published: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, whose source is not where it was."""
    ckpt, gone = tmp_path_factory.mktemp("imported") / "sd.ckpt", published[0].with_name("gone")
    main(["import", str(published[0]), str(ckpt)])
    shutil.move(published[0], gone)
    shutil.copytree(gone, published[0])
    return ckpt


def start(model: Any, n: int = 2) -> torch.Tensor:
    seeds = torch.arange(n)
    return random.normal(model.latent_shape, seeds, "x_T", model.schedule.T, torch.zeros_like(seeds))


def drawn(model: Any, x_T: torch.Tensor, spacing: Leading, scale: float = 7.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Our latents of DDIM, and the images that they are decoded to."""
    y = model.conditioner.raw(CAPTIONS, 2)
    with torch.no_grad():
        denoise = guided(model.denoiser, model.conditioner, y, scale)
        z = DDIM(STEPS, clip=None, spacing=spacing)(denoise, model.schedule, x_T, c=model.conditioner(y))
        return z, model.decoded(z)


def theirs(pipeline: Any, x_T: torch.Tensor, kind: str) -> torch.Tensor:
    return pipeline(CAPTIONS, latents=x_T, num_inference_steps=STEPS, guidance_scale=7.5, output_type=kind).images


def assert_same(model: Any, pipeline: Any, spacing: Leading = Leading(1, 1)) -> None:  # noqa: B008
    x_T = start(model)
    z, image = drawn(model, x_T, spacing)
    expected = theirs(pipeline, x_T, "latent")
    assert z.std() > 0.3
    assert (z - expected).abs().max() < 1e-4 * max(1, float(expected.abs().max()) / 10)
    assert ((image + 1) / 2 - theirs(pipeline, x_T, "pt")).abs().max() * 255 < 1
    assert (drawn(model, x_T, Leading(), 1.0)[0] - expected).abs().max() > 0.1  # and it can fail


def test_stable_diffusions_embeddings_latents_and_images(published: tuple, imported: Path) -> None:
    model, pipeline = diffusion_lightning.load(imported), published[1]
    y = model.conditioner.raw(CAPTIONS, 2)
    embedded, null = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True)
    c = model.conditioner(y)
    assert c.mask is None
    assert (c.tokens - embedded).abs().max() < 1e-6
    assert (model.conditioner(model.conditioner.null(2)).tokens - null).abs().max() < 1e-6
    assert model.shape == (3, 16, 16)
    assert model.latent_shape == (4, 8, 8)
    assert_same(model, pipeline)


def test_predict_runs_by_the_checkpoint_alone_with_the_pipelines_own_sampler(imported: Path, tmp_path: Path) -> None:
    config = checkpoints.config(checkpoints.read(imported), imported)
    assert config["model"]["init_args"]["schedule"] == {
        "class_path": "diffusion_lightning.schedules.ScaledLinear",
        "init_args": {"T": 1000, "beta_1": 0.00085, "beta_T": 0.012},
    }
    source = config["model"]["init_args"]["first_stage"]["init_args"]["model"]
    kept = Path(source).rename(Path(source).with_name("hidden"))
    try:
        main(["predict", "--ckpt_path", str(imported), "--n", "2", "--out", str(tmp_path / "out"), "--prompt",
              CAPTIONS[0], "--guidance", "7.5", "--trainer.accelerator", "cpu"])  # fmt: skip
        model = diffusion_lightning.load(imported)
    finally:
        kept.rename(source)
    ours = model.generate(2, DDIM(50, clip=None, spacing=Leading(1, 1)), [CAPTIONS[0]] * 2, guidance=7.5)
    for k, image in enumerate(ours):
        found = np.asarray(Image.open(tmp_path / f"out/{k:06}.png")).astype(float)
        assert np.abs(found - (image.permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 1


def test_an_exported_pipeline_is_the_same_again(published: tuple, imported: Path, tmp_path: Path) -> None:
    main(["export", str(imported), str(tmp_path / "back"), "--format", "pipeline", "weights"])
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    again.set_progress_bar_config(disable=True)
    for own, part in (("text_encoder", again.text_encoder), ("unet", again.unet), ("vae", again.vae)):
        before, after = getattr(published[1], own).state_dict(), part.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(x, after[name]) for name, x in before.items())
    captions = [*CAPTIONS, "", "!?"]
    first, second = (p.tokenizer(captions, padding="max_length", max_length=16, truncation=True).input_ids
                     for p in (published[1], again))  # fmt: skip
    assert first == second
    said = {key: again.scheduler.config[key] for key in SCHEDULER}
    assert said == SCHEDULER
    x_T = start(diffusion_lightning.load(imported))
    assert (theirs(again, x_T, "pt") - theirs(published[1], x_T, "pt")).abs().max() < 1e-5
    card = (tmp_path / "back/README.md").read_text()
    assert "StableDiffusionPipeline.from_pretrained" in card
    assert "imported into" in card
    main(["import", str(tmp_path / "back"), str(tmp_path / "again.ckpt")])
    one, other = (checkpoints.read(path) for path in (imported, tmp_path / "again.ckpt"))
    assert all(torch.equal(x, other["state_dict"][name]) for name, x in one["state_dict"].items())
    assert checkpoints.config(other, "")["grid"] == checkpoints.config(one, "")["grid"]


def test_version_2_predicts_v_and_pads_with_another_token(tmp_path: Path) -> None:
    pipeline = stable_diffusion(tmp_path / "sd", pad="!", prediction_type="v_prediction")
    model, kind = convert(str(tmp_path / "sd"), str(tmp_path / "sd.ckpt"))
    assert kind == "StableDiffusionPipeline"
    assert type(model.denoiser.parameterization).__name__ == "Velocity"
    assert_same(model.eval(), pipeline)


def test_unconditional_latent_diffusion_in_and_out(tmp_path: Path) -> None:
    """diffusers#5166: decoded of latents divided by the autoencoder's scaling factor, here 0.7."""
    pipeline = latent_diffusion(tmp_path / "ldm")
    main(["import", str(tmp_path / "ldm"), str(tmp_path / "ldm.ckpt")])
    shutil.rmtree(tmp_path / "ldm")
    model = diffusion_lightning.load(tmp_path / "ldm.ckpt")
    assert model.shape == (3, 16, 16)
    main(["export", str(tmp_path / "ldm.ckpt"), str(tmp_path / "back")])
    again = LDMPipeline.from_pretrained(tmp_path / "back")
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.decoded(DDIM(STEPS, clip=None, spacing=Leading())(model.denoiser, model.schedule, x_T))
    for made in (pipeline, again):
        images = made(batch_size=2, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0),
                      output_type="np").images  # fmt: skip
        assert np.abs((ours.permute(0, 2, 3, 1).numpy() + 1) / 2 - images).max() * 255 < 1
    assert ours.std() > 0.1
    assert again.vqvae.config.scaling_factor == pytest.approx(0.7)


def test_weights_in_pickles_are_read_as_weights_alone(published: tuple, imported: Path, tmp_path: Path) -> None:
    """The checkpoint is the same."""
    folder = shutil.copytree(published[0], tmp_path / "sd")
    for part in ("unet", "vae", "text_encoder"):
        file = next((folder / part).glob("*.safetensors"))
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(file), folder / part / name)
        file.unlink()
    edited(folder / "scheduler/scheduler_config.json", steps_offset=0)  # the pipeline itself makes it 1
    convert(str(folder), str(tmp_path / "sd.ckpt"))
    one, other = checkpoints.read(imported), checkpoints.read(tmp_path / "sd.ckpt")
    assert one["frozen"] == other["frozen"]
    assert all(torch.equal(x, other["state_dict"][name]) for name, x in one["state_dict"].items())
    assert checkpoints.config(other, "")["grid"] == checkpoints.config(one, "")["grid"]
    source = checkpoints.config(other, "")["model"]["init_args"]["conditioner"]["init_args"]["model"]
    assert source == str(folder)


def test_a_scheduler_of_another_kind_gives_its_schedule_and_times(published: tuple, tmp_path: Path) -> None:
    """PNDM, with which version 1 is shipped, ends at t = 1 by its default; the sampler that takes its place is said."""
    folder = shutil.copytree(published[0], tmp_path / "sd")
    given = {key: SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    PNDMScheduler(**given, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    with pytest.warns(UserWarning, match=r"PNDMScheduler with leading steps.*DDIM, Leading\(offset=1, final=1\)"):
        convert(str(folder), str(tmp_path / "sd.ckpt"))
    DDIMScheduler(**{**SCHEDULER, "clip_sample": True}).save_pretrained(folder / "scheduler")
    with pytest.warns(UserWarning, match="clips latents as if they were pixels"):
        convert(str(folder), str(tmp_path / "clipped.ckpt"))


def of_ours(stage: Pretrained, **changes: Any) -> Diffusion:
    network = UNet(4, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    return Diffusion(**{"network": network, "schedule": Linear(), "first_stage": stage, **changes}).eval()


def test_a_model_of_ours_is_a_pipeline_too(published: tuple, tmp_path: Path) -> None:
    """Our U-Net over a published autoencoder's latents; what it is not, is said."""
    torch.manual_seed(0)
    stage = Pretrained(str(published[0]))
    model = of_ours(stage)
    for p in model.denoiser.network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    pipeline(model, {}, tmp_path)
    made = LDMPipeline.from_pretrained(tmp_path)
    x_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.decoded(DDIM(STEPS, clip=None)(model.denoiser, model.schedule, x_T))
    images = made(batch_size=2, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0),
                  output_type="np").images  # fmt: skip
    assert np.abs((ours.permute(0, 2, 3, 1).numpy() + 1) / 2 - images).max() * 255 < 1

    scaled = Pretrained(str(published[0]), scale=[0.1, 0.2, 0.3, 0.4])
    classes = ClassLabels(classes=3, width=32)
    for refused, says in (
        (of_ours(scaled), "divides by one scaling_factor"),
        (of_ours(stage, rescale_timesteps=True), "at rescaled times"),
        (of_ours(stage, parameterization=Flow()), "predicts Flow"),
        (of_ours(stage, conditioner=classes), "by a UNet and a ClassLabels, but StableDiffusionPipeline"),
    ):
        with pytest.raises(ValueError, match=says):
            check_pipeline(refused)
    projected = PretrainedText(str(published[0]), length=16)
    with pytest.raises(ValueError, match="is a PretrainedText that StableDiffusionPipeline does not have"):
        check_pipeline(of_ours(stage, network=ConditionUNet(UNET), conditioner=projected))


def test_attentions_are_read_by_their_earlier_names(tmp_path: Path) -> None:
    """Of diffusers before version 0.13; and the first stage lies in `vae` as well as in `vqvae`."""
    latent_diffusion(tmp_path / "ldm")
    convert(str(tmp_path / "ldm"), str(tmp_path / "one.ckpt"))
    for file in (tmp_path / "ldm").rglob("*.safetensors"):
        new = {name: x for name, x in load_file(file).items()}
        for then, now in OLD.items():
            new = {name.replace(now, then): x for name, x in new.items()}
        assert any(".proj_attn." in name for name in new)
        save_file(new, file, metadata={"format": "pt"})
    (tmp_path / "ldm/vqvae").rename(tmp_path / "ldm/vae")
    convert(str(tmp_path / "ldm"), str(tmp_path / "other.ckpt"))
    one, other = (checkpoints.read(tmp_path / f"{name}.ckpt") for name in ("one", "other"))
    assert one["frozen"] == other["frozen"]
    assert all(torch.equal(x, other["state_dict"][name]) for name, x in one["state_dict"].items())


def test_zero_terminal_snr_comes_with_trailing_steps(tmp_path: Path) -> None:
    pipeline = stable_diffusion(
        tmp_path / "sd", prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        set_alpha_to_one=True,
    )  # fmt: skip
    model, _ = convert(str(tmp_path / "sd"), str(tmp_path / "sd.ckpt"))
    torch.testing.assert_close(
        model.schedule.alpha_bar[1:].float(), pipeline.scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7
    )
    config = checkpoints.config(checkpoints.read(tmp_path / "sd.ckpt"), "")
    sampler = records.read(config["grid"]["init_args"]["sampler"], Sampler, "sampler").make()
    pipeline.scheduler.set_timesteps(50)
    assert [t - 1 for t in sampler.times(model.schedule)[:-1]] == pipeline.scheduler.timesteps.tolist()


@pytest.mark.slow
def test_a_program_holds_the_text_model_too(imported: Path, tmp_path: Path) -> None:
    main(["export", str(imported), str(tmp_path / "out"), "--format", "program"])
    model, denoiser = diffusion_lightning.load(imported), torch.export.load(tmp_path / "out/denoiser.pt2").module()
    x, t, y = start(model), torch.tensor([1, 700]), model.conditioner.raw(CAPTIONS, 2)
    with torch.no_grad():
        expected = model.denoiser(x, t, model.conditioner(y))
        torch.testing.assert_close(denoiser(x, t, y)[1], expected.eps, rtol=1e-5, atol=1e-5)


class Bomb:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return print, ("code ran",)


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}), encoding="utf-8")


def code(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def reshaped(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "conv_in.bias": torch.zeros(3)}, file)


def incomplete(folder: Path, part: str) -> None:
    file = next((folder / part).glob("*.safetensors"))
    kept = load_file(file)
    kept.pop(max(kept))
    save_file(kept, file, metadata={"format": "pt"})


ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a damaged index": (lambda f: (f / "model_index.json").write_text('{"_class_na'), "cut short or no JSON"),
    "an index of a list": (lambda f: (f / "model_index.json").write_text("[1]"), "holds a list and no keys"),
    "an index of another pipeline": (
        lambda f: edited(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "is a StableDiffusionXLPipeline of diffusers, but StableDiffusionPipeline",
    ),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "has none of diffusion_pytorch_model.safetensors"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no tokenizer"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "has no scheduler/scheduler_config.json"),
    "a network of an unknown class": (
        lambda f: edited(f / "unet/config.json", _class_name="os.system"), "holds a os.system, but of this pipeline"
    ),
    "a first stage of an unknown class": (
        lambda f: edited(f / "vae/config.json", _class_name="Evil"), "holds a Evil, but of this pipeline"
    ),
    "a text encoder of an unknown kind": (
        lambda f: edited(f / "text_encoder/config.json", model_type="evil"), "is a evil, but Stable Diffusion"
    ),
    "code of its own for the tokenizer": (
        lambda f: edited(f / "tokenizer/tokenizer_config.json", tokenizer_class="Evil",
                         auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        "is neither a folder of model and tokenizer here",
    ),
    "sizes of another model": (
        lambda f: edited(f / "unet/config.json", block_out_channels=[64, 4096]), "the network described beside them has"
    ),
    "a network of its second text": (
        lambda f: edited(f / "unet/config.json", addition_embed_type="text_time"), "addition_embed_type is text_time"
    ),
    "weights of another shape": (reshaped, "model.conv_in.bias is [3], but [8] by the config"),
    "a weight less in the network": (lambda f: incomplete(f, "unet"), "is missing, but"),
    "a weight less in the first stage": (lambda f: incomplete(f, "vae"), "lack"),
    "a weight less in the text encoder": (lambda f: incomplete(f, "text_encoder"), "lack"),
    "code in place of weights": (code, "holds more than weights: nothing was loaded"),
    "a schedule of words": (
        lambda f: edited(f / "scheduler/scheduler_config.json", beta_start="low"), "beta_1 is 'low'"
    ),
    "a schedule of too many steps": (
        lambda f: edited(f / "scheduler/scheduler_config.json", num_train_timesteps=10**12), "no whole number past"
    ),
}  # fmt: skip


@pytest.mark.tried("Checkpoints")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_damaged_or_hostile_pipeline_is_refused(
    attack: str, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(published[0], tmp_path / "sd")
    change, says = ATTACKS[attack]
    change(folder)
    said = fails(capsys, "import", str(folder), str(tmp_path / "out/sd.ckpt"))
    assert says in said
    assert "code ran" not in said
    assert not list(tmp_path.glob("out/**/*.*"))


def test_a_configuration_beside_a_pipeline_is_refused(
    published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "import", str(published[0]), str(tmp_path / "sd.ckpt"), "--config", "digits")
    assert "describes its model itself: leave --config out" in said
