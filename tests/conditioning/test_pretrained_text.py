"""A frozen text model as a conditioner: transformers' own numbers, padding, the null condition, the cache, a run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lightning import load
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, PretrainedText, Several
from diffusion_lightning.random import Draw

from ..support.commands import fails
from ..support.text_models import text_model, with_frozen

CAPTIONS = ["A dark image, lighter above", "a light image", "grey"]
KINDS = ("clip", "t5", "qwen2")


class Widths(nn.Module):
    token_width, condition_width = 12, 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    """A folder and the model in it of each kind."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: (str(folder / kind), text_model(folder / kind, kind)) for kind in KINDS}


def encoder(source: str, **given: Any) -> PretrainedText:
    made = PretrainedText(source, **{"length": 10, **given})
    made.join(Widths())
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_transformers(kind: str, sources: dict) -> None:
    source, model = sources[kind]
    text = encoder(source)
    y = text.raw(CAPTIONS, 3)
    tokens, pooled = text.embedded(y)
    for k, row in enumerate(y):
        ids = row[row >= 0][None]
        out = model(input_ids=ids)  # alone and without padding
        assert (tokens[k, : ids.shape[1]] - out.last_hidden_state[0]).abs().max() < 1e-6
        assert not tokens[k, ids.shape[1] :].any()
        if pooled is not None:
            assert (pooled[k] - out.pooler_output[0]).abs().max() < 1e-6
    assert (pooled is None) == (kind != "clip")
    c = text(y)
    assert torch.equal(c.mask, y >= 0)
    assert c.tokens.shape == (3, 10, 12)
    assert (None if c.vector is None else tuple(c.vector.shape)) == ((3, 20) if kind == "clip" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_published_models_attend_to_the_states_as_they_are_and_to_padding(kind: str, sources: dict) -> None:
    """Filled with the tokenizer's own token, without a mask: Stable Diffusion's text conditioning."""
    source, model = sources[kind]
    text = PretrainedText(source, length=10, project=False, attend_padding=True, vector=False)
    own = Widths()
    with pytest.raises(ValueError, match=r"gives tokens of 16 features and the network takes 12"):
        text.join(own)
    text = PretrainedText(source, length=10, project=False, attend_padding=True, vector=False)
    own.token_width = 16
    text.join(own)
    assert not list(text.parameters())
    ids = transformers.AutoTokenizer.from_pretrained(source)(
        [*CAPTIONS, ""], padding="max_length", max_length=10, return_tensors="pt"
    ).input_ids
    # Of a caption without tokens its end is attended to.
    ids[(ids == text.frozen.description["pad"]).all(1), 0] = text.frozen.description["eos"]
    c = text(torch.cat([text.raw(CAPTIONS, 3), text.null(1)]))
    assert c.mask is None
    assert c.vector is None
    assert (c.tokens - model(input_ids=ids).last_hidden_state).abs().max() < 1e-6
    masked = encoder(source)
    assert (masked.embedded(masked.raw(CAPTIONS, 3))[0] - c.tokens[:3]).abs().max() > 0.1


def test_what_is_attended_to_is_not_kept_as_what_is_not(
    sources: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path))
    made = [PretrainedText(sources["clip"][0], length=10, cache=True, attend_padding=on) for on in (False, True)]
    tokens = [text.embedded(text.raw(CAPTIONS, 3))[0] for text in made]
    assert not torch.equal(*tokens)
    assert all(torch.equal(text.embedded(text.raw(CAPTIONS, 3))[0], x) for text, x in zip(made, tokens, strict=True))


def test_weights_that_lack_one_are_refused(sources: dict, tmp_path: Path) -> None:
    """A library would make it up."""
    folder = shutil.copytree(sources["clip"][0], tmp_path / "model")
    kept = load_file(folder / "model.safetensors")
    kept.pop(max(kept))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="copy it again"):
        encoder(str(folder)).embedded(torch.zeros(1, 10, dtype=torch.long))


def test_of_a_whole_clip_the_text_model_is_taken(sources: dict, tmp_path: Path) -> None:
    source, model = sources["clip"]
    pictures = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                "image_size": 8, "patch_size": 4}  # fmt: skip
    config = transformers.CLIPConfig(text_config=model.config.to_dict(), vision_config=pictures)
    both = transformers.CLIPModel(config)
    both.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / name, tmp_path)
    text = encoder(str(tmp_path))
    y = text.raw(CAPTIONS[0], 1)
    out = both.eval().text_model(input_ids=y[y >= 0][None])
    tokens, pooled = text.embedded(y)
    assert (tokens[:, : out.last_hidden_state.shape[1]] - out.last_hidden_state).abs().max() < 1e-6
    assert pooled is not None
    assert (pooled - out.pooler_output).abs().max() < 1e-6
    again = encoder(str(text.frozen.write(tmp_path)))
    assert torch.equal(again.embedded(y)[0], tokens)


