"""`edit`: its six actions on a finished run, what lies beside what it makes, and what it refuses in one sentence."""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_lightning
from diffusion_lightning import images
from diffusion_lightning.cli import drawing, edit, main, pictures
from diffusion_lightning.cli.options import ACTIONS
from diffusion_lightning.edits import Edits
from diffusion_lightning.images import origin
from diffusion_lightning.records import Part
from diffusion_lightning.samplers import DDIM, Ancestral

from ..support.commands import fails
from ..support.conditions import with_classes
from ..support.first_stages import autoencoder, with_stage
from ..support.generatives import words as fit_words
from ..support.pictures import noise

WORDS: dict[str, list[str]] = {
    "interpolate": ["a.png", "b.png", "--frames", "3"],
    "inpaint": ["a.png", "--mask", "mask.png", "--n", "2", "--resample", "2"],
    "vary": ["a.png", "--strength", "0.6", "--n", "2"],
    "invert": ["a.png"],
    "denoise": ["a.png", "--sigma", "0.5"],
    "film": ["--n", "3", "--frames", "4"],
}
MADE = {"interpolate": 3, "inpaint": 2, "vary": 2, "invert": 2, "denoise": 1}  # images of each


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two pictures of 8×8 pixels, a photo, and masks of either size."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 0), ("b.png", 1)):
        Image.fromarray(noise(8, 8, seed=seed)).save(name)
    Image.fromarray(noise(48, 64, 3)).save("photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask.repeat(6, 0).repeat(8, 1)).save("large_mask.png")
    return tmp_path


def words(run: Path, action: str, out: str, *more: str) -> list[str]:
    return ["edit", action, *WORDS[action], "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--out", out, *more]


def pixels(name: str | Path) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_makes_a_picture_and_says_how(
    action: str, run: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = "out.webp" if action == "film" else "out.png"
    before = set(here.iterdir())
    main(words(run, action, out))
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == f"wrote {out}"
    if action != "film":
        assert said.out.startswith("a.png: 8x8 grey, taken in its size\n")
    assert f"edit {action} 100%" in said.err
    new = {path.name for path in set(here.iterdir()) - before}
    assert new == {out, f"{out}.json"} | ({f"{out}.npz"} if action == "invert" else set())
    record = json.loads(Path(f"{out}.json").read_text())
    assert record["request"]["action"] == action
    assert record["request"]["shape"] == [1, 8, 8]
    assert record["request"]["sampler"]["class_path"] == "diffusion_lightning.samplers.DDIM"
    assert [picture["name"] for picture in record["request"]["pictures"]] == [
        word for word in WORDS[action] if word.endswith(".png")
    ]
    assert str(here) not in json.dumps(record)
    assert str(run) not in json.dumps(record)

    moments = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    main(words(run, action, out))  # again: it is kept
    assert capfd.readouterr().out.endswith(f"{out} holds this already\n")
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == moments


@pytest.mark.parametrize("action", MADE)
def test_a_folder_has_a_picture_of_each(action: str, run: Path, here: Path) -> None:
    main(words(run, action, "out"))
    names = [f"{i:06d}.png" for i in range(MADE[action])] + ["request.json"]
    assert sorted(path.name for path in (here / "out").iterdir()) == sorted(
        [*names, "x_T.npz"] if action == "invert" else names
    )
    assert all(pixels(path).shape == (8, 8) for path in (here / "out").glob("*.png"))
    (here / "out/000000.png").unlink()  # a command that was stopped is given again
    main(words(run, action, "out"))
    made = origin(here / "out/000000.png")
    assert made is not None
    assert (made["action"], made["number"]) == (action, 0)


def test_the_pictures_are_what_the_module_makes(run: Path, here: Path) -> None:
    model, own = diffusion_lightning.load(run), DDIM(3)
    picture, _ = pictures.picture("a.png", (1, 8, 8))
    known, _ = pictures.mask("mask.png", (1, 8, 8))
    edits = Edits(model, own)
    wanted = {
        "vary": edits.vary(picture, 0.6, 2),
        "inpaint": edits.inpaint(picture, known, 2, 2),
        "denoise": edits.denoise(picture, 0.5)[None],
    }
    for action, made in wanted.items():
        main(words(run, action, action))
        found = np.stack([pixels(here / action / f"{i:06d}.png") for i in range(MADE[action])])
        assert (found == images.to_uint8(made)[:, 0].numpy()).all(), action
    main(words(run, "invert", "invert.png"))
    with np.load("invert.png.npz") as file:
        assert np.allclose(file["x_T"], edits.invert(picture)[0].numpy(), atol=1e-5)


def test_strength_0_gives_the_pictures_bytes(run: Path, here: Path) -> None:
    main(words(run, "vary", "same", "--strength", "0"))
    for path in (here / "same").glob("*.png"):
        assert (pixels(path) == pixels("a.png")).all()
    main(words(run, "denoise", "clean", "--sigma", "0"))
    assert (pixels("clean/000000.png") == pixels("a.png")).all()


def test_known_pixels_stay_within_a_grey_level(run: Path, here: Path) -> None:
    main(words(run, "inpaint", "filled"))
    for path in (here / "filled").glob("*.png"):
        changed = np.abs(pixels(path).astype(int) - pixels("a.png").astype(int))
        assert changed[pixels("mask.png") == 0].max() <= 1
        assert changed[pixels("mask.png") == 255].max() > 1
    assert json.loads(Path("filled/request.json").read_text())["known_grey_levels"] <= 1


def test_a_film_plays(run: Path, here: Path) -> None:
    main(words(run, "film", "film.gif"))
    with Image.open("film.gif") as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]
        first = film.info["duration"]
        film.seek(3)
        assert film.info["duration"] > 5 * first
        assert film.size == (2 * 72 + 8, 2 * 72 + 8)


def test_an_action_takes_the_runs_sampler_unless_it_cannot_be_inverted(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody names one; a named one is taken, or refused."""
    monkeypatch.setattr(drawing, "own_sampler", lambda *given: Part(Ancestral, {"steps": 4}))
    for action, kind in (("invert", "DDIM"), ("interpolate", "DDIM"), ("vary", "Ancestral")):
        main(words(run, action, f"{action}.png"))
        request = json.loads(Path(f"{action}.png.json").read_text())["request"]
        assert request["sampler"]["class_path"].endswith(f".{kind}")
    said = fails(capsys, *words(run, "invert", "x.png", "--sampler", "Ancestral", "--sampler.steps", "4"))
    assert "Ancestral adds noise of its own" in said
    assert not Path("x.png").exists()


# Pictures and masks


def test_a_photo_is_brought_to_the_models_size_and_said_so(here: Path) -> None:
    found, said = pictures.picture("photo.png", (1, 8, 8))
    assert said == "photo.png: 64x48 RGB, cut to 48x48, resized to 8x8, made grey"
    assert found.shape == (1, 8, 8)
    with Image.open("photo.png") as photo:
        square = np.asarray(photo.convert("L").crop((8, 0, 56, 48)).resize((8, 8), Image.Resampling.BOX))
    assert (images.to_uint8(found)[0].numpy() == square).all()
    assert pictures.picture("photo.png", (3, 96, 96))[1].endswith("cut to 48x48, enlarged to 96x96")
    found, said = pictures.picture("a.png", (3, 8, 8))
    assert said == "a.png: 8x8 grey, taken in its size, its grey taken for three colours"
    assert (images.to_uint8(found).numpy() == pixels("a.png")).all()
    assert pictures.picture("photo.png", (3, 48, 64))[1] == "photo.png: 64x48 RGB, taken in its size"


def test_a_mask_keeps_what_is_black_in_every_pixel_below(here: Path) -> None:
    known, said = pictures.mask("mask.png", (1, 8, 8))
    assert (known[0].numpy() == (pixels("mask.png") == 0)).all()
    assert said.endswith("20 of 64 pixels white, which are drawn anew")
    large, said = pictures.mask("large_mask.png", (1, 8, 8), "photo.png")
    assert "64x48 grey, cut to 48x48, resized to 8x8" in said
    square = pixels("large_mask.png")[:, 8:56].reshape(8, 6, 8, 6)
    assert (large[0].numpy() == (square.max((1, 3)) == 0)).all()
    grey = np.full((8, 8), 127, np.uint8)
    grey[0, 0] = 128
    Image.fromarray(grey).save("grey.png")
    assert pictures.mask("grey.png", (1, 8, 8))[0].sum() == 63


def test_a_photo_with_a_mask_of_its_size(run: Path, here: Path) -> None:
    given = ["--ckpt_path", str(run), "--n", "1", "--resample", "1", "--out"]
    main(["edit", "inpaint", "photo.png", "--mask", "large_mask.png", *given, "large"])
    main(["edit", "inpaint", "photo.png", "--mask", "mask.png", *given, "of_the_models_size"])


# Refusals


def cut_short(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(stream, "PNG")
    path.write_bytes(stream.getvalue()[:-150])


def bomb() -> bytes:
    """A PNG whose header says 60,000×60,000 pixels."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4)
    return bytes(data)


BAD: dict[str, Callable[[Path], Any]] = {
    "words.png": lambda path: path.write_text("these are words"),
    "empty.png": lambda path: path.write_bytes(b""),
    "cut.png": cut_short,
    "folder.png": lambda path: path.mkdir(),
    "bomb.png": lambda path: path.write_bytes(bomb()),
}


@pytest.mark.tried("Pictures and archives")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", ["picture", "mask"])
def test_a_picture_to_edit_that_is_not_whole(
    name: str, place: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BAD[name](here / name)
    given = [name, "--mask", "mask.png"] if place == "picture" else ["a.png", "--mask", name]
    said = fails(capsys, "edit", "inpaint", *given, "--ckpt_path", str(run), "--out", "out.png")
    assert f"{name} cannot be read as a picture (" in said
    assert not Path("out.png").exists()


@pytest.mark.tried("Numbers, precision and words")
def test_words_of_edit_that_are_wrong(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence each, and nothing is written."""
    there = set(here.iterdir())
    (here / "black.png").write_bytes((here / "a.png").read_bytes())
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (8, 8), 255).save("white.png")
    Image.new("L", (5, 7)).save("other.png")
    there |= {here / name for name in ("black.png", "white.png", "other.png")}
    ckpt = ["--ckpt_path", str(run)]
    out = [*ckpt, "--out", "out.png"]
    wrong = {
        "no action is given: give one of interpolate": [],
        "there is no edit vray (did you mean vary?)": ["vray", "a.png", *out],
        "missing.png: No such file or directory": ["vary", "missing.png", "--strength", "0.5", *out],
        "-x.png begins as an option does: name the picture ./-x.png": ["vary", "-x.png", "--strength", "0.5", *out],
        "there is no option mask": ["vary", "a.png", "--strength", "0.5", "--mask", "mask.png", *out],
        "strength is nan": ["vary", "a.png", "--strength", "nan", *out],
        "--strength is 1.5": ["vary", "a.png", "--strength", "1.5", *out],
        "--strength is -0.5": ["vary", "a.png", "--strength=-0.5", *out],
        "sigma is inf": ["denoise", "a.png", "--sigma", "inf", *out],
        "--sigma is -1.0": ["denoise", "a.png", "--sigma=-1", *out],
        "--n is 0": ["vary", "a.png", "--strength", "0.5", "--n", "0", *out],
        "--frames is 1": ["interpolate", "a.png", "b.png", "--frames", "1", *out],
        "--resample is 0": ["inpaint", "a.png", "--mask", "mask.png", "--resample", "0", *out],
        "required: strength": ["vary", "a.png", *out],
        "required: b": ["interpolate", "a.png", *out],
        "there is no option b.png": ["vary", "a.png", "b.png", "--strength", "0.5", *out],
        "keeps every pixel": ["inpaint", "a.png", "--mask", "black.png", *out],
        "keeps no pixel": ["inpaint", "a.png", "--mask", "white.png", *out],
        "the mask other.png has 5x7 pixels, but a.png has 8x8": ["inpaint", "a.png", "--mask", "other.png", *out],
        "--out out.gif ends in .gif": ["vary", "a.png", "--strength", "0.5", *ckpt, "--out", "out.gif"],
        "out.png is no name of a film": ["film", *out],
        "is to be an .mp4": ["film", *ckpt, "--out", "film.mp4"],
        "the seed is": ["film", *ckpt, "--out", "film.webp", "--seed", "-1"],
        "there is no device": ["film", *ckpt, "--out", "film.webp", "--device", "abacus"],
        "--y 3 is given, but the model was trained without": ["film", *ckpt, "--out", "film.webp", "--y", "3"],
        "a side of a .webp has 16383 at most": ["film", *ckpt, "--out", "film.webp", "--n", "60000"],
        "a.png is there already and does not say": ["vary", "b.png", "--strength", "0.5", *ckpt, "--out", "a.png"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(here))
        for says, given in wrong.items():
            said = fails(capsys, "edit", *given).replace("--seed is", "the seed is")
            assert says in said, given
    assert set(here.iterdir()) == there


def test_edits_and_samples_of_predict_never_share_a_folder(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["predict", "--ckpt_path", str(run), "--n", "4", "--sampler", "DDIM", "--sampler.steps", "3"]
    main(words(run, "vary", "edits", "--sampler", "DDIM", "--sampler.steps", "3"))
    assert "was drawn with action vary, but now action is None" in fails(capsys, *predict, "--out", "edits")
    main([*predict, "--out", "samples", "--first", "7"])
    assert "does not say that this command made it" in fails(capsys, *words(run, "vary", "samples"))
    assert {path.name for path in (here / "samples").iterdir()} == {f"{i:06d}.png" for i in range(7, 11)}


@pytest.mark.parametrize("out", ["out.png", "out", "out.webp"])
def test_another_request_is_never_written_over(
    out: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action = "film" if out == "out.webp" else "vary"
    main(words(run, action, out))
    before = {path: path.read_bytes() for path in here.rglob("out*") if path.is_file()}
    changed: dict[str, list[str]] = {
        "seed 0, but now seed is 1": words(run, action, out, "--seed", "1"),
        "n 3, but now n is 5" if action == "film" else "n 2, but now n is 5": words(run, action, out, "--n", "5"),
        "checkpoint": [str(run / "checkpoints/best.ckpt") if "last.ckpt" in x else x for x in words(run, action, out)],
        "sampler DDIM(": words(run, action, out, "--sampler", "Ancestral"),
    }
    if action == "vary":
        changed["action vary, but now action is inpaint"] = words(run, "inpaint", out)
        changed["strength 0.6, but now strength is 0.7"] = words(run, action, out, "--strength", "0.7")
        changed["pictures a.png ("] = [x.replace("a.png", "b.png") for x in words(run, action, out)]
    for says, given in changed.items():
        said = fails(capsys, *given)
        assert says in said
        assert "choose another --out, or remove" in said
    record = here / ("out/request.json" if out == "out" else f"{out}.json")
    before[record] = b'{"request": 3}'
    record.write_bytes(before[record])
    assert "is no request of this command" in fails(capsys, *words(run, action, out))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.tried("Pictures and archives")
@pytest.mark.parametrize(
    "text",
    [
        "", "words", "[]", "{}", '{"request": 3}', '{"request": {"sampler": {"init_args": 3}}}',
        '{"request": {"seed": "' + 10_000 * "a" + '"}}', '{"request": {"\\u001b[31m": 1}}', 100_000 * "[",
        '{"request": {"pictures": "' + 2**21 * "a" + '"}}', "\x00\xff",
    ],
    ids=["empty", "words", "a list", "no request", "a number", "arguments that are none", "a long value", "an escape",
         "depth", "a long file", "bytes"],
)  # fmt: skip
def test_a_request_that_this_command_did_not_write(
    text: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is data: one short sentence, whatever it holds."""
    Path("out.png.json").write_text(text, encoding="utf-8")
    said = fails(capsys, *words(run, "vary", "out.png"))
    assert "choose another --out, or remove" in said
    assert len(said) < 1000
    assert said.isprintable()
    assert Path("out.png.json").read_text(encoding="utf-8") == text


def test_a_picture_of_another_is_not_taken_for_the_same(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its content, whatever its name."""
    main(words(run, "vary", "out.png"))
    (here / "a.png").write_bytes((here / "b.png").read_bytes())
    assert "but now pictures is a.png (" in fails(capsys, *words(run, "vary", "out.png"))


# Other models


@pytest.mark.slow
def test_a_model_of_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(with_classes(here, **{"trainer.logger": False}))])
    run = here / "run"
    for y in ([], ["--y", "3"]):
        main(words(run, "vary", f"vary{len(y)}", *y))
    assert json.loads(Path("vary2/request.json").read_text())["request"]["y"] == 3
    assert json.loads(Path("vary0/request.json").read_text())["request"]["y"] is None
    assert "a label is 12" in fails(capsys, *words(run, "vary", "x.png", "--y", "12"))


@pytest.mark.slow
def test_a_model_of_latents(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    autoencoder(here / "vae")
    config = with_stage(here, here / "vae", **{"trainer__logger": False})
    main(["fit", "--config", str(config)])
    ddim = ["--sampler", "DDIM", "--sampler.steps", "3", "--sampler.clip", "null"]
    for action in ("interpolate", "inpaint", "vary", "invert"):
        main(words(here / "run", action, f"{action}.png", *ddim))
    main(words(here / "run", "film", "film.webp", *ddim))
    assert json.loads(Path("inpaint.png.json").read_text())["known_grey_levels"] <= 1
    with np.load("invert.png.npz") as file:
        assert file["x_T"].shape == (4, 4, 4)
    assert "the model diffuses latents" in fails(capsys, *words(here / "run", "denoise", "x.png", *ddim))


def test_noise_is_shown_as_a_picture() -> None:
    """Within three deviations, whatever its channels; each number of a latent is a square."""
    image = torch.zeros(1, 8, 8)
    x_T = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    shown = edit.as_picture(x_T, image)
    assert shown.shape == image.shape
    assert torch.equal(shown[:, ::2, ::2], shown[:, 1::2, 1::2])
    torch.testing.assert_close(shown[:, ::2, ::2], (x_T.sum(0, keepdim=True) / 2 / 3).clamp(-1, 1))
    same = torch.randn(1, 8, 8)
    assert torch.equal(edit.as_picture(same, image), (same / 3).clamp(-1, 1))


@pytest.mark.slow
def test_a_gan_is_refused(here: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(fit_words("GAN", here, max_steps=2))
    said = fails(capsys, *words(here / "GAN", "film", "film.webp"))
    assert "GAN makes an image in one go" in said
