"""The work behind the page of `app`: what it draws is what the shown command draws, and visitors stay apart."""

import asyncio
import base64
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.app import asked, commands, looks, server
from diffusion_lightning.app.commands import Facts, Form, Places
from diffusion_lightning.app.sessions import DRAWS, Draw, Session
from diffusion_lightning.app.watch import FRAMES, Progress, Stopped
from diffusion_lightning.app.work import Studio, names
from diffusion_lightning.cli import app, main, predict
from diffusion_lightning.images import decoded

from ..support.commands import fails

CPU = Places(torch.device("cpu"))


@pytest.fixture
def studio(run: Path, tmp_path: Path) -> Iterator[Studio]:
    made = Studio([str(run)], CPU, tmp_path / "page")
    yield made
    made.close()


def last(found: Iterator[Progress | Draw]) -> Draw:
    *_, end = found
    assert isinstance(end, Draw)
    return end


def by_command(words: tuple[str, ...], out: Path) -> list[bytes]:
    """The pictures of a shown command, as a shell reads it, written elsewhere."""
    given = shlex.split(asked.shell(words))
    assert given.pop(0) == "diffusion-lightning"
    given[given.index("--out") + 1] = str(out)
    main(given)
    return [path.read_bytes() for path in sorted(out.glob("*.png"))]


def pictures(draw: Draw) -> list[bytes]:
    return [path.read_bytes() for path in draw.pictures]