def test_an_inner_layer_is_that_of_transformers(sources: dict) -> None:
    source, model = sources["clip"]
    text = encoder(source, layer=-2)
    y = text.raw(CAPTIONS[0], 1)
    own = model(input_ids=y[y >= 0][None], output_hidden_states=True).hidden_states[-2]
    assert (text.embedded(y)[0][:, : own.shape[1]] - own).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_embedding_depends_on_no_padding(kind: str, sources: dict) -> None:
    one, other = encoder(sources[kind][0]), encoder(sources[kind][0], length=20)
    other.load_state_dict({k: v for k, v in one.state_dict().items() if k != "examples"}, strict=False)
    a, b = one(one.raw(CAPTIONS, 3)), other(other.raw(CAPTIONS, 3))
    assert not b.real()[:, 10:].any()
    assert torch.equal(a.real(), b.real()[:, :10])
    assert (a.tokens - b.tokens[:, :10])[a.real()].abs().max() < 1e-6
    assert a.vector is None or (a.vector - b.vector).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_condition_is_the_empty_caption_and_has_a_token(kind: str, sources: dict) -> None:
    text = encoder(sources[kind][0], dropout=0.5)
    assert torch.equal(text.null(2), text.raw("", 2))
    assert (text(text.null(1)).mask.sum(1) >= 1).all()
    assert text.texts(text.null(1)) == [""]
    dropped = text.dropped(text.raw(CAPTIONS[0], 200), Draw(0, "training", 0, torch.arange(200)))
    null = (dropped == text.null(200)).all(1)
    assert 60 < int(null.sum()) < 140
    trained, sampled = text(dropped[null][:1]), text(text.null(1))
    assert torch.equal(trained.tokens, sampled.tokens)
    with pytest.raises(ValueError, match="dropout is 0"):
        encoder(sources[kind][0], dropout=0.0).null(1)


def test_captions_become_ids_and_captions_again(sources: dict) -> None:
    text = encoder(sources["clip"][0])
    assert text.texts(text.raw(CAPTIONS[1:], 2)) == ["a light image", "grey"]


