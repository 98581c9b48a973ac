"""`predict` with prompts: what is asked of which model, and the files of prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffusion_lightning.cli import main

from ..support.captions import with_captions
from ..support.commands import fails

DRAW = ["--sampler", "DDIM", "--sampler.steps", "2", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of captioned images, of two steps."""
    folder = tmp_path_factory.mktemp("captioned")
    changes: dict[str, Any] = {"trainer.max_steps": 2, "trainer.val_check_interval": 2}
    main(["fit", "--config", str(with_captions(folder, **changes)), "--trainer.logger", "false"])
    return folder / "run"


BAD: dict[str, tuple[list[str], str]] = {
    "a class": (["--y", "3"], "--y 3 is given, but the model takes captions: give --prompt or --prompts"),
    "a class by its name": (["--y", "dark"], "--y dark is given, but the model takes captions"),
    "a class and a prompt": (["--y", "3", "--prompt", "a"], "takes captions: give --prompt or --prompts"),
    "two at once": (["--prompt", "a dark image", "--prompts", "FILE"], "are both given: leave one out"),
    "no such file": (["--prompts", "nowhere.txt"], "--prompts is nowhere.txt, which is no file"),
    "a folder": (["--prompts", "."], "which is no file"),
    "an empty file": (["--prompts", "EMPTY"], "holds no prompt: write one a line"),
    "no text": (["--prompts", "BYTES"], "is no text in UTF-8 (byte 2): save it as such"),
    "a negative prompt that nothing leads away from": (
        ["--prompt", "a dark image", "--negative_prompt", "a light image"],
        "no guidance leads away from it: give --guidance a scale",
    ),
    "a negative prompt and a scale of 1": (
        ["--negative_prompt", "a light image", "--guidance", "1"],
        "no guidance leads away from it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_drawn_is_one_sentence(
    case: str, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"FILE": b"a dark image\n", "EMPTY": b"\n \n", "BYTES": b"a \xff\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    words, says = BAD[case]
    words = [str(tmp_path / word) if word in files else word for word in words]
    said = fails(capsys, "predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / "out"), *DRAW, *words)
    assert says in said
    assert not (tmp_path / "out").exists()


def test_a_prompt_for_a_model_of_classes_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--ckpt_path", str(run), "--out", str(tmp_path / "out"), *DRAW, "--prompt", "a seven"]
    assert "the prompt a seven is given, but the model was trained without a condition" in fails(capsys, *words)


def test_prompts_are_taken_in_turn_and_a_run_that_was_stopped_goes_on(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffa dark image, lighter above\r\na light image, lighter below\r\n".encode())
    words = ["predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / "out"), *DRAW, "--prompts", str(prompts)]
    main([*words, "--n", "1"])
    main([*words, "--n", "5"])
    assert "wrote 4 samples" in capsys.readouterr().out
    lines = (tmp_path / "out/captions.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line)["text"] for line in lines]
    assert said == ["a dark image, lighter above", "a light image, lighter below"] * 2 + ["a dark image, lighter above"]
    prompts.write_text("a grey image\n", encoding="utf-8")
    assert "but now prompt is a grey image: choose another --out" in fails(capsys, *words)


def test_a_negative_prompt_is_a_part_of_the_samples_record(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / "out"), *DRAW, "--n", "1"]
    words += ["--prompt", "a dark image", "--guidance", "3"]
    main([*words, "--negative_prompt", "a light image"])
    said = fails(capsys, *words, "--negative_prompt", "a grey image")
    assert "was drawn with negative_prompt a light image, but now negative_prompt is a grey image" in said
    assert "was drawn with negative_prompt a light image, but now negative_prompt is None" in fails(capsys, *words)


def test_an_index_that_is_missing_is_written_though_all_samples_are_there(captioned: Path, tmp_path: Path) -> None:
    words = ["predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / "out"), *DRAW, "--n", "2"]
    main(words)
    index = (tmp_path / "out/captions.jsonl").read_bytes()
    (tmp_path / "out/captions.jsonl").unlink()
    main(words)
    assert (tmp_path / "out/captions.jsonl").read_bytes() == index


@pytest.mark.parametrize("name", ["all.npz", "all.png"])
def test_one_file_of_all_samples_is_of_its_prompts(
    name: str, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    words = ["predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / name), *DRAW, "--prompts", str(prompts)]
    prompts.write_text("".join(f"a dark image, lighter above, {i}\n" for i in range(3)), encoding="utf-8")
    main(words)
    main(words)
    assert "holds these 3 samples already" in capsys.readouterr().out
    prompts.write_text("".join(f"a dark image, lighter below, {i}\n" for i in range(3)), encoding="utf-8")
    assert "was drawn with prompts" in fails(capsys, *words)


def test_a_prompt_that_is_no_text_is_one_sentence(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--ckpt_path", str(captioned), "--out", str(tmp_path / "out"), *DRAW, "--prompt", "a \udcff"]
    assert "--prompt holds bytes that are no text in UTF-8" in fails(capsys, *words)
