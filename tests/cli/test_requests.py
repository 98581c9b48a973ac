"""What may be asked of `generate` and `predict`: classes by number or name, and a scale of guidance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.data import Digits
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.images import Folder, to_uint8
from diffusion_lightning.loading import load
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

from ..conftest import BARE, tiny_unet
from ..support.commands import fails
from ..support.conditions import conditional, with_classes

tried = pytest.mark.tried("Numbers, precision and words")

NAMES = ["Dogs", "Flags", "Ships"]
DIGITS = ["zero", "one", "Two", "three", "four", "five", "six", "7", "eight", "Straße"]


def named(names: list[str] | None = None) -> Diffusion:
    model = conditional()
    model.class_names = NAMES if names is None else names
    return model


@tried
@pytest.mark.parametrize(
    "y",
    [
        1,
        "Flags",
        np.int64(1),
        torch.tensor(1),
        [1, 1, 1, 1],
        ("Flags", 1, "Flags", 1),
        np.array([1, 1, 1, 1]),
        torch.ones(4, dtype=torch.uint8),
        torch.ones(4, dtype=torch.int32),
    ],
    ids=[
        "an int", "a name", "an int of numpy", "a tensor of one number", "a list of ints", "a tuple of names and ints",
        "an array of numpy", "bytes", "a tensor of 32 bits",
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch_size", [None, 3], ids=["in one batch", "in blocks"])
def test_a_class_may_be_asked_for_in_any_of_these_forms(y: Any, batch_size: int | None) -> None:
    model = named()
    expected = model.generate(4, DDIM(2), y=torch.ones(4, dtype=torch.long), first=1, batch_size=batch_size)
    assert torch.equal(model.generate(4, DDIM(2), y=y, first=1, batch_size=batch_size), expected)
    assert not torch.equal(expected, model.generate(4, DDIM(2), y=0, first=1, batch_size=batch_size))


@tried
def test_a_list_gives_each_sample_its_own_class() -> None:
    model = named()
    expected = model.generate(3, DDIM(2), y=torch.tensor([2, 0, 1]))
    assert torch.equal(model.generate(3, DDIM(2), y=["Ships", 0, "Flags"]), expected)


@tried
@pytest.mark.parametrize("scale", [0, 0.0, 1, 2, 2.0, np.float32(2.0), torch.tensor(2.0)],
                         ids=lambda s: f"{type(s).__name__} {s:g}")  # fmt: skip
def test_the_scale_of_guidance_may_be_a_number(scale: Any) -> None:
    """Zero too, which is no condition at all and not no guidance."""
    model = conditional()
    expected = model.generate(3, DDIM(2), y=1, guidance=ClassifierFree(float(scale)))
    assert torch.equal(model.generate(3, DDIM(2), y=1, guidance=scale), expected)
    if scale == 0:
        torch.testing.assert_close(expected, model.generate(3, DDIM(2), y=3))  # the null class


def without_classes() -> Diffusion:
    return Diffusion(tiny_unet(), Linear(20), (1, 8, 8))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a name in other letters": (named, {"y": "fLAGS"}, r"no class of this name \(did you mean Flags\?\): give one of"),
    "a name with a slip": (named, {"y": "Shps"}, r"y is Shps, but .* \(did you mean Ships\?\)"),
    "a name far from all": (named, {"y": "aeroplanes"}, "y is aeroplanes, .* of this name: give one of Dogs, Flags"),
    "a slip in a list": (named, {"y": ["Dogs", "Flag"]}, r"y is Flag, .*did you mean Flags"),
    "a name among many": (
        lambda: named([f"class {i}" for i in range(99)]), {"y": "x"}, r"class 0, .*class 9, … \(99 in all\)"
    ),
    "a name of a model without names": (conditional, {"y": "Flags"}, "has no names of its classes: give"),
    "a name beyond the table": (lambda: named([*NAMES, "a", "b"]), {"y": "b"}, "a label is 4, but the model has 3"),
    "a name of a model without classes": (without_classes, {"y": "Flags"}, "trained without a condition: leave y out"),
    "an int of a model without classes": (without_classes, {"y": 0}, "trained without a condition: leave y out"),
    "an int too large": (named, {"y": 4}, "a label is 4, but the model has 3 classes: give labels 0 … 2, or 3"),
    "a negative int": (named, {"y": -1}, "a label is -1"),
    "a float": (named, {"y": 1.0}, "the labels are float32 of .*, but a class is one whole number"),
    "true or false": (named, {"y": True}, "the labels are bool"),
    "a list too short": (named, {"y": [1]}, r"y has shape \[1\], but there are 2 samples"),
    "an empty list": (named, {"y": []}, r"y has shape \[0\], but there are 2 samples"),
    "a negative scale": (named, {"guidance": -1.0}, "the scale of guidance is -1.0, but it is a finite number of at"),
    "a scale that is no number": (named, {"guidance": float("nan")}, "the scale of guidance is nan"),
    "a scale for a model without classes": (without_classes, {"guidance": 2.0}, "Unconditional has none: leave"),
    "a scale for a model that never dropped its labels": (lambda: conditional(0.0), {"guidance": 2}, "dropout is 0"),
}  # fmt: skip


@tried
@pytest.mark.parametrize(("make", "given", "says"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_means_nothing_is_refused_in_a_sentence(make: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make().generate(2, DDIM(2), **given)


class Named(Digits):
    """Digits whose classes have names, one of them that of another's number."""

    class_names = DIGITS


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short run with names."""
    folder = tmp_path_factory.mktemp("named")
    config = with_classes(folder, **{"data.class_path": "tests.cli.test_requests.Named", "trainer.max_steps": 1,
                                     "trainer.limit_val_batches": 0})  # fmt: skip
    main(["fit", "--config", str(config), "--trainer.logger", "false", *BARE])
    return folder / "run/checkpoints/last.ckpt"


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


DRAW = ["--n", "3", "--sampler", "DDIM", "--sampler.steps", "2"]


@tried
def test_the_names_of_classes_travel_in_the_checkpoint(ckpt: Path) -> None:
    assert read(ckpt)["class_names"] == DIGITS
    model = load(ckpt)
    assert model.class_names == DIGITS
    assert torch.equal(model.generate(2, DDIM(2), y="Two"), model.generate(2, DDIM(2), y=2))


@tried
def test_a_checkpoint_without_names_loads_as_before(run: Path, tmp_path: Path) -> None:
    """One whose data have none, and one of an earlier version."""
    assert load(run / "checkpoints/last.ckpt").class_names is None
    earlier = {k: v for k, v in read(run / "checkpoints/last.ckpt").items() if k not in ("class_names", "threads")}
    torch.save(earlier, tmp_path / "earlier.ckpt")
    assert load(tmp_path / "earlier.ckpt").class_names is None


@tried
@pytest.mark.parametrize(("word", "number"), [("Two", 2), ("Straße", 9), ("7", 7), ("3", 3)],
                         ids=["a name", "a name beyond ASCII", "a number that is a name too", "a number"])  # fmt: skip
def test_predict_draws_a_class_by_its_name(
    ckpt: Path, tmp_path: Path, word: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it draws is said."""
    main(["predict", "--ckpt_path", str(ckpt), *DRAW, "--out", str(tmp_path / "out"), "--y", word])
    assert f"wrote 3 samples of class {number} ({DIGITS[number]}) to" in capsys.readouterr().out
    first = Folder(tmp_path / "out", channels=1)[0:1]
    assert torch.equal(first, to_uint8(load(ckpt).generate(3, DDIM(2), y=number)[:1]))