def test_a_cut_caption_keeps_its_end_and_is_counted(sources: dict) -> None:
    text = encoder(sources["clip"][0], length=4)
    assert text.raw(CAPTIONS[0], 1)[0].tolist()[::3] == [1, 2]
    with pytest.warns(UserWarning, match="2 of 3 training captions have more than 4 tokens"):
        text.learn(CAPTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sees_the_frozen_weights(kind: str, sources: dict) -> None:
    text = encoder(sources[kind][0]).train()
    y = text.raw(CAPTIONS, 3)
    text(y).tokens.sum().backward()
    own = {"norm.weight", "norm.bias", "proj_tokens.weight", "proj_tokens.bias"}
    own |= {"proj.weight", "proj.bias"} if kind == "clip" else set()
    assert set(dict(text.named_parameters())) == own
    assert set(text.state_dict()) == own | {"examples"}
    assert not text.frozen.network.training
    assert not any(p.requires_grad or p.grad is not None for p in text.frozen.network.parameters())


def test_autocast_leaves_the_models_precision(sources: dict) -> None:
    text = encoder(sources["t5"][0])
    y = text.raw(CAPTIONS, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = text.embedded(y)[0]
    assert torch.equal(inside, text.embedded(y)[0])


def test_the_precision_is_the_stated_one(sources: dict) -> None:
    text = encoder(sources["qwen2"][0], precision="bfloat16")
    assert text.embedded(text.raw("grey", 1))[0].dtype == torch.bfloat16
    assert text(text.raw("grey", 1)).tokens.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_no_bit(kind: str, sources: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path))
    kept, plain = encoder(sources[kind][0], cache=True), encoder(sources[kind][0])
    y = plain.raw(CAPTIONS, 3)
    alone = [plain.embedded(row[None]) for row in y]
    network = kept.frozen.network

    def check() -> None:
        tokens, pooled = kept.embedded(y)
        assert torch.equal(tokens, torch.cat([x for x, _ in alone]))
        if kind == "clip":
            assert torch.equal(pooled, torch.cat([p for _, p in alone]))  # type: ignore[arg-type,misc]

    check()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    kept.frozen.network = None  # all that follows comes from the disk
    check()
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(b"")
    kept.frozen.network = network
    check()
    assert files[0].read_bytes() != bytes(content)
    assert files[1].stat().st_size


def test_it_stands_among_several(sources: dict) -> None:
    both = Several([ClassLabels(3), PretrainedText(sources["clip"][0], 10)])
    both.join(Widths())
    y = both.raw({"label": [0, 2], "caption": CAPTIONS[:2]}, 2)
    both.check(y)
    c = both(y)
    assert c.tokens.shape == (2, 10, 12)
    text: Any = both.conditioners[1]
    assert torch.equal(c.mask, text.raw(CAPTIONS[:2], 2) >= 0)


BAD: dict[str, tuple[Any, str]] = {
    "float16 of a T5": (lambda s: encoder(s["t5"][0], precision="float16"), "a T5, pass the largest of float16"),
    "a length past the model's": (lambda s: encoder(s["clip"][0], length=25), "takes at most 24 tokens"),
    "a layer that is not there": (lambda s: encoder(s["clip"][0], layer=-4), "has 2 layers: give -1 … -3"),
    "a length of none": (lambda s: encoder(s["clip"][0], length=0), "length = 0"),
    "no model": (lambda s: encoder(s["clip"][0] + "x"), "does not exist: correct the path"),
    "a number for a caption": (lambda s: encoder(s["clip"][0]).raw([3], 1), "a caption is 3, a int"),
    "ids past the table": (lambda s: encoder(s["clip"][0]).check(torch.full((1, 10), 99)), "token ids"),
    "padding alone": (lambda s: encoder(s["clip"][0]).check(torch.full((1, 10), -1)), "token ids"),
    "ids of another length": (lambda s: encoder(s["clip"][0]).check(torch.ones(1, 3).long()), r"shape \[1, 3\]"),
    "a network without tokens": (
        lambda s: PretrainedText(s["clip"][0], 10).join(nn.Linear(1, 1)), "Linear states no token_width",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_fits_no_model_is_refused(case: str, sources: dict) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(sources)


@pytest.mark.slow
def test_a_run_needs_its_own_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Fit, stopped and resumed, another one begun from it; then its source is deleted, and it loads and predicts."""
    source, kept = tmp_path / "source", tmp_path / "away"
    text_model(source, "clip", width=256)
    config, none = with_frozen(tmp_path, source), ["--trainer.logger", "false"]
    powers = ["--trainer.callbacks+", "PowerEMA", "--trainer.callbacks.every_n_train_steps", "1"]
    main(["fit", "--config", config, *none, *powers])
    halves = ["fit", "--config", config, *none, "--trainer.default_root_dir", str(tmp_path / "halves")]
    main([*halves, "--trainer.max_steps", "4"])
    main([*halves, "--ckpt_path", "last"])
    whole, resumed = (tmp_path / run / "checkpoints/last.ckpt" for run in ("run", "halves"))
    checkpoint, theirs = read(whole), read(resumed)["state_dict"]
    for name, x in checkpoint["state_dict"].items():
        assert torch.equal(x, theirs[name]), name
    frozen = list((whole.parent / "frozen").iterdir())
    assert [file.stem for file in frozen] == list(checkpoint["frozen"].values())
    stored: list[Tensor] = list(checkpoint["state_dict"].values())
    assert frozen[0].stat().st_size > 1_000_000
    assert sum(x.numel() * x.element_size() for x in stored) < 400_000
    assert not any("embeddings" in name for name in checkpoint["state_dict"])
    main(["fit", "--config", config, *none, "--trainer.default_root_dir", str(tmp_path / "from"),
          "--init_from", str(whole)])  # fmt: skip

    shutil.move(source, kept)
    trust = ["--trust", "tests.support.captions"]
    drawn = ["predict", "--ckpt_path", str(whole), "--sampler", "DDIM", "--sampler.steps", "2", "--guidance", "2"]
    main([*drawn, "--prompt", "a dark image", "--n", "1", "--out", str(tmp_path / "one")])
    main(["test", "--ckpt_path", str(whole), *none, *trust])
    assert load(whole).conditioner.texts(load(whole).conditioner.null(1)) == [""]
    moved = tmp_path / "exported"
    main(["export", str(whole.parent.parent), str(moved), "--format", "weights"])
    assert (moved / "frozen" / frozen[0].name).exists()
    average = tmp_path / "average/one.ckpt"
    main(["average", str(tmp_path / "run"), "--sigma_rel", "0.1", "--out", str(average)])
    main([*drawn[:2], str(average), *drawn[3:], "--n", "1", "--out", str(tmp_path / "of_average")])
    assert "a run's file in checkpoints/frozen" in fails(capsys, *halves, "--ckpt_path", "last")
    own = ["--model.init_args.conditioner.init_args.model", str(frozen[0])]
    main([*halves, "--ckpt_path", "last", *own, "--trainer.max_steps", "7",
          "--model.init_args.lr_scheduler.init_args.total_steps", "7"])  # fmt: skip
    assert read(resumed)["global_step"] == 7

    alone = tmp_path / "alone/last.ckpt"
    alone.parent.mkdir()
    shutil.copy(whole, alone)
    says = fails(capsys, *drawn[:2], str(alone), "--n", "1", "--out", str(tmp_path / "two"))
    assert "is missing: copy it there from the run's checkpoints/frozen" in says
    shutil.move(kept, source)
    main([*drawn[:2], str(alone), *drawn[3:], "--n", "1", "--out", str(tmp_path / "two"), "--trust", str(source)])
    text_model(source, "clip", width=256, seed=1)
    with pytest.raises(ValueError, match=r"the frozen part of conditioner is .*, but .* was trained with"):
        load(alone, trust=[str(source)])
