"""What the README and the pages of the site show runs as it stands there, trainings at a few steps."""

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main

from .conftest import CONFIG, small_config
from .support.pages import PAGES, ROOT, Command, blocks, commands

# What runs elsewhere, since it takes an installation, a cluster, a download or hours.
ELSEWHERE = {
    "pip install uv": ".ci/run",
    "uv run pytest": ".ci/run",
    "pip install 'diffusion_lightning[app]'": "tests/app/test_work.py",
    "uv run --extra app diffusion-lightning app": "tests/app/test_page.py",
    "sbatch configs/slurm/train.sbatch": "tests/distributed/test_slurm.py",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 uv run torchrun": "tests/distributed/test_faults.py",
    "wandb sweep": "tests/loggers/test_wandb.py",
    "uv run diffusion-lightning import cifar10_uncond_50M_500K.pt": "tests/cli/test_import.py",
    "uv run diffusion-lightning fit --config cifar10_ddpm --init_from": "tests/cli/test_import.py",
    "uv run diffusion-lightning import stable-diffusion-v1-5/": "tests/interop/test_pipelines.py",
    "uv run diffusion-lightning predict --ckpt_path sd.ckpt": "tests/interop/test_pipelines.py",
    "uv run diffusion-lightning export sd.ckpt": "tests/interop/test_pipelines.py",
    "uv run diffusion-lightning fit --config imagenet256_dit_xl2": "tests/cli/test_latent_recipes.py",
    "uv run diffusion-lightning fit --config stable_diffusion_lora": "tests/interop/test_lora.py",
    "uv run diffusion-lightning predict --ckpt_path runs/stable_diffusion_lora": "tests/interop/test_lora.py",
    "uv run diffusion-lightning export runs/stable_diffusion_lora": "tests/interop/test_lora.py",
    "uv run diffusion-lightning fit --config folder_ldm": "tests/cli/test_folder_latents.py",
    "uv run diffusion-lightning predict --ckpt_path runs/folder_ldm": "tests/cli/test_folder_latents.py",
    "uv run diffusion-lightning fit --config latent_scenes": "tests/cli/test_latent_recipes.py",
    "uv run diffusion-lightning predict --ckpt_path runs/latent_scenes": "tests/cli/test_latent_recipes.py",
}

# Of Python on the pages, so that a training takes seconds.
SMALLER = {"max_epochs=136": "max_epochs=1", "every_n_epoch=68": "every_n_epoch=1", "n=297": "n=20",
           "DDIM(50)": "DDIM(2)", "SampleGrid(64": "SampleGrid(4", "groups=8": "groups=4", "Heun(50)": "Heun(5)",
           "channels=32, multipliers=(1, 2, 2)": "channels=8, multipliers=(1, 2)"}  # fmt: skip


TRAINED = ('.load("runs/', "to_uint8(images)")  # in what needs a trained model


def python(page: Path) -> list[str]:
    return blocks(page, "python")


def needs_a_model(block: str) -> bool:
    return any(part in block for part in TRAINED)


