"""The page of `app` in a real browser, which asks no other host: drawing, editing, uploads that are none, its end."""

import base64
import contextlib
import io
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning import checkpoints
from diffusion_lightning.app import server
from diffusion_lightning.app.commands import Places
from diffusion_lightning.app.work import Studio
from diffusion_lightning.cli import app, main

from ..conftest import BARE, small_config
from ..support.conditions import with_classes

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")]

EVIL = '<img src=x onerror="window.evil=1">{{evil}}${window.evil=2}'  # a class's name
BARE_FIT = [*BARE, "--trainer.logger", "false", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model of classes, one of which has a hostile name, and one of a thousand steps."""
    folder = tmp_path_factory.mktemp("runs")
    main(
        ["fit", "--config", str(with_classes(folder)), "--trainer.default_root_dir", str(folder / "classes"), *BARE_FIT]
    )
    long = small_config(folder, **{"model.init_args.schedule": {"class_path": "Cosine", "init_args": {"T": 1000}}})
    main(["fit", "--config", str(long), "--trainer.default_root_dir", str(folder / "long"), *BARE_FIT])
    found = [str(folder / name / "checkpoints/last.ckpt") for name in ("classes", "long")]
    checkpoint = checkpoints.read(found[0])
    checkpoint[checkpoints.CLASSES] = [EVIL, *map(str, range(1, 10))]
    torch.save(checkpoint, found[0])
    return found


@pytest.fixture(scope="module")
def address(runs: list[str]) -> Iterator[str]:
    """The page's; its server asks no other host."""
    before, asked, over = dict(os.environ), set[str](), False

    def audit(event: str, given: tuple[Any, ...]) -> None:  # it cannot be taken away again
        if not over and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            place = given[1] if event == "socket.connect" else given
            asked.add(str(place[0]) if isinstance(place, tuple) else "")  # a path is this machine's

    sys.addaudithook(audit)
    with (
        server.bound("127.0.0.1", None) as listening,
        app.folder() as own,
        contextlib.closing(Studio(runs, Places(torch.device("cpu")), own)) as studio,
    ):
        server.settle()
        from diffusion_lightning.app.page import page

        with server.serving(page(studio), listening):
            yield server.address(listening)
    over = True
    assert asked <= {"", "None", "127.0.0.1", "localhost"}
    assert not own.exists()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Tab:
    """The page in a tab of the browser, and the hosts that it asked."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self.page.on("request", lambda asked: self.hosts.add(urlsplit(asked.url).netloc))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(address)
        self.button("Draw").wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def fill(self, label: str, value: object) -> None:
        box = self.page.locator(f"input[type=number][aria-label*='{label}'], label:has-text('{label}') input").first
        box.fill(str(value))
        box.press("Tab")

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def wait(self, script: str) -> None:
        self.page.wait_for_function(script)

    def draw(self, n: int, columns: int = 1) -> None:
        """Draws, and waits for all samples of a draw that was not there before."""
        self.page.locator("#command pre").evaluate_all("found => found.forEach((pre) => { pre.dataset.old = 1; })")
        self.fill("samples", n)
        self.button("Draw").click()
        self.wait(f"document.querySelectorAll('.cols button.cell').length >= {n * columns}")
        self.page.locator("#command pre:not([data-old])").wait_for()

    def command(self, name: str) -> str:
        found = self.page.locator(f"#{name} pre")
        return found.text_content() if found.count() else ""

    def pictures(self, column: int = 0) -> list[np.ndarray]:
        """The pixels of a column's images."""
        sources = (
            self.page.locator("section").nth(column).locator("button.cell img").evaluate_all("x => x.map(y => y.src)")
        )
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))) for one in sources]

    def edited(self, action: str) -> list[np.ndarray]:
        """The images of an edit, once its command is shown."""
        self.wait(f"document.querySelector('#edited_command pre')?.textContent.includes('edit {action}')")
        return self.pictures(self.page.locator("section").count() - 1)

    def said(self) -> str:
        alert = self.page.locator("[role=alert]:visible").first
        alert.wait_for()
        return alert.inner_text()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    found = Tab(browser, address)
    yield found
    assert found.hosts - {""} == {urlsplit(address).netloc}  # data: has none
    assert not found.faults
    found.context.close()