FORMS = {
    "the run's own sampler": Form(n=5),
    "another seed": Form(n=3, seed=7),
    "its sampler with other steps": Form(n=2, sampler="DDIM", steps=4),
    "another sampler": Form(n=2, sampler="Heun", steps=2),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_draw_is_that_of_the_shown_command(case: str, studio: Studio, tmp_path: Path) -> None:
    draw = last(studio.predict(studio.sessions.of("me"), 0, FORMS[case]))
    assert len(draw.pictures) == FORMS[case].n
    assert pictures(draw) == by_command(draw.words, tmp_path / "out")


def test_an_edit_is_that_of_the_shown_command(studio: Studio, tmp_path: Path) -> None:
    """With pictures of its own, so that the command stays true when the draw they came from is gone."""
    session, form = studio.sessions.of("me"), Form(n=2, sampler="DDIM", steps=3)
    drawn = last(studio.predict(session, 0, form))
    mask = asked.painted(bits(np.arange(64) < 20), 8, 8)
    a, b = drawn.pictures
    cases: list[tuple[str, dict[str, Path], dict[str, object], bytes | None]] = [
        ("interpolate", {"a.png": a, "b.png": b}, {"frames": 3}, None),
        ("inpaint", {"picture.png": a}, {"n": 2, "resample": 2}, mask),
        ("vary", {"picture.png": a}, {"strength": 0.5, "n": 2}, None),
    ]
    edited = [last(studio.edit(session, 0, action, given, more, form, mask)) for action, given, more, mask in cases]
    shutil.rmtree(drawn.folder)
    for made in edited:
        found = by_command(made.words, tmp_path / made.words[1])
        assert len(found) == len(made.pictures) > 1
        assert pictures(made) == found


def test_a_form_of_one_checkpoint_for_another() -> None:
    """A class is the one of the same name, steps are no more than there are, an own sampler stays an own one."""
    ddim = {"class_path": "diffusion_lightning.samplers.DDIM", "init_args": {"steps": 50}}
    cats = Facts("cats", "a", (1, 8, 8), ddim, 50, 1000, ("cat", "dog"))
    dogs = Facts("dogs", "b", (1, 8, 8), ddim, 20, 40, ("owl", "dog", "cat"))
    assert commands.translated(Form(sampler="DDIM", steps=50, y=0), cats, dogs) == Form(y=2)
    assert commands.translated(Form(sampler="Heun", steps=50), cats, dogs) == Form(sampler="Heun", steps=40)
    assert commands.translated(Form(sampler="Heun", steps=7, y=1), dogs, cats) == Form(sampler="Heun", steps=7, y=1)
    with pytest.raises(ValueError, match="cats has no class owl, but dogs has"):
        commands.translated(Form(y=0), dogs, cats)


def bits(painted: np.ndarray) -> str:
    """A mask as the page sends it."""
    return base64.b64encode(np.packbits(painted).tobytes()).decode()


def test_a_mask_is_white_where_it_is_painted(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).random((5, 7)) < 0.4
    (tmp_path / "mask.png").write_bytes(asked.painted(bits(wanted), 5, 7))
    assert np.array_equal(np.asarray(decoded(tmp_path / "mask.png", 1).image), wanted * np.uint8(255))


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (bits(np.zeros(35, bool)), "no pixel is painted"),
        (bits(np.ones(90, bool)), "not of 7x5 pixels"),
        ("no base64!", "is none of this page"),
        (None, "is none of this page"),
    ],
)
def test_a_mask_that_is_none_is_one_sentence(sent: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        asked.painted(sent, 5, 7)


TEXT = Facts("a", "-a 'b'.ckpt", (1, 8, 8), {"class_path": "x.DDIM"}, 5, 10, captions=True, guided=True)


@pytest.mark.parametrize(
    "text", ["a cat", 'it\'s "quoted"', "--seed 3", "-1", "{a: [b]}", "two\nlines", "$HOME `ls`", "é"]
)
def test_a_prompt_comes_through_the_shell_and_the_parser(text: str) -> None:
    form = Form(prompt=text, negative=f"no {text}", guidance=2.5, n=1)
    given = shlex.split(asked.shell(tuple(commands.predicting(form, TEXT, CPU))))
    config = predict.make_parser().parse_args(given[2:])
    assert (config.prompt, config.negative_prompt, config.guidance) == (text, f"no {text}", 2.5)
    assert config.ckpt_path == TEXT.path


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Form(n=0), "0 samples are asked for"),
        (Form(n=65), "65 samples are asked for"),
        (Form(prompt="null"), "has another meaning in a command"),
        (Form(prompt="a", negative="~/x"), "has another meaning in a command"),
        (Form(prompt="a" * 2001), "has 2001 characters"),
        (Form(sampler="os.system", steps=3), "there is no sampler os.system"),
    ],
)
def test_what_no_word_can_carry_is_one_sentence(form: Form, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        commands.predicting(form, TEXT, CPU)


def test_a_model_is_asked_for_what_it_takes_alone() -> None:
    """A form stays the same when another checkpoint is chosen, beside the first or in its place."""
    form = Form(prompt="a cat", guidance=3, y=2, sampler="DDIM", steps=7)
    plain = Facts("a", "a.ckpt", (1, 8, 8), {"class_path": "x.DDIM"}, 5, 10)
    one_go = Facts("a", "a.ckpt", (1, 8, 8))
    of = {name: commands.predicting(form, x, CPU) for name, x in (("plain", plain), ("gan", one_go), ("text", TEXT))}
    assert "--guidance" not in of["plain"]
    assert "--sampler" in of["plain"]
    assert not {"--sampler", "--guidance"} & set(of["gan"])
    assert {"--guidance", "--prompt=a cat"} <= set(of["text"])
    assert not any(word.startswith("--y") for word in of["text"])


def test_a_device_is_named_where_there_are_several() -> None:
    several = [Places(torch.device(name), others=True) for name in ("cpu", "cuda:1")]
    assert [place.of_trainer() for place in several] == [
        ["--trainer.accelerator", "cpu"],
        ["--trainer.accelerator", "gpu", "--trainer.devices", "[1]"],
    ]
    assert [place.of_device() for place in several] == [["--device", "cpu"], ["--device", "cuda:1"]]
    assert Places(torch.device("cpu"), others=False).of_trainer() == []


def test_a_chain_is_shown_step_by_step(studio: Studio) -> None:
    form = Form(n=3, sampler="DDIM", steps=12)
    *seen, end = studio.predict(studio.sessions.of("me"), 0, form)
    assert isinstance(end, Draw)
    shown = [x for x in seen if isinstance(x, Progress)]
    done = [x.done for x in shown if x.total == 12]
    assert done == sorted(done)
    assert done[-1] <= 12
    assert all(len(x.frame) in (0, 3) for x in shown)
    assert sum(bool(x.frame) for x in shown) <= FRAMES


def test_a_draw_is_stopped_and_the_next_goes_on(studio: Studio) -> None:
    session = studio.sessions.of("me")

    def stopped() -> None:
        for found in studio.predict(session, 0, Form(n=64, sampler="Ancestral", steps=12)):
            assert isinstance(found, Progress)
            session.stop.set()

    with pytest.raises(Stopped):
        stopped()
    assert not session.draws
    assert not list(session.folder.glob("*"))
    session.stop.clear()
    assert len(last(studio.predict(session, 0, Form(n=2))).pictures) == 2


def test_a_request_that_fails_leaves_no_folder(studio: Studio) -> None:
    session = studio.sessions.of("me")
    with pytest.raises(ValueError, match="the sampler takes 13 steps, but the schedule has T = 12"):
        last(studio.predict(session, 0, Form(sampler="DDIM", steps=13)))
    assert not list(session.folder.glob("*"))


def drawn(session: Session, n: int = 3) -> Draw:
    """A draw whose pictures are empty files."""
    folder = session.new_folder()
    found = tuple(folder / f"{i}.png" for i in range(n))
    for path in found:
        path.touch()
    draw = Draw(folder.name, folder, found, 0, ("predict",))
    session.keep(draw)
    return draw


def test_visitors_have_their_own_samples(studio: Studio) -> None:
    mine, other = studio.sessions.of("me"), studio.sessions.of("you")
    draw = drawn(mine)
    assert mine.find(draw.id, 1).path.exists()
    for session, name, index in (
        (other, draw.id, 1),
        (mine, draw.id, 3),
        (mine, draw.id, -1),
        (mine, None, 0),
        (mine, draw.id, "0"),
    ):
        with pytest.raises(ValueError, match="this sample is not kept any more"):
            session.find(name, index)
    studio.sessions.leave("me")
    assert not draw.folder.exists()
    assert studio.sessions.of("me") is not mine


def test_two_samples_are_chosen_at_most(tmp_path: Path) -> None:
    session = Session(tmp_path)
    draw = drawn(session)
    for index, chosen in ((0, [0]), (1, [0, 1]), (2, [1, 2]), (1, [2]), (2, [])):
        session.choose(draw.id, index)
        assert [x.index for x in session.chosen] == chosen


def test_the_oldest_draw_goes_and_is_chosen_no_more(tmp_path: Path) -> None:
    session = Session(tmp_path)
    first = drawn(session)
    session.choose(first.id, 0)
    for _ in range(DRAWS):
        drawn(session)
    assert not first.folder.exists()
    assert len(list(tmp_path.iterdir())) == DRAWS
    assert session.chosen == []
    with pytest.raises(ValueError, match="draw anew"):
        session.choose(first.id, 0)


def test_a_checkpoint_that_is_written_anew_is_read_anew(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    shutil.copy(run / "checkpoints/last.ckpt", path)
    studio = Studio([str(path)], CPU, tmp_path / "page")
    first = studio.open(str(path))
    assert studio.open(str(path)) is first
    os.utime(path, (1, 1))
    assert studio.open(str(path)) is not first
    path.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        studio.open(str(path))


def test_names_of_checkpoints_are_short_and_differ() -> None:
    assert names(["/x/runs/digits/checkpoints/last.ckpt"]) == ["digits"]
    assert names(["r/a/checkpoints/last.ckpt", "r/a/checkpoints/best.ckpt", "b.ckpt"]) == ["a", "a/best", "b"]
    assert len(set(names(["p/a/checkpoints/last.ckpt", "q/a/checkpoints/last.ckpt"]))) == 2
    assert len(set(names(["a.ckpt", "a.ckpt"]))) == 2


def test_every_text_of_the_page_is_escaped() -> None:
    """A class's name, a path or a message is data: no tag, no attribute, no expression of a template."""
    evil = "<img src=x onerror=alert(1)>\"' ${alert(1)} {{value}} `x`"
    for made in (looks.said, looks.wrong, looks.hint, lambda x: looks.progress(x, 1, 2)):
        text = made(evil)
        assert not {"${", "{{", "`", "<img"} & {part for part in ("${", "{{", "`", "<img") if part in text}
    found = [
        looks.column(evil, [b"x"], 8, evil),
        looks.commands([evil], evil),
        looks.pair([(evil, 0, b"x", evil)]),
        looks.painter(evil, 0, b"x", 8, 8),
        looks.seen(b"x", evil),
    ]
    for text in found:
        assert "onerror=alert(1)>" not in text
        assert not any(part in text for part in ("${", "{{", "`"))


# The server


def test_a_port_is_taken_or_refused_before_the_page_is_made() -> None:
    with server.bound("127.0.0.1", None) as first:
        port = first.getsockname()[1]
        with server.bound("127.0.0.1", None) as second:
            assert second.getsockname()[1] > port
        with pytest.raises(ValueError, match=f"port {port} is taken by another program"):
            server.bound("127.0.0.1", port)
    for number in (0, -1, 65536):
        with pytest.raises(ValueError, match=f"--port is {number}, but ports run from 1 to 65535"):
            server.bound("127.0.0.1", number)
    for host in ("203.0.113.9", "no such host", ""):
        with pytest.raises(ValueError, match="no address of this machine"):
            server.bound(host, None)


def test_an_address_of_version_6_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        listening = server.bound("::1", None)
    except ValueError:
        pytest.skip("this machine has no address ::1")
    with listening:
        assert server.address(listening).startswith("http://[::1]:")


def test_which_addresses_are_of_this_machine_alone() -> None:
    assert all(map(server.is_local, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(server.is_local, ("0.0.0.0", "::", "10.0.0.1", "node7", "")))


@pytest.mark.parametrize(
    ("host", "origin", "local", "passes"),
    [
        ("127.0.0.1:7860", None, True, True),
        ("localhost:7860", "http://localhost:7860", True, True),
        ("[::1]:7860", "http://[::1]:7860", True, True),
        ("127.0.0.1:7860", "http://evil.example", True, False),  # another site's page
        ("127.0.0.1:7860", "http://127.0.0.1:9999", True, False),  # of another program here
        ("127.0.0.1:7860", "null", True, False),  # a file, or a frame without an origin
        ("evil.example:7860", None, True, False),  # a site's name that leads here
        ("evil.example:7860", "http://evil.example:7860", True, False),
        ("node7:7860", "http://node7:7860", False, True),  # the user has opened it by --host
        ("node7:7860", "http://evil.example", False, False),
    ],
)
def test_other_sites_are_refused(host: str, origin: str | None, local: bool, passes: bool) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()), *([] if origin is None else [(b"origin", origin.encode())])]
    asyncio.run(server.Guard(page, local)({"type": "http", "headers": headers}, None, send))
    assert sent[0]["status"] == (200 if passes else 403)
    if passes:
        assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]


