"""Captions as conditions: tokens and back, the null condition, padding, and the way from captions to samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from diffusion_lightning import load
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels, Condition, Several, TextEncoder, Unconditional
from diffusion_lightning.conditioning.base import joined
from diffusion_lightning.guidance import ClassifierFree
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base.checks import check_data
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Linear

from ..support.captions import Shades, with_captions
from ..support.commands import fails
from ..support.resumed import same_when_resumed

CAPTIONS = ["A seven to the left of a three.", "an eight above a one", "zero, alone"]


class Attends(nn.Module):
    """A network of one pixel's features that attends to tokens, and shows what it was given."""

    in_channels, size, token_width, condition_width = 1, 8, 16, 24

    def __init__(self) -> None:
        super().__init__()
        self.q, self.vector = nn.Linear(1, 16), nn.Linear(24, 1)
        self.seen: Any = None

    def forward(self, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        self.seen = c
        vector, tokens, mask = c
        query = self.q(x_t.flatten(2).mT)
        out = nn.functional.scaled_dot_product_attention(query, tokens, tokens, mask[:, None])
        return x_t * self.vector(vector)[:, :, None, None] + out.mean(2).view_as(x_t)


def encoder(**kwargs: Any) -> TextEncoder:
    torch.manual_seed(0)
    found = TextEncoder(**{"words": 20, "length": 10, "width": 16, "dropout": 0.25} | kwargs)
    found.learn(CAPTIONS)
    return found.eval()


def model(conditioner: Any = None) -> Any:
    torch.manual_seed(0)
    made = Diffusion(Attends(), Linear(20), conditioner=conditioner or TextEncoder(words=20, length=10, dropout=0.25))
    made.conditioner.learn(CAPTIONS)
    return made.eval()


def test_words_become_rows_and_words_again() -> None:
    text = encoder()
    ids = text.raw(CAPTIONS, 3)
    assert (ids.shape, ids.dtype) == ((3, 10), torch.long)
    assert text.texts(ids) == ["a seven to the left of a three.", "an eight above a one", "zero, alone"]
    assert text.texts(text.raw("a nine above a one", 1)) == ["a * above a one"]
    assert text.texts(text.null(1)) == [""]


def test_bytes_become_rows_and_bytes_again() -> None:
    text = encoder(words=None, length=40)
    caption = "Ünïcode, 数字: 7"
    assert text.texts(text.raw(caption, 2)) == [caption, caption]


def test_the_most_frequent_words_are_kept() -> None:
    text = TextEncoder(words=2, length=8, width=16)
    text.learn(["b b b c", "c a"])
    assert text.texts(text.raw("a b c", 1)) == ["* b c"]


def test_a_vocabulary_is_learned_once_and_lies_in_the_weights() -> None:
    text = encoder()
    text.learn(["entirely other words"])
    other = TextEncoder(words=20, length=10, width=16)
    assert other.texts(other.raw("seven", 1)) == ["*"]
    other.load_state_dict(text.state_dict())
    assert torch.equal(other.raw(CAPTIONS, 3), text.raw(CAPTIONS, 3))
    assert torch.equal(other.eval()(other.raw(CAPTIONS, 3)).tokens, text(text.raw(CAPTIONS, 3)).tokens)


@pytest.mark.filterwarnings("ignore:.*are cut")
def test_captions_are_cut_at_the_length() -> None:
    ids = encoder(length=4).raw(["a a", "a a a", "a a a a"], 3)
    assert (ids != 0).sum(1).tolist() == [3, 4, 4]


@pytest.mark.parametrize(("words", "length", "cut"), [(20, 10, 0), (20, 8, 1), (20, 4, 2), (None, 12, 2)])
def test_how_many_training_captions_are_cut_is_said_once(
    words: int | None, length: int, cut: int, recwarn: pytest.WarningsRecorder
) -> None:
    text = encoder(words=words, length=length)
    text.raw(CAPTIONS, 3)
    said = [str(warning.message) for warning in recwarn]
    assert said == [
        f"{cut} of 3 training captions have more than {length} tokens and are cut: raise the conditioner's length "
        "to keep them whole"
    ] * (cut > 0)


@pytest.mark.parametrize("bad", [99, -1, 0])
def test_captions_in_a_file_that_are_none_are_refused(bad: int) -> None:
    weights = encoder().state_dict()
    weights["examples"][3] = bad
    with pytest.raises(ValueError, match="token ids"):
        encoder().load_state_dict(weights)


@pytest.mark.parametrize("words", [20, None])
def test_a_tokens_embedding_depends_on_no_padding(words: int | None) -> None:
    short, long = encoder(words=words, length=40), encoder(words=words, length=60)
    long.load_state_dict({k: v for k, v in short.state_dict().items() if k not in ("places", "examples")}, strict=False)
    long.places.data[:40] = short.places
    one, other = short(short.raw(CAPTIONS, 3)), long(long.raw(CAPTIONS, 3))
    assert torch.equal(one.real(), other.real()[:, :40])
    assert not other.real()[:, 40:].any()
    assert (one.tokens - other.tokens[:, :40])[one.real()].abs().max() < 1e-6


def test_a_caption_alone_is_what_it_is_among_others() -> None:
    text = encoder()
    ids = text.raw(CAPTIONS, 3)
    order = torch.tensor([2, 0, 1])
    every, moved = text(ids), text(ids[order])
    assert (every.tokens[order] - moved.tokens).abs().max() < 1e-6
    assert not torch.allclose(every.tokens[0], every.tokens[1], atol=1e-3)


def test_the_null_condition_has_a_token_and_is_no_caption() -> None:
    text = encoder()
    for caption in ("", *CAPTIONS):
        assert not torch.equal(text.raw(caption, 1), text.null(1))
    c = text(torch.cat([text.null(1), text.raw("", 1)]))
    assert (c.real().sum(1) == 1).all()


def test_captions_are_dropped_as_often_as_asked_in_what_the_network_is_given() -> None:
    made = model(TextEncoder(words=20, length=4, dropout=0.25, layers=0, width=16))
    n, text = 100_000, made.conditioner
    y = text.raw("a seven", 1).expand(n, -1)
    made.denoiser(torch.zeros(n, 1, 8, 8), 5, text(text.dropped(y, Draw(0, "training", 0, torch.arange(n)))))
    tokens = made.denoiser.network.seen.tokens
    null = text(text.null(1)).tokens
    share = (tokens == null).flatten(1).all(1).double().mean()
    assert abs(float(share) - 0.25) < 3 * (0.25 * 0.75 / n) ** 0.5


def test_trainings_null_condition_is_that_of_sampling_to_the_bit() -> None:
    made = model(TextEncoder(words=20, length=10, dropout=0.999))
    text, number = made.conditioner, torch.arange(64)
    dropped = text.dropped(text.raw(CAPTIONS[0], 64), Draw(0, "training", 0, number))
    rows = dropped[(dropped == text.null(64)).all(1)]
    assert len(rows) > 50
    trained = text(rows[:1])  # alone, as sampling embeds it: in a larger batch sums may have another order
    guided = ClassifierFree(3.0)(made.denoiser, text, text.raw(CAPTIONS[0], len(rows)))
    guided(torch.zeros(len(rows), 1, 8, 8), 5, text(text.raw(CAPTIONS[0], len(rows))))
    sampled = made.denoiser.network.seen
    for one, other in zip(trained, sampled, strict=True):
        assert torch.equal(one.expand(len(rows), *one.shape[1:]), other[len(rows) :])


def test_without_dropout_guidance_is_refused() -> None:
    made = model(TextEncoder(words=20, length=10, dropout=0.0))
    with pytest.raises(ValueError, match="dropout is 0"):
        made.generate(1, DDIM(2), "a seven", guidance=3.0)
    with pytest.raises(ValueError, match="dropout is 0"):
        made.check(DDIM(2), 3.0)


def test_samples_of_captions_and_of_numbers() -> None:
    made = model()
    one = made.generate(3, DDIM(3), CAPTIONS, seed=1)
    again = torch.cat([made.generate(1, DDIM(3), CAPTIONS[i], seed=1, first=i) for i in range(3)])
    assert (one - again).abs().max() < 1e-5
    assert not torch.allclose(one[0], made.generate(1, DDIM(3), CAPTIONS[1], seed=1)[0], atol=1e-4)
    made.conditioner.hold_out(CAPTIONS)
    assert made.captions(2, 3) == ["zero, alone", "a seven to the left of a three.", "an eight above a one"]
    assert torch.equal(made.generate(3, DDIM(3), seed=1), one)


def test_a_scale_of_zero_does_not_depend_on_the_prompt() -> None:
    made = model()
    one, other = (made.generate(4, DDIM(3), caption, 0.0, seed=1) for caption in CAPTIONS[:2])
    assert torch.equal(one, other)


def test_a_negative_prompt_takes_the_null_conditions_place() -> None:
    made = model()
    text = made.conditioner
    x_t, c, minus = torch.randn(2, 1, 8, 8), text(text.raw("a seven", 2)), text(text.raw("a three", 2))
    guided = ClassifierFree(3.0, negative="a three")(made.denoiser, text, text.raw("a seven", 2))(x_t, 5, c)
    own, away = made.denoiser(x_t, 5, c), made.denoiser(x_t, 5, minus)
    assert (guided.eps - (away.eps + 3 * (own.eps - away.eps))).abs().max() < 1e-5


def test_conditions_of_other_lengths_are_joined_with_padding() -> None:
    one, other = Condition(None, torch.ones(1, 2, 4)), Condition(None, torch.ones(2, 5, 4), torch.ones(2, 5).bool())
    found = joined(one, other)
    assert isinstance(found, Condition)
    assert found.real().shape == (3, 5)
    assert found.real().sum(1).tolist() == [2, 5, 5]
    with pytest.raises(ValueError, match="one of two conditions has tokens"):
        joined(one, torch.ones(1, 4))


BAD: dict[str, tuple[Any, str]] = {
    "a number for a caption": (lambda made: made.generate(1, DDIM(2), [3]), "a caption is 3, a int"),
    "ids of another length": (
        lambda made: made.generate(1, DDIM(2), torch.ones(1, 3, dtype=torch.long)),
        r"int64 of shape \[1, 3\]",
    ),
    "ids past the table": (
        lambda made: made.generate(1, DDIM(2), torch.full((1, 10), 99)),
        "token ids",
    ),
    "padding alone": (lambda made: made.generate(1, DDIM(2), torch.zeros(1, 10, dtype=torch.long)), "token ids"),
    "too few captions": (lambda made: made.generate(2, DDIM(2), ["a"]), "2 samples"),
    "no words to learn": (lambda made: TextEncoder(words=4, width=16).learn(["", " "]), "hold no word"),
    "heads that do not divide": (lambda made: TextEncoder(width=10), "10 features cannot be split"),
    "a length of none": (lambda made: TextEncoder(length=0), "length = 0"),
    "a network without tokens": (lambda made: TextEncoder().join(nn.Linear(1, 1)), "Linear states no token_width"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_caption_is_refused(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(model())


def several(dropout: float = 0.2) -> Several:
    return Several([ClassLabels(3, dropout=0.3), TextEncoder(words=20, length=10, dropout=0.3)], dropout)


def test_several_conditions_add_vectors_and_join_tokens() -> None:
    made = model(several())
    both = made.conditioner
    y = both.raw({"label": [0, 2], "caption": CAPTIONS[:2]}, 2)
    c = both(y)
    labels, text = both.conditioners
    expected = text(text.raw(CAPTIONS[:2], 2))
    assert torch.equal(c.vector, labels(torch.tensor([0, 2])) + expected.vector)
    for one, other in zip(c[1:], expected[1:], strict=True):
        assert torch.equal(one, other)
    assert both.texts(y) == ["a seven to the left of a three.", "an eight above a one"]
    assert made.generate(2, DDIM(2), {"label": 1, "caption": "zero"}, 2.0).shape == (2, 1, 8, 8)


def test_several_conditions_are_dropped_apart_and_together() -> None:
    both = model(several()).conditioner
    n = 20_000
    y = both.raw({"label": 1, "caption": CAPTIONS[0]}, n)
    dropped = both.dropped(y, Draw(0, "training", 0, torch.arange(n)))
    null = both.null(1)
    label, text = dropped[:, 0] == null[:, 0], (dropped[:, 1:] == null[:, 1:]).all(1)
    for found, share in ((label & text, 0.2 + 0.8 * 0.09), (label & ~text, 0.8 * 0.3 * 0.7), (text, 0.2 + 0.8 * 0.3)):
        assert abs(float(found.double().mean()) - share) < 3 * (share * (1 - share) / n) ** 0.5


def test_what_is_not_given_of_several_is_the_null_condition() -> None:
    both = model(several()).conditioner
    assert torch.equal(both.raw({"label": 1}, 1)[:, 1:], both.null(1)[:, 1:])
    assert torch.equal(both.raw(1, 1), both.raw({"label": 1}, 1))
    assert torch.equal(both.raw({}, 2), both.null(2))


def test_several_are_refused_where_their_null_is_missing() -> None:
    with pytest.raises(ValueError, match="TextEncoder has dropout 0"):
        Several([ClassLabels(3), TextEncoder(dropout=0.0)])
    with pytest.raises(ValueError, match="1 conditioners"):
        Several([ClassLabels(3)])
    both = model(several()).conditioner
    y = both.of_batch({"label": torch.tensor([0, 2]), "text": CAPTIONS[:2]})
    assert torch.equal(y, both.raw({"label": [0, 2], "caption": CAPTIONS[:2]}, 2))
    with pytest.raises(ValueError, match="a batch holds 2 labels, 3 captions: give one of each"):
        both.of_batch({"label": torch.tensor([0, 2]), "text": CAPTIONS})
    with pytest.raises(ValueError, match="holds the conditions label, but TextEncoder takes captions: name them"):
        both.of_batch({"label": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match="Several takes a dict"):
        model(several()).conditioner.check(torch.zeros(2, dtype=torch.long))


@pytest.mark.slow
def test_a_captioned_run_from_fit_to_predict_and_resumed(tmp_path: Path) -> None:
    """Stopped and resumed it ends with the weights, and the words, of the undisturbed one; then samples of prompts."""
    none, whole = ["--trainer.logger", "false"], same_when_resumed(with_captions(tmp_path), tmp_path)
    trust = ["--trust", "tests.support.captions"]
    main(["test", "--ckpt_path", str(whole), *none, *trust])

    model = load(whole)
    words = model.conditioner.texts(model.conditioner.raw("a light image, not lighter", 1))
    assert words == ["a light image, * lighter"]
    drawn = ["predict", "--ckpt_path", str(whole), "--sampler", "DDIM", "--sampler.steps", "2", "--guidance", "2"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dark image, lighter above\n\na light image, lighter below\n", encoding="utf-8")
    main([*drawn, "--prompts", str(prompts), "--out", str(tmp_path / "two")])
    index = [json.loads(line) for line in (tmp_path / "two/captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert index == [
        {"file_name": "000000.png", "text": "a dark image, lighter above"},
        {"file_name": "000001.png", "text": "a light image, lighter below"},
    ]
    main([*drawn, "--prompt", "a dark image, lighter above", "--n", "1", "--out", str(tmp_path / "one")])
    assert (tmp_path / "one/000000.png").exists()
    one, two = (np.array(Image.open(tmp_path / name / "000000.png")) for name in ("one", "two"))
    assert np.array_equal(one, two)
    main([*drawn, "--n", "3", "--out", str(tmp_path / "held")])
    index = [json.loads(line) for line in (tmp_path / "held/captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in index] == (Shades.captions or [])[:3]
    main([*drawn, "--n", "4", "--out", str(tmp_path / "grid.png")])
    assert Image.open(tmp_path / "grid.png").height > Image.open(tmp_path / "grid.png").width  # captions below


@pytest.mark.parametrize(
    ("conditioner", "says"),
    [
        ({"class_path": "ClassLabels", "init_args": {"classes": 6}}, "takes labels, but Shades gives captions alone"),
        (
            {
                "class_path": "Several",
                "init_args": {
                    "conditioners": [
                        {"class_path": "ClassLabels", "init_args": {"classes": 6}},
                        {"class_path": "TextEncoder", "init_args": {"words": 20, "length": 8}},
                    ]
                },
            },
            "takes labels and captions, but Shades gives captions alone",
        ),
    ],
)
def test_a_conditioner_of_what_the_data_do_not_give_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, conditioner: Any, says: str
) -> None:
    path = with_captions(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"]["init_args"]["conditioner"] = conditioner
    if conditioner["class_path"] == "ClassLabels":
        del config["model"]["init_args"]["network"]["init_args"]["token_width"]
        del config["model"]["init_args"]["network"]["init_args"]["cross_attention"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert says in fails(capsys, "fit", "--config", str(path))


def test_a_metric_of_captions_needs_a_model_of_captions_before_a_step_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = with_captions(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    del config["model"]["init_args"]["conditioner"]
    network = config["model"]["init_args"]["network"]["init_args"]
    del network["token_width"], network["cross_attention"]
    config["metrics"]["metrics"].append("CaptionMatch")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "GenerativeMetrics has a metric of images with captions, but the model has no captions" in fails(
        capsys, "fit", "--config", str(path)
    )
    assert not (tmp_path / "run/checkpoints").exists()


def test_captions_that_nobody_takes_are_warned_of(tmp_path: Path) -> None:
    data = Shades(batch_size=8)
    data.setup("fit")
    with pytest.warns(UserWarning, match="Shades gives captions, but the model has no conditioner"):
        check_data(data, (1, 8, 8), Unconditional())