@tried
def test_samples_of_a_class_go_on_whether_its_name_is_given_or_its_number(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--ckpt_path", str(ckpt), *DRAW, "--out", str(tmp_path / "out")]
    main([*words, "--y", "Two"])
    found = pictures(tmp_path / "out")
    capsys.readouterr()
    main([*words, "--y", "2"])
    assert "wrote 0 samples" in capsys.readouterr().out
    assert pictures(tmp_path / "out") == found
    main([*words[:-1], str(tmp_path / "other"), "--y", "10"])  # no class, which has no name
    assert "wrote 3 samples of class 10 to" in capsys.readouterr().out
    assert pictures(tmp_path / "other") != found


@tried
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("two", "y is two, but the model has no class of this name (did you mean Two?): give one of zero, one, Two"),
        ("11", "a label is 11, but the model has 10 classes"),
        ("2.0", "y is 2.0, but the model has no class of this name"),
        ("true", "y is true, but the model has no class of this name"),
    ],
    ids=["a name in other letters", "a number too large", "a float", "a word of YAML"],
)
def test_predict_refuses_a_class_that_there_is_not(
    ckpt: Path, tmp_path: Path, word: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", str(ckpt), *DRAW, "--out", str(tmp_path / "out")]
    assert says in fails(capsys, "predict", *words, "--y", word)
    assert not (tmp_path / "out").exists()


@tried
def test_predict_refuses_a_name_where_the_checkpoint_keeps_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), *DRAW, "--out", str(tmp_path / "out")]
    said = fails(capsys, "predict", *words, "--y", "Flags")
    assert "--y Flags is given, but the model was trained without a condition" in said