def by_command(text: str, out: Path) -> list[np.ndarray]:
    words = shlex.split(text)[1:]
    words[words.index("--out") + 1] = str(out)
    main([*words, *(["--trainer.enable_progress_bar", "false"] if words[0] == "predict" else [])])
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) > 0 and all(map(np.array_equal, a, b))


def test_samples_of_two_checkpoints_are_those_of_the_shown_commands(tab: Tab, tmp_path: Path) -> None:
    assert "samples appear here" in tab.page.locator(".hint").first.inner_text()
    tab.fill("steps", 3)
    tab.choose("class", "3")
    tab.draw(4, columns=2)
    first = [tab.pictures(0), tab.pictures(1)]
    commands = tab.command("command").splitlines()
    assert len(commands) == 2
    assert "--y 3" in commands[0]
    assert "--y" not in commands[1]  # which has no classes
    for k, command in enumerate(commands):
        assert same(first[k], by_command(command, tmp_path / str(k)))
    tab.fill("seed", 5)
    tab.draw(4, columns=2)
    assert "--seed 5" in tab.command("command")
    assert not same(first[0], tab.pictures(0))


def test_samples_are_edited_as_the_shown_commands_do(tab: Tab, tmp_path: Path) -> None:
    tab.choose("beside it", "none")
    tab.fill("steps", 3)
    tab.draw(4)
    tab.button("choose sample 0").click()
    tab.page.locator("figure[data-name=A]").wait_for()
    tab.page.locator("#interpolate").click()
    assert "needs two samples, but 1 are chosen" in tab.said()
    tab.button("choose sample 2").click()
    tab.page.locator("figure[data-name=B]").wait_for()
    assert tab.page.locator("button.cell[data-mark]").count() == 2
    tab.page.locator("#interpolate").click()
    assert same(tab.edited("interpolate"), by_command(tab.command("edited_command"), tmp_path / "between"))
    tab.page.get_by_role("tab", name="Inpaint").click()
    canvas = tab.page.locator(".paint canvas")
    canvas.scroll_into_view_if_needed()
    before = canvas.evaluate("x => x.toDataURL()")
    box = canvas.bounding_box()
    tab.page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"], steps=5)
    tab.page.mouse.up()
    assert canvas.evaluate("x => x.toDataURL()") != before
    tab.button("Inpaint").click()
    filled = tab.edited("inpaint")
    assert same(filled, by_command(tab.command("edited_command"), tmp_path / "filled"))
    sample = tab.pictures()[2]
    assert all(np.array_equal(one[4:], sample[4:]) for one in filled)  # below what is painted
    assert not all(np.array_equal(one[:2], sample[:2]) for one in filled)
    tab.page.get_by_role("tab", name="Vary").click()
    picture = tmp_path / "my picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(picture)
    tab.page.locator("input[type=file]").set_input_files(picture)
    tab.page.get_by_text("30x20 RGB, cut to 20x20, resized to 8x8, made grey").wait_for()
    tab.button("Vary").click()
    assert same(tab.edited("vary"), by_command(tab.command("edited_command"), tmp_path / "varied"))
    tab.fill("seed", 9)
    tab.draw(4)  # and what was chosen before is chosen no more
    assert tab.page.locator("figure[data-name]").count() == 0
    tab.page.get_by_role("tab", name="Interpolate").click()
    tab.page.locator("#interpolate").click()
    assert "but 0 are chosen" in tab.said()


