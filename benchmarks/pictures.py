"""The pictures of what commands give: `python -m benchmarks pictures --run RUN --other RUN --out DIR`.

RUN is a trained and tested run of `digits`, the other one of other settings. Pages are pictured by Chromium, in the
size of a desk's and of a phone's screen; what a command prints is pictured as a terminal shows it.
"""

import argparse
import html
import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from PIL import Image, ImageChops

from diffusion_lightning.cli import main as command

DESK, PHONE = (1400, 2300), (400, 1500)
# What is printed, by the name of its picture.
PRINTED = {
    "runs": ["runs", "{runs}"],
    "recipes": ["recipes"],
    "cache": ["cache"],
    "selftest": ["selftest", "--device", "cpu"],
    "score": ["score", "{drawn}", "{held_out}", "--extractor", "digits", "--few", "--pairs", "{out}/pairs.png"],
    "export": ["export", "{run}/checkpoints/last.ckpt", "{exported}"],
    "import": ["import", "{exported}", "{imported}"],
    "validate": [
        "validate",
        "--ckpt_path",
        "{run}",
        "--trainer.logger",
        "false",
        "--trainer.enable_progress_bar",
        "false",
    ],
}
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 14px 18px; background: #16191d; color: #e6e9ed; display: inline-block; min-width: 600px; }}
pre {{ margin: 0; font: 14px/1.45 "DejaVu Sans Mono", monospace; white-space: pre; }} b {{ color: #7cc4f0; }}
</style><body><pre><b>$ {words}</b>
{text}</pre>"""


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pictures")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        both = [given.run, given.other]
        pages = {"report": (DESK, both[:1]), "report_phone": (PHONE, both[:1]), "report_two": (DESK, both)}
        for name, (size, runs) in pages.items():
            command(["report", *map(str, runs), "--out", str(here / f"{name}.html")])
            photographed(here / f"{name}.html", out / f"{name}.png", size)
        drawn, held_out = here / "drawn", here / "held_out.npz"
        command(["predict", "--ckpt_path", str(given.run), "--n", "64", "--out", str(drawn), "--sampler", "DDIM"])
        _save_held_out(held_out)
        places = {"runs": given.run.parent, "run": given.run, "drawn": drawn, "held_out": held_out, "out": out,
                  "exported": here / "exported", "imported": here / "digits.ckpt"}  # fmt: skip
        for name, template in PRINTED.items():
            filled = [word.format(**places) for word in template]
            shown = [word.format(**{**places, **_SHORT}) for word in template]
            text = _printed(filled)
            for place, short in _SHORT.items():
                text = text.replace(str(places[place]), short)
            text = text.replace(str(Path.home()), "~")
            page = here / f"{name}.html"
            said = html.escape(f"diffusion-lightning {' '.join(shown)}")
            page.write_text(TERMINAL.format(words=said, text=html.escape(text)), encoding="utf-8")
            photographed(page, out / f"{name}.png", (1100, 900))
    shutil.copy(given.run / "bound.png", out / "bound.png")
    print(f"wrote {', '.join([*pages, *PRINTED])} to {out}")


_SHORT = {"runs": "runs", "run": "runs/digits", "drawn": "drawn", "held_out": "held_out.npz", "out": ".",
          "exported": "exported", "imported": "digits.ckpt"}  # fmt: skip


def photographed(page: Path, picture: Path, size: tuple[int, int]) -> None:
    """A page as Chromium shows it, without the empty rest below and beside it.

    Raises:
        ValueError: if there is no Chromium.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise ValueError("pages are pictured by Chromium, which is not here: install Debian's chromium")
    window = f"--window-size={size[0]},{size[1]}"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window]
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", page.resolve().as_uri()], check=True, capture_output=True
    )
    with Image.open(picture) as image:
        whole = image.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((whole.width - 1, whole.height - 1)))
    box = ImageChops.difference(whole, empty).getbbox()
    if box is not None:
        right = whole.width if "report" in picture.name else min(whole.width, box[2] + 14)
        whole = whole.crop((0, 0, right, min(whole.height, box[3] + 14)))
    whole.save(picture, optimize=True)


def _printed(words: list[str]) -> str:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(io.StringIO()):
        command(words)
    lines = said.getvalue().splitlines()
    return "\n".join(line if len(line) <= 120 else f"{line[:119]}…" for line in lines[:44])


def _save_held_out(path: Path) -> None:
    import numpy as np

    from diffusion_lightning.data import Digits
    from diffusion_lightning.images import to_uint8

    images = to_uint8(Digits().reference("val")[:]).permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=images)