def of_ones_own() -> dict[str, str]:
    """The files that the pages tell one to write, by their names: each is the same wherever it stands."""
    found: dict[str, str] = {}
    for block in (block for page in PAGES for block in python(page) if block.startswith("# my_")):
        name = block.partition("\n")[0].removeprefix("# ")
        assert found.setdefault(name, block) == block, name
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/python.md"], ids=lambda page: page.name)
def test_the_examples_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a trained model is tested with the commands."""
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for example in (block for block in python(page) if not block.startswith("# my_") and not needs_a_model(block)):
        for full, small in SMALLER.items():
            example = example.replace(full, small)
        exec(example, space)
    if "x_0" in space:
        assert space["x_0"].shape == (4, 1, 8, 8)
        assert torch.isfinite(space["x_0"]).all()
    if "between" in space:
        assert space["between"].shape == (5, 1, 1, 8, 8)
        assert torch.equal(space["filled"][:, :, :4], space["x_0"][:, :, :4])
    if "ema" in space:  # trained, and drawn from the average
        assert space["ema"].updates == 11
        assert space["drawn"].shape == (16, 1, 8, 8)
        assert {path.name for path in tmp_path.rglob("step=*.png")} == {"step=11.png"}


def test_a_network_and_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class_path, from files in the working directory; the checkpoint then draws samples too."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_network.py", "my_data.py"):
        (tmp_path / name).write_text(of_ones_own()[name], encoding="utf-8")
    main(["fit", "--config", str(small_config(tmp_path)), "--trainer.logger", "false",
          "--model.init_args.network", "my_network.MyNetwork", "--data", "my_data.MyData"])  # fmt: skip
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert any("layers" in key for key in read(last)["state_dict"])
    main(["predict", "--ckpt_path", str(last), "--n", "2", "--out", "drawn", "--trust", "my_network"])
    assert len(list((tmp_path / "drawn").iterdir())) == 2


SHOWN = [command for command in commands() if not command.text.startswith(tuple(ELSEWHERE))]


def test_every_command_is_run_or_known() -> None:
    """What is not this program's own runs elsewhere; and no list here is longer than it must be."""
    assert all(command.words[0] == "diffusion-lightning" for command in SHOWN)
    texts = [command.text for command in commands()]
    for start in ELSEWHERE:
        assert any(text.startswith(start) for text in texts), start
    for place in ELSEWHERE.values():
        assert (ROOT / place).exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the commands of the pages name: pictures, files of one's own, a checkpoint of diffusers."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("world")
    for name, text in of_ones_own().items():
        (folder / name).write_text(text, encoding="utf-8")
    draw = np.random.default_rng(0)
    colour = (70, 66, 3)
    made = {"my_pictures": (40, colour), "my_classes/cats": (20, colour), "my_classes/dogs": (20, colour),
            "my_captions": (20, colour), "train_images": (70, (8, 8))}  # fmt: skip
    for place, (n, shape) in made.items():
        (folder / place).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(folder / place / f"{i}.png")
            if place == "my_captions":
                (folder / place / f"{i}.txt").write_text(f"a cat on {'a chair' if i % 2 else 'a mat'}\n")
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder / "ddpm-cifar10-32")
    (folder / "small").mkdir()
    config = small_config(folder / "small", **{"model.init_args.schedule.init_args.T": 60})
    main(["fit", "--config", str(config), "--trainer.default_root_dir", str(folder / "runs/digits"),
          "--trainer.logger", "false", "--trainer.max_steps", "4"])  # fmt: skip
    main(["predict", "--ckpt_path", str(folder / "runs/digits/checkpoints/last.ckpt"), "--n", "64", "--seed", "1",
          "--out", str(folder / "drawn/more")])  # fmt: skip
    for i, name in enumerate(("me.png", "other.png", "noisy.png")):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64), np.uint8)).save(folder / name)
    hole = Image.new("L", (64, 48))
    hole.paste(255, (24, 16, 40, 32))
    hole.save(folder / "hole.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


# A full command's words and those of the same command on a small scale.
SCALED = {
    "50000": "66",
    "CKPT": "runs/digits/checkpoints/last.ckpt",
    "3000": "8 --model.init_args.lr_scheduler.init_args.total_steps 8",  # the small recipe states its length
    "every_n_train_steps 50": "every_n_train_steps 1",
    "0.16 0.22": "0.07",  # of which six steps have averages
    "1485 --lengths 0.05 0.1 0.19 0.27": "70 --lengths 0.05 0.1",
    "max_steps 200": "max_steps 4",
    "sampler.steps 250": "sampler.steps 20",
    "val_check_interval 200": "val_check_interval 4",
    "runs/digits/more": "drawn/more",  # which the run's last line tells one to draw
    "path my_classes": "path my_classes --data.init_args.batch_size 2 --trainer.limit_val_batches 0"
    " --trainer.max_steps 2 --model.init_args.network.init_args.channels 32",
    "path my_captions": "path my_captions --data.init_args.batch_size 2 --trainer.limit_val_batches 0"
    " --trainer.max_steps 2 --model.init_args.network.init_args.channels 32",
    "path my_pictures": "path my_pictures --data.init_args.batch_size 2 --trainer.limit_val_batches 0"
    " --trainer.max_steps 2 --model.init_args.network.init_args.channels 32",
    "score samples.npz train_images/": "score samples.npz train_images/ --extractor digits --few",
    "--trainer.logger.offline false": "--trainer.default_root_dir runs/watched",
}

SCENES = [
    "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.init_args.n", "40",
    "--data.init_args.held_out", "8", "--data.init_args.batch_size", "4", "--grid.n", "2", "--chain.n", "2",
    "--metrics.n", "4", "--metrics.batch_size", "4",
]  # fmt: skip


def scaled(command: Command, folder: Path) -> list[str]:
    """The words to call `main` with: the recipe of digits is a small one, and no run is watched."""
    text = shlex.join(command.words[1:])
    for full, small in SCALED.items():
        text = re.sub(rf"(?<![\w/]){re.escape(full)}(?![\w/])", small, text)
    if "--config my.yaml" in text:  # a copy of the first recipe
        text += " --trainer.default_root_dir runs/copy"
    text = re.sub(r"--config (digits|my\.yaml)(?= |$)", f"--config {folder}/small/small.yaml", text)
    text = re.sub(r"--config (\w+)(?= |$)", rf"--config {ROOT}/configs/\1.yaml", text)
    words = shlex.split(text)
    if words[0] == "fit":
        words += ["--trainer.logger", "false"]
        if "/digits_" in text:
            words += ["--trainer.max_steps", "4", "--trainer.val_check_interval", "4"]
            if "digits_classifier" not in text:
                words += ["--checkpoint.monitor", "null", "--metrics", "null", "--grid", "null", "--chain", "null"]
        if "scenes.yaml" in text:
            words += SCENES
        if "--trainer.default_root_dir" not in words:
            of = re.search(r"(folder\w*|digits_\w+|scenes)\.yaml", text)
            words += ["--trainer.default_root_dir", f"runs/{of[1] if of else 'digits'}"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWN, ids=lambda command: command.text[:100])
def test_the_commands_one_after_the_other(command: Command, world: Path) -> None:
    """In the order of the pages: some need what those before them have made."""
    words = scaled(command, world)
    if words[0] == "fit" and "--ckpt_path" not in words:
        shutil.rmtree(words[words.index("--trainer.default_root_dir") + 1], ignore_errors=True)
    if words[0] == "edit" and "--resample" not in words and "inpaint" in words:
        words += ["--resample", "2"]
    if words[0] == "predict":
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    if ">" in words:
        *words, _, file = words
        with open(file, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
            main(words)
        assert Path(file).read_text(encoding="utf-8") == CONFIG.read_text(encoding="utf-8")
        return
    main(words)
    for option in ("--out", "--json"):
        if option in words:
            assert Path(words[words.index(option) + 1]).exists()
    if words[0] == "fit":
        assert Path(words[words.index("--trainer.default_root_dir") + 1], "checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_python_with_the_trained_model(world: Path) -> None:
    """With those of the commands, the last of which has a network of one's own."""
    space: dict = {}
    for block in (block for page in PAGES for block in python(page) if needs_a_model(block)):
        exec(block, space)
    assert space["images"].shape == (16, 1, 8, 8)
    assert type(space["model"].denoiser.network).__name__ == "MyNetwork"


@pytest.mark.parametrize("command", [c for c in commands() if "torchrun" in c.text], ids=lambda command: command.page)
def test_torchrun_takes_its_options(command: Command) -> None:
    words = command.words
    given = get_args_parser().parse_args(words[1:])
    assert (given.training_script, given.module) == ("diffusion_lightning", True)
    assert given.training_script_args[0] == "fit"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_it_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for place in re.findall(r"(?<![\w./])(?:configs|benchmarks|tests|diffusion_lightning)/[\w./=-]+\w", text):
        assert (ROOT / place).exists(), place
    for module in re.findall(r"python -m (benchmarks[\w.]*)(?: |`|$)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or (ROOT / module).is_dir(), module
    for part in re.findall(r"(?:python -m benchmarks|`…) (\w+)", text):
        assert (ROOT / f"benchmarks/{part}.py").exists(), part


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 10_240
