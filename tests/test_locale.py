"""Whatever the locale and wherever the output goes: recipes are read, figures are printed, and the work is done."""

import ast
import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffusion_lightning.cli import output

from .conftest import ROOT, small_config

tried = pytest.mark.tried("Numbers, precision and words")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
WRITES = {"read_text": 0, "write_text": 1}  # where in a call an encoding may stand
BINARY = {"Image", "zipfile", "archive", "file"}  # what else has a method `open`: of pictures and of archives


def sources() -> list[Path]:
    return sorted([*(ROOT / "diffusion_lightning").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def texts(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text in the locale's encoding unless they say which."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keys = {keyword.arg: keyword.value for keyword in call.keywords}
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if "encoding" in keys:
            continue
        if name in WRITES and len(call.args) <= WRITES[name]:
            yield call
        if isinstance(keys.get("text", keys.get("universal_newlines")), ast.Constant):
            yield call
        if name in ("open", "NamedTemporaryFile", "fdopen", "TextIOWrapper"):
            at = 1 if (isinstance(call.func, ast.Name) and name == "open") or name == "fdopen" else 0
            mode = keys.get("mode", call.args[at] if len(call.args) > at else None)
            of = call.func.value if isinstance(call.func, ast.Attribute) else None
            while isinstance(of, ast.Call | ast.Attribute):
                of = of.func if isinstance(of, ast.Call) else of.value
            if isinstance(of, ast.Name) and of.id in BINARY and name == "open":
                continue
            if mode is None and name == "NamedTemporaryFile":
                continue
            if name == "TextIOWrapper":
                if len(call.args) < 2:
                    yield call
            elif mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value)):
                yield call


@tried
def test_every_file_of_text_is_opened_with_an_encoding() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    assert {ROOT / "diffusion_lightning/cli/entry.py", ROOT / "benchmarks/tried.py"} <= trees.keys()
    found = [f"{path.relative_to(ROOT)}:{call.lineno}" for path, tree in trees.items() for call in texts(tree)]
    assert found == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("open('a')", 1), ("open('a', 'w')", 1), ("open('a', 'rb')", 0), ("open('a', encoding='utf-8')", 0),
        ("p.open()", 1), ("p.open('ab')", 0), ("Path(x).open('a', newline='')", 1), ("p.read_text()", 1),
        ("p.write_text(x)", 1), ("p.write_text(x, encoding='utf-8')", 0), ("Image.open(p)", 0),
        ("run(x, text=True)", 1),
        ("NamedTemporaryFile('w')", 1), ("NamedTemporaryFile()", 0), ("zipfile.ZipFile(p).open(n)", 0),
    ],
)  # fmt: skip
def test_a_text_without_an_encoding_is_found(code: str, count: int) -> None:
    assert len(list(texts(ast.parse(code)))) == count


class Broken(io.RawIOBase):
    """Takes some writes, and then none."""

    def __init__(self, good: int, number: int) -> None:
        self.good, self.number, self.held = good, number, b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.good == 0:
            raise OSError(self.number, os.strerror(self.number))
        self.good -= 1
        self.held += bytes(data)
        return len(data)


@tried
@pytest.mark.parametrize("good", [0, 1, 2], ids=["at once", "after a line", "after two lines"])
def test_a_stream_that_fails_swallows_what_follows(good: int) -> None:
    raw = Broken(good, errno.ENOSPC)
    stream = io.TextIOWrapper(io.BufferedWriter(output.Lasting(raw)), "ascii", "replace")
    for line in ("one", "zwei ±", "drei"):
        print(line, file=stream, flush=True)
    assert raw.held.decode().splitlines() == ["one", "zwei ?"][:good]


def command(words: str, shell: str = "{}", **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command within a line of the shell, whose status is the command's own."""
    line = shell.format(f"{sys.executable} -m diffusion_lightning {words}")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, encoding="utf-8", check=False, cwd=ROOT,
        env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="writes to /dev/full, the kernel's full disk")
HARMLESS = {
    "a pipe that is closed at once": "{} | true",
    "a pipe that is closed after a line": "{} | head -1",
    "closed": "{} >&-",
    "all of it closed": "{} >&- 2>&- <&-",
    "an error that is closed": "{} 2>&-",
    "a full disk for the error": "{} 2>/dev/full",
}


@tried
@pytest.mark.parametrize(
    "shell", [pytest.param(line, id=name, marks=FULL if "full" in line else ()) for name, line in HARMLESS.items()]
)
@pytest.mark.parametrize("words", ["--help", "--version", "cache", "score --help"])
def test_an_output_that_nobody_reads_ends_no_command(words: str, shell: str) -> None:
    done = command(words, shell)
    assert done.stderr == ""
    assert done.returncode == 0


@tried
@FULL
@pytest.mark.parametrize("words", ["--version", "cache"])
def test_an_output_that_is_lost_is_said_after_the_work(words: str) -> None:
    done = command(words, "{} >/dev/full")
    assert done.stderr.startswith("error: the command did its work, but standard output could not be written (No space")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@tried
@pytest.mark.parametrize("name", ["größe", "尺寸"])
def test_a_mistake_in_another_script_is_one_sentence_in_a_locale_without_it(name: str) -> None:
    done = command(f"{name}", **ASCII)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no subcommand ")
    assert len(done.stderr.splitlines()) == 1


@tried
@pytest.mark.slow
def test_a_run_and_its_figures_in_a_locale_without_utf8(tmp_path: Path) -> None:
    """A recipe with comments in other scripts is trained, the figures of `score` are printed, and a folder's name that
    this locale cannot write is refused in a sentence.
    """
    changes = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "checkpoint.monitor": None}
    config = small_config(tmp_path, **changes, **{"trainer.logger": False})
    config.write_text(f"# ×, ±, ∞, 尺寸\n{config.read_text(encoding='utf-8')}", encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    code = f"""
from diffusion_lightning.cli import main
main(["fit", "--config", {str(config)!r}])
main(["score", {str(tmp_path / "images.npz")!r}, {str(tmp_path / "images.npz")!r}, "--extractor", "digits"])
main(["fit", "--config", {str(config)!r}, "--trainer.default_root_dir", "gr\\u00f6\\u00dfe"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, **ASCII},
                          cwd=tmp_path)  # fmt: skip
    assert b"fd_digits" in done.stdout, done.stderr
    assert b" ? " in done.stdout  # ±
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"error: '")
    assert b"'gr\\xf6\\xdfe" in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr


@tried
@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_is_trained_to_its_end(tmp_path: Path) -> None:
    """Neither its figures nor its bars nor its warnings: the pipe ends before they are written."""
    config = small_config(tmp_path, **{"trainer.logger": False})
    done = command(f"fit --config {config}", "{} 2>&1 | true")
    assert done.returncode == 0
    assert (tmp_path / "run/metrics.csv").read_text(encoding="utf-8").splitlines()[-1].startswith("6,")