def test_a_draw_is_stopped(tab: Tab) -> None:
    tab.choose("checkpoint", "long")
    tab.choose("beside it", "none")
    tab.choose("sampler", "Ancestral")
    tab.fill("steps", 1000)
    tab.fill("samples", 64)
    tab.button("Draw").click()
    tab.page.get_by_text("of 1000").wait_for()
    tab.page.locator(".cell img").first.wait_for()  # seen on its way
    tab.button("Stop").click()
    tab.page.get_by_text("stopped; what is seen was on its way from noise").wait_for()
    tab.choose("sampler", "DDIM")
    tab.fill("steps", 2)
    tab.draw(2)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb() -> bytes:
    """A PNG of some bytes, which states sixty thousand rows of as many pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>window.evil=1</script></svg>'
FILES = {
    "text.png": (b"no picture", "none of PNG"),
    "cut.png": (png()[:1000], "cannot be read as a picture"),
    "bomb.png": (bomb(), "megapixels"),
    "evil.svg": (SVG, "none of PNG"),
    "<b onclick=x>.png": (SVG, "none of PNG"),
}


def test_uploads_that_are_no_pictures_are_one_sentence_each(tab: Tab) -> None:
    tab.page.get_by_role("tab", name="Vary").click()
    for name, (content, says) in FILES.items():
        tab.page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        said = tab.said()
        assert says in said, name
        assert "Traceback" not in said
        tab.page.get_by_label("Clear").first.click()
        tab.page.locator("[role=alert]").wait_for(state="detached")
    assert tab.page.evaluate("window.evil") is None
    tab.button("Vary").click()
    assert "there is no picture to vary" in tab.said()
    tab.fill("steps", 2)
    tab.draw(2, columns=2)


def test_a_hostile_name_of_a_class_is_text(tab: Tab) -> None:
    tab.choose("class", f"0  {EVIL}")
    tab.fill("steps", 2)
    tab.draw(2, columns=2)
    assert tab.page.evaluate("window.evil") is None
    assert "--y 0" in tab.command("command")


def test_two_tabs_have_their_own_samples(tab: Tab, browser: Any, address: str) -> None:
    other = Tab(browser, address)
    for one, seed in ((tab, 1), (other, 2)):
        one.fill("steps", 2)
        one.fill("seed", seed)
        one.draw(2, columns=2)
    stolen = other.page.locator("button.cell").first.get_attribute("data-draw")
    tab.page.locator("button.cell").first.evaluate("(cell, draw) => cell.dataset.draw = draw", stolen)
    tab.page.locator("button.cell").first.click()
    assert "this sample is not kept any more" in tab.said()
    other.button("choose sample 0").first.click()
    other.page.locator("figure[data-name=A]").wait_for()
    assert tab.page.locator("figure[data-name]").count() == 0
    folders = len(list(Path(os.environ["GRADIO_TEMP_DIR"]).parent.iterdir()))
    other.context.close()
    until = time.monotonic() + 20
    while len(list(Path(os.environ["GRADIO_TEMP_DIR"]).parent.iterdir())) >= folders:  # its samples go with it
        assert time.monotonic() < until
        time.sleep(0.1)


def test_no_file_of_this_machine_is_served(tab: Tab, address: str) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), os.environ["GRADIO_TEMP_DIR"] + "/../"):
        assert tab.page.request.get(f"{address}/gradio_api/file={path}").status in (403, 404)
    assert (
        tab.page.request.post(f"{address}/gradio_api/upload", headers={"Origin": "http://evil.example"}).status == 403
    )


def test_on_a_narrow_screen_nothing_is_cut_off(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    context.close()


def test_ctrl_c_while_drawing_ends_it_and_leaves_nothing(browser: Any, runs: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "diffusion_lightning", "app", runs[1], "--device", "cpu"]
    place = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=place)
    assert started.stdout is not None
    found = next(line for line in started.stdout if line.startswith("open "))
    tab = Tab(browser, found.split()[1])
    tab.choose("sampler", "Ancestral")
    tab.fill("steps", 1000)
    tab.fill("samples", 64)
    tab.button("Draw").click()
    tab.page.get_by_text("of 1000").wait_for()
    assert list(tmp_path.glob(f"{app.PREFIX}*/*"))
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 130, said
    assert "stopped by Ctrl-C: the page is closed, and what it drew is removed" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob(f"{app.PREFIX}*"))
    tab.context.close()
