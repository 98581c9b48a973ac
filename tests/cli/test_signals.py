"""Commands that are told to leave by every signal: the status, and a sentence that says what is kept."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning.callbacks import SampleWriter
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main, score, selftest
from diffusion_lightning.data import Digits
from diffusion_lightning.distributed import preemption
from diffusion_lightning.interop import convert, model_card
from diffusion_lightning.modules import Diffusion

from ..conftest import BARE, small_config

TRIED = pytest.mark.tried("Signals")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGUSR1: 75}
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGUSR1: "SIGUSR1"}
each_signal = pytest.mark.parametrize("number", STATUS, ids=NAMES.values())
each_signal_in_time = pytest.mark.parametrize(  # Ctrl-C by default, and the others where there is time
    "number",
    [pytest.param(n, marks=() if n == signal.SIGINT else pytest.mark.slow) for n in STATUS],
    ids=NAMES.values(),
)
NOTHING = "nothing new is kept, start it again"


class Alarm(Callback):
    """Raises a signal after so many training steps."""

    number = 0

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(Alarm.number)


def rings(number: int, calls: int = 1) -> Callable[..., None]:
    """A function that raises a signal when it is called so many times."""
    left = [calls]

    def ring(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(number)

    return ring


def before(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int, calls: int = 1) -> None:
    """A signal arrives when a function is called so many times."""
    function, ring = getattr(place, name), rings(number, calls)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        ring()
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, wrapped)


def left(capsys: pytest.CaptureFixture[str], number: int, *words: str) -> str:
    """The sentence with which a command leaves, its last; there is no traceback, and the status is the signal's."""
    capsys.readouterr()
    handlers = {n: signal.getsignal(n) for n in STATUS}
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == STATUS[signal.Signals(number)]
    assert {n: signal.getsignal(n) for n in STATUS} == handlers
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = [line for line in said.splitlines() if line.strip()][-1]
    assert line.startswith(f"stopped by {NAMES[signal.Signals(number)]}")
    return line


def long_run(tmp_path: Path, **changes: Any) -> Path:
    return small_config(tmp_path, **{
        "trainer.logger": False, "trainer.max_steps": 50, "trainer.enable_progress_bar": False,
        "checkpoint.every_n_train_steps": 50, "model.init_args.lr_scheduler.init_args.total_steps": 50,
        "trainer.val_check_interval": 40, **changes,
    })  # fmt: skip


@TRIED
@each_signal
def test_a_training_is_saved_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Alarm, "number", number)
    config, last = long_run(tmp_path), tmp_path / "run/checkpoints/last.ckpt"
    words = ["fit", "--config", str(config), *BARE, "--trainer.limit_val_batches", "0", "--trainer.callbacks",
             "tests.cli.test_signals.Alarm", "--trainer.callbacks.step", "3"]  # fmt: skip
    said = left(capsys, number, *words)
    assert said.endswith(f" at step 3: {last} is saved, and the same command with --ckpt_path last goes on")
    assert read(last)["global_step"] == 3
    assert not list((tmp_path / "run").rglob(".*"))
    if number == signal.SIGINT:
        main([*words, "--ckpt_path", "last", "--trainer.max_steps", "5"])
        assert read(last)["global_step"] == 5


@TRIED
@each_signal_in_time
def test_a_validation_in_training_is_left_at_once_and_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before(monkeypatch, Diffusion, "validation_step", number)
    last = tmp_path / "run/checkpoints/last.ckpt"
    config = long_run(tmp_path, **{"trainer.num_sanity_val_steps": 0, "trainer.val_check_interval": 2})
    said = left(capsys, number, "fit", "--config", str(config), *BARE, "--checkpoint.monitor", "null")
    assert said.endswith(f": {last} is saved, and the same command with --ckpt_path last goes on")
    assert read(last)["global_step"] == 2


@TRIED
@each_signal_in_time
def test_in_the_start_of_a_training_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before(monkeypatch, Digits, "setup", number)
    assert left(capsys, number, "fit", "--config", str(long_run(tmp_path))).endswith(NOTHING)
    assert not (tmp_path / "run/checkpoints").exists()


@TRIED
@each_signal_in_time
@pytest.mark.parametrize("command", [pytest.param("validate", marks=pytest.mark.slow), "test"])
def test_an_evaluation_keeps_nothing_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str,
    number: int,
) -> None:  # fmt: skip
    before(monkeypatch, Diffusion, f"{'validation' if command == 'validate' else 'test'}_step", number)
    said = left(capsys, number, command, "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.logger", "false",
                "--trainer.callbacks", "[]", "--trainer.default_root_dir", str(tmp_path / "out"))  # fmt: skip
    assert said.endswith(NOTHING)
    assert not (tmp_path / "out").exists()


