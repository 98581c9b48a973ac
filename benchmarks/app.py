"""A picture of the page of `app`.

    python -m benchmarks app --ckpt CKPT [CKPT …] --out DIR [--dark] [--width 1400]

Starts the command, draws 16 samples in Chromium, goes from one to another, and saves `app.png`.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STEPS = 50
READY = "open "


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks app", description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, help="checkpoints of diffusion models")
    parser.add_argument("--out", type=Path, required=True, help="the folder of app.png")
    parser.add_argument("--width", type=int, default=1400, help="of the browser's window, in pixels")
    parser.add_argument("--dark", action="store_true", help="as a browser in the dark shows it")
    given = parser.parse_args(words)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise ValueError("there is no chromium to show the page: install it, such as by apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ValueError("the browser is driven by the package playwright: pip install playwright") from error
    given.out.mkdir(parents=True, exist_ok=True)
    with started(given.ckpt) as address, sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        scheme: Any = "dark" if given.dark else "light"
        page = browser.new_page(viewport={"width": given.width, "height": 900}, color_scheme=scheme)
        page.goto(address)
        show(page)
        page.screenshot(path=given.out / "app.png", full_page=True)
        browser.close()
    print(f"wrote {given.out / 'app.png'}")


@contextlib.contextmanager
def started(ckpts: Sequence[str]) -> Iterator[str]:
    """The address of the page, which is open as long as the block lasts."""
    words = [sys.executable, "-m", "diffusion_lightning", "app", *ckpts]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith(READY)), None)
        if line is None:
            raise ValueError("the page did not open; what it printed stands above")
        yield line.removeprefix(READY).split()[0]
    finally:
        process.terminate()
        process.wait(60)


def show(page: Any) -> None:
    """Draws, chooses two samples, and interpolates."""
    page.set_default_timeout(120_000)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    page.get_by_label("sampler").first.click()
    page.get_by_role("option", name="DDIM", exact=True).click()
    steps = page.locator("input[type=number][aria-label*=steps]").first
    steps.fill(str(STEPS))
    steps.press("Tab")
    page.get_by_role("button", name="Draw", exact=True).click()
    for name, index in (("A", 0), ("B", 1)):
        page.get_by_role("button", name=f"choose sample {index}", exact=True).first.click()
        page.locator(f"figure[data-name={name}]").wait_for()
    page.locator("#interpolate").click()
    page.locator("#edited_command pre").wait_for()


if __name__ == "__main__":
    main()