def test_nothing_goes_through_a_proxy_or_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*server.ENVIRONMENT, "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "my.cluster")
    server.settle()
    assert os.environ["NO_PROXY"].split(",") == ["my.cluster", "127.0.0.1", "localhost", "::1"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["OTEL_SDK_DISABLED"] == "true"


# The command


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert "pip install 'diffusion_lightning[app]'" in fails(capsys, "app", "any.ckpt")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["CKPT", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["CKPT", "--device", "abacus"], "there is no device abacus"),
        (["CKPT", "--port", "99999"], "--port is 99999"),
        (["CKPT", "--host", "no such host"], "--host is no such host"),
    ],
)
def test_what_is_wrong_is_said_before_the_page_starts(
    words: list[str], says: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "find_spec", lambda name: object())
    given = [str(run / "checkpoints/last.ckpt") if word == "CKPT" else word for word in words]
    assert says in fails(capsys, "app", *given)


def test_the_folder_of_the_page_is_removed() -> None:
    before = os.environ.get("GRADIO_TEMP_DIR")

    def interrupted() -> None:
        with app.folder() as own:
            made.append(own)
            Image.new("L", (2, 2)).save(own / "a.png")
            assert os.environ["GRADIO_TEMP_DIR"].startswith(str(own))
            raise KeyboardInterrupt

    made: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not made[0].exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before