@TRIED
@each_signal_in_time
@pytest.mark.parametrize("archive", [False, True], ids=["a folder", "an archive"])
def test_samples_are_kept_and_the_same_command_goes_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, archive: bool,
    number: int,
) -> None:  # fmt: skip
    out = tmp_path / ("out.npz" if archive else "out")
    words = ["predict", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--n", "5", "--batch_size", "2",
             "--out", str(out), "--sampler", "DDIM", "--sampler.steps", "2"]  # fmt: skip
    with monkeypatch.context() as patch:
        before(patch, SampleWriter, "write_on_batch_end", number, calls=2)
        said = left(capsys, number, *words)
    place = tmp_path / "out.npz.parts" if archive else out
    assert said.endswith(f": 2 samples are kept in {place}, and the same command goes on")
    assert sorted(p.name for p in place.iterdir()) == ["000000.png", "000001.png"]
    if number == signal.SIGINT:
        main(words)
        assert "wrote 3 samples" in capsys.readouterr().out


@TRIED
@each_signal_in_time
@pytest.mark.parametrize("command", ["score", "export", "import", "selftest"])
def test_what_makes_one_thing_keeps_nothing_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str,
    number: int,
) -> None:  # fmt: skip
    out, ckpt = tmp_path / "out", str(run / "checkpoints/last.ckpt")
    place, name, words = {
        "score": (score, "_Side", [str(tmp_path), str(tmp_path), "--extractor", "digits", "--json", str(out)]),
        "export": (model_card, "text", [ckpt, str(out), "--format", "weights"]),
        "import": (convert, "_open", [ckpt, str(out)]),
        "selftest": (selftest, "checks", ["--device", "cpu"]),
    }[command]
    monkeypatch.chdir(tmp_path)  # where a file of selftest's would be seen
    before(monkeypatch, place, name, number)
    assert left(capsys, number, command, *words).endswith(NOTHING)
    assert list(tmp_path.iterdir()) == []


@TRIED
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in the background of a shell"])
def test_what_was_ignored_at_the_start_stays_ignored(number: int) -> None:
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        with preemption.listening():
            signal.raise_signal(number)
            assert not preemption.signalled()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, handler)


WAIT = 120  # seconds, of which a program here takes a few

HELD = """
import sys, time
from pathlib import Path
from diffusion_lightning.distributed import preemption as job
with job.listening():
    job.hold()
    print("held", flush=True)
    while not job.signalled():
        time.sleep(0.001)
    for _ in range(int(sys.argv[2])):
        print("a word", flush=True)
        time.sleep(0.01)
    Path(sys.argv[1]).touch()
"""


@TRIED
def test_a_second_ctrl_c_ends_it_at_once_and_the_first_says_so(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    words = [sys.executable, "-c", HELD, str(saved), "1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "a word\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGINT
    assert said.strip() == "Ctrl-C: saves after this step and leaves; press it again to end at once, unsaved"
    assert not saved.exists()


class Terminal:
    """A program at a terminal of its own, killed at the end if it still runs."""

    def __init__(self, *words: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            try:
                os.execve(words[0], words, {**os.environ, "OMP_NUM_THREADS": "1"})
            finally:
                os._exit(127)  # else a second pytest would go on here
        self.said, self.end = b"", time.monotonic() + WAIT
        self.status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self) -> bool:
        """Whether there may be more to read, after a tenth of a second at most."""
        assert time.monotonic() < self.end, self.said
        if select.select([self.descriptor], [], [], 0.1)[0]:
            try:
                self.said += os.read(self.descriptor, 10_000)
            except OSError:  # the last process closed it
                return False
        return True

    def wait(self) -> int:
        """The status with which the program ended."""
        while self.status is None:
            assert time.monotonic() < self.end + WAIT, self.said
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if ended else None
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(self.status)


@TRIED
def test_a_terminal_that_is_closed_takes_nothing_with_it(tmp_path: Path) -> None:
    """Whoever closes a terminal has no more use for words, but for the checkpoint."""
    saved = tmp_path / "saved"
    with Terminal(sys.executable, "-c", HELD, str(saved), "3") as terminal:
        while b"held" not in terminal.said:
            assert terminal.read(), terminal.said
        terminal.close()
        assert terminal.wait() == 0
    assert saved.exists()


@TRIED
@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_all_processes_and_one_of_them_speaks(tmp_path: Path) -> None:
    """Two processes on one machine, as Lightning starts them."""
    config = long_run(tmp_path, **{"trainer.max_steps": 50_000, "trainer.limit_val_batches": 0,
                                   "trainer.logger": False, "trainer.devices": 2, "trainer.strategy": "ddp",
                                   "checkpoint.every_n_train_steps": 5, "data.init_args.num_workers": 1,
                                   "model.init_args.lr_scheduler": None})  # fmt: skip
    last, pressed = tmp_path / "run/checkpoints/last.ckpt", False
    words = ["fit", "--config", str(config), *BARE]
    with Terminal(sys.executable, "-m", "diffusion_lightning", *words) as terminal:
        while terminal.read():
            if last.exists() and not pressed:
                os.write(terminal.descriptor, b"\x03")
                pressed = True
        status = terminal.wait()
    text = terminal.said.decode()
    assert status == 130, text
    assert "Traceback" not in text
    assert text.count("stopped by Ctrl-C at step") == 1, text
    assert text.count("press it again") == 1, text
    assert f" at step {read(last)['global_step']}:" in " ".join(text.split())
    assert not (tmp_path / "run/.lock").exists()
