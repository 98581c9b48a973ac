"""Weights & Biases: what a run's files hold, what a server is sent, and that neither ever holds the training up."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from PIL import Image
from wandb.sdk.launch.sweeps import utils as sweep_utils

from diffusion_lightning.cli import main
from diffusion_lightning.loggers import WeightsAndBiases

from ..conftest import ROOT, UNWATCHED, small_config
from ..support.wandb_runs import config, history
from ..support.wandb_server import Server

BIN = Path(sys.executable).parent
LOGGER = "diffusion_lightning.loggers.WeightsAndBiases"


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["_step"] for row in rows]


def sync(command: str, server: Server) -> None:
    """Runs the command that a warning names, between two backticks."""
    words = command.split("`")[1].split()
    assert words[:3] == ["wandb", "sync", "--include-online"]
    subprocess.run(
        [BIN / "wandb", *words[1:]], check=True, capture_output=True, env={**os.environ, **server.environment}
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process of wandb's of each test's own, which reads the environment anew, and no key of the user's."""
    for key in [key for key in os.environ if key.startswith("WANDB_") and key != "WANDB_ERROR_REPORTING"]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    wandb.teardown()
    yield
    assert wandb.run is None
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the environment names, with a key."""
    with Server() as found:
        for key, value in found.environment.items():
            monkeypatch.setenv(key, value)
        yield found


def test_a_row_a_step_whatever_calls_it_came_in(tmp_path: Path) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=True, project="p")
    log.log_hyperparams({"model": {"T": 10}, "git_commit": "abc"})
    log.log_metrics({"train/loss": 1.0, "epoch": 0}, 1)
    log.log_metrics({"train/loss": 0.5}, 3)
    log.log_metrics({"val/loss": 0.7}, 4)
    log.log_image("samples", [Image.new("L", (8, 8))], step=4)
    log.log_table("samplers", columns=["sampler", "steps"], data=[["DDIM", 5]])  # of the step last logged
    log.finalize("success")
    rows = history(tmp_path)
    assert steps(rows) == [1, 3, 4]
    assert [row.get("train/loss") for row in rows] == [1.0, 0.5, None]
    assert rows[2]["val/loss"] == 0.7
    assert rows[2]["samples._type"] == "images/separated"
    assert rows[2]["samplers._type"] == "table-file"
    assert [row["trainer/global_step"] for row in rows] == steps(rows)
    assert config(tmp_path)["model"] == {"T": 10}
    assert config(tmp_path)["git_commit"] == "abc"
    assert len(list((tmp_path / "wandb").glob("offline-*/files/media/images/samples_4_*.png"))) == 1


def test_its_rows_lie_in_its_own_folder_where_another_process_runs_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of wandb may be that of a notebook, or of a run before, and was then started in another folder."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    wandb.setup()
    monkeypatch.chdir(tmp_path / "there")
    log = WeightsAndBiases(save_dir="run", id="r", offline=True)
    log.log_metrics({"a": 1.0}, step=1)
    log.finalize("success")
    assert [row["a"] for row in history(tmp_path / "there/run")] == [1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_comes_too_late_is_said(tmp_path: Path) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=True)
    log.log_metrics({"a": 1.0}, 2)
    with pytest.warns(UserWarning, match="b of step 1 came after the row of step 2 was begun"):
        log.log_metrics({"b": 1.0}, 1)
    log.finalize("success")
    assert steps(history(tmp_path)) == [2]


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("finished", 0), ("failed", 1)])
def test_the_server_has_each_row_once_and_how_it_ended(server: Server, tmp_path: Path, status: str, code: int) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", project="p", name="n", tags=["a"])
    log.log_hyperparams({"T": 10})
    for step in range(5):
        log.log_metrics({"a": float(step)}, step)
        log.log_metrics({"b": 1.0}, step)
    log.finalize(status)
    run = server.runs["r"]
    assert [(row["_step"], row["a"], row["b"]) for row in run.history] == [(k, k, 1) for k in range(5)]
    assert run.config["T"]["value"] == 10
    assert run.exit_code == code
    assert not run.preempting
    assert log.version == "r"


def test_logged_to_after_its_end_it_is_the_same_run(server: Server, tmp_path: Path) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path))
    for step in range(4):
        log.log_metrics({"a": float(step)}, step)
        log.finalize("success")
        assert wandb.run is None
    assert steps(next(iter(server.runs.values())).history) == [0, 1, 2, 3]
    assert len(server.runs) == 1


@pytest.mark.parametrize("offline", [False, True])
def test_preempted_within_an_evaluation_it_holds_each_step_once(
    server: Server, tmp_path: Path, offline: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """The evaluation after step 2 is begun, broken off and done again by the run's second start."""
    for values in ({"samples": 1.0}, {"samples": 1.0, "val/loss": 2.0}):
        log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=offline)
        for step in (0, 1) if "val/loss" not in values else (2, 3):
            if step == 2:
                log.log_metrics(values, 2)
            log.log_metrics({"train/loss": float(step)}, step)
        if "val/loss" not in values:
            log.log_metrics(values, 2)
            log.preempting(2)
        log.finalize("failed")
        time.sleep(1.1)  # a start's folder is named by the second
    rows = history(tmp_path)
    assert steps(rows) == [0, 1, 2, 3]
    assert {"samples", "val/loss", "train/loss"} <= set(rows[2])
    assert not recwarn.list
    if not offline:
        assert steps(server.runs["r"].history) == [0, 1, 2, 3]
        assert server.runs["r"].preempting


@pytest.mark.parametrize("offline", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_and_started_from_an_earlier_step_it_holds_each_step_once(
    server: Server, tmp_path: Path, offline: bool, recwarn: pytest.WarningsRecorder
) -> None:
    for start in (0, 3):
        log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=offline)
        for step in range(start, start + 6):
            log.log_metrics({"a": float(step)}, step)
        log.finalize("failed")
        time.sleep(1.1)  # a start's folder is named by the second
    assert ["holds steps up to 5" in str(warning.message) for warning in recwarn] == [True]
    assert steps(history(tmp_path)) == list(range(9))
    if offline:
        for folder in sorted((tmp_path / "wandb").glob("offline-run-*")):
            sync(f"`wandb sync --include-online {folder}`", server)
    assert [(row["_step"], row["a"]) for row in server.runs["r"].history] == [(k, k) for k in range(9)]


def test_the_file_of_a_killed_run_is_read_as_far_as_it_goes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=True)
    for step in range(100):
        log.log_metrics({"a": float(step)}, step)
    log.finalize("success")
    assert len(history(tmp_path)) == 100
    path = next((tmp_path / "wandb").glob("offline-run-*/run-r.wandb"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kept = len(history(tmp_path, ended=False))
    assert 10 < kept < 90
    time.sleep(1.1)
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=True)
    for step in range(5, 100):
        log.log_metrics({"a": float(step)}, step)
    log.finalize("success")
    assert [f"holds steps up to {kept - 1}, " in str(warning.message) for warning in recwarn] == [True]
    assert [(row["_step"], row["a"]) for row in history(tmp_path)] == [(k, k) for k in range(100)]


@pytest.mark.parametrize("status", [401, pytest.param(403, marks=pytest.mark.slow)])
def test_a_server_that_refuses_leaves_the_run_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    with Server(status) as refusing:
        for key, value in refusing.environment.items():
            monkeypatch.setenv(key, value)
        log = WeightsAndBiases(save_dir=str(tmp_path), id="r", project="p")
        with pytest.warns(UserWarning, match=f"error {status}.* is recorded offline") as said:
            log.log_hyperparams({"T": 10})
        log.log_metrics({"a": 1.0}, 7)
        log.finalize("success")
    with Server() as back:
        sync(str(said[0].message), back)
        assert steps(back.runs["r"].history) == [7]
        assert back.runs["r"].config["T"]["value"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("death", ["shut", "dumb"])
def test_a_server_that_dies_in_mid_run_loses_nothing(server: Server, tmp_path: Path, death: str) -> None:
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", finish_timeout=1)
    for step in range(20):
        log.log_metrics({"a": float(step)}, step)
        if step == 10:
            server.shut() if death == "shut" else server.dumb.set()
    with pytest.warns(UserWarning, match="send it later by `wandb sync --include-online") as said:
        log.finalize("success")
    assert steps(history(tmp_path)) == list(range(20))
    server.dumb.clear()
    wandb.teardown()
    with Server() as back:
        sync(str(said[0].message), back)
        assert steps(back.runs["r"].history) == list(range(20))


def service() -> int:
    """The process of wandb's own, a child of this one."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        if name == "wandb-core" and rest.split()[0] != "Z" and int(rest.split()[1]) == os.getpid():
            return int(path.parent.name)
    raise AssertionError("wandb runs no process")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a process in /proc")
@pytest.mark.parametrize(("number", "offline"), [(signal.SIGTERM, True), (signal.SIGTERM, False),
                                                 (signal.SIGUSR1, True)])  # fmt: skip
def test_a_signal_to_all_processes_of_a_job_costs_no_row(
    server: Server, tmp_path: Path, number: int, offline: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """SIGTERM ends wandb's own process: the rows are in its file and another's, and the next start sends both."""
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=offline)
    for step in range(9):
        log.log_metrics({"a": float(step)}, step)
        if step == 4:
            time.sleep(1.1)  # a start's folder is named by the second
            os.kill(service(), number)
            time.sleep(0.3)
    log.finalize("failed")
    # Not that a process which another test left is swept up meanwhile.
    said = [str(warning.message) for warning in recwarn if warning.category is not ResourceWarning]
    assert steps(history(tmp_path)) == list(range(9))
    if number == signal.SIGTERM:
        assert len(said) == 1
        assert said[0].startswith("wandb's own process ended")
        again = WeightsAndBiases(save_dir=str(tmp_path), id="r")
        again.log_metrics({"a": 9.0}, 9)
        again.finalize("success")
        assert [(row["_step"], row["a"]) for row in server.runs["r"].history] == [(k, k) for k in range(10)]
    else:
        assert said == []


def test_without_a_key_no_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"there is no API key for it: run `wandb login`, set WANDB_API_KEY, or add"):
        WeightsAndBiases(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ValueError, match=r"cannot be used .*40"):
        WeightsAndBiases(save_dir=str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    WeightsAndBiases(save_dir=str(tmp_path))
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    WeightsAndBiases(save_dir=str(tmp_path))
    assert not (tmp_path / "wandb").exists()


def logged(log: WeightsAndBiases) -> None:
    """All that a run says to its logger."""
    log.log_hyperparams({"T": 10})
    log.log_metrics({"a": 1.0}, 3)
    log.log_image("samples", [Image.new("L", (8, 8))], step=3)
    log.log_table("table", ["a"], [[1]], step=3)
    log.preempting()
    log.log_metrics({"a": 1.0}, 4)
    log.finalize("success")


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("offline", [False, True], ids=["a config that is online", "a config that is offline"])
def test_wandb_disabled_in_the_environment_leaves_no_file_and_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "run"
    log = WeightsAndBiases(save_dir=str(root), id="r", offline=offline)
    logged(log)
    assert log.version == "r"
    assert not root.exists()
    assert not (tmp_path / "wandb").exists()
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == []


@pytest.mark.tried("Numbers, precision and words")
def test_wandb_disabled_by_its_own_command_leaves_no_file(tmp_path: Path) -> None:
    """`wandb disabled` writes it into wandb's settings."""
    (tmp_path / "wandb_config").mkdir()
    (tmp_path / "wandb_config/settings").write_text("[default]\nmode = disabled\n")
    logged(WeightsAndBiases(save_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_wandb_offline_in_the_environment_wins_over_a_config_that_is_online(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    logged(WeightsAndBiases(save_dir=str(tmp_path), id="r", offline=False))
    assert steps(history(tmp_path)) == [3, 4]
    assert not server.runs


@pytest.mark.tried("Numbers, precision and words")
def test_wandb_online_in_the_environment_wins_over_a_config_that_is_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    log = WeightsAndBiases(save_dir=str(tmp_path), id="r", project="p", offline=True)
    log.log_metrics({"a": 1.0}, 3)
    log.finalize("success")
    assert steps(server.runs["r"].history) == [3]


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize(("mode", "says"), [("online", "there is no API key"), ("of", "WANDB_MODE is of, but wandb")])
def test_a_mode_of_the_environment_that_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, says: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ValueError, match=says):
        WeightsAndBiases(save_dir=str(tmp_path), offline=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"project": "a/b"}, "Invalid project name 'a/b'"),
        ({"id": "a/b"}, "Run ID cannot contain"),
        ({"finish_timeout": 0}, "finish_timeout is 0, but a wait for the server must end"),
        ({"init_timeout": float("inf")}, "init_timeout is inf"),
    ],
)
def test_what_the_server_would_not_take_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WeightsAndBiases(offline=True, **changes)


WATCH = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Watch(Callback):
    # At step 5 it says so and waits for `go`; it leaves the time of each step's end and of the training's in `times`.
    times = []

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5 and not Path("here").exists():
            Path("here").touch()
            while not Path("go").exists():
                time.sleep(0.05)
        self.times.append(time.time())

    def on_train_end(self, *args):
        Path("times").write_text(" ".join(map(str, [*self.times, time.time()])))
"""


def fit_config(folder: Path, **init_args: Any) -> Path:
    """A small run of 40 steps, logged at each, without validation."""
    logger = {"class_path": LOGGER, "init_args": {"project": "p", "offline": False, **init_args}}
    changes = {"trainer.max_steps": 40, "trainer.log_every_n_steps": 1, "trainer.limit_val_batches": 0,
               "trainer.logger": logger, **UNWATCHED, "model.init_args.lr_scheduler": None}  # fmt: skip
    path = small_config(folder)
    found = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        at = found
        *parents, last = key.split(".")
        for parent in parents:
            at = at[parent]
        at[last] = value
    path.write_text(yaml.safe_dump(found))
    return path


def start(folder: Path, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """The command, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_lightning", *words], cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("death", ["shut", "dumb"])
def test_training_goes_on_without_the_server_and_ends_within_half_a_minute(
    server: Server, tmp_path: Path, death: str
) -> None:
    (tmp_path / "watch.py").write_text(WATCH)
    process = start(tmp_path, "fit", "--config", str(fit_config(tmp_path)), "--trainer.callbacks+=watch.Watch")
    while not (tmp_path / "here").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    server.shut() if death == "shut" else server.dumb.set()
    (tmp_path / "go").touch()
    _, said = process.communicate(timeout=300)
    end = time.time()
    assert process.returncode == 0, said
    *times, trained = map(float, (tmp_path / "times").read_text().split())
    assert len(times) == 40
    assert max(b - a for a, b in itertools.pairwise(times[4:])) < 5
    assert end - trained <= 30
    assert "wandb sync --include-online" in said
    assert steps(history(tmp_path / "run")) == list(range(40))
    assert "git_commit" in config(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["absent", "dumb"])
def test_a_run_begins_without_the_server(tmp_path: Path, how: str) -> None:
    with Server() as server:
        server.dumb.set()
        if how == "absent":
            server.shut()
        words = ["fit", "--config", str(fit_config(tmp_path, init_timeout=2))]
        process = start(tmp_path, *words, **server.environment)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "so it is recorded offline" in said
    assert steps(history(tmp_path / "run")) == list(range(40))


@pytest.mark.slow
def test_two_ranks_make_one_run(server: Server, tmp_path: Path) -> None:
    words = ["fit", "--config", str(fit_config(tmp_path)), "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(tmp_path, *words)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len(server.runs) == 1
    assert steps(next(iter(server.runs.values())).history) == list(range(40))
    assert len(list((tmp_path / "run/wandb").glob("run-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_without_a_key_the_command_ends_with_one_sentence(tmp_path: Path, ranks: int) -> None:
    words = ["fit", "--config", str(fit_config(tmp_path)), f"--trainer.devices={ranks}", "--trainer.strategy=ddp"]
    process = start(tmp_path, *words)
    _, said = process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "there is no API key" in lines[0]
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("offline", [False, True])
def test_a_resumed_run_holds_each_step_once(server: Server, tmp_path: Path, offline: bool) -> None:
    words = ["fit", "--config", str(fit_config(tmp_path, offline=offline)), "--ckpt_path=last"]
    for end in (20, 40):
        process = start(tmp_path, *words, f"--trainer.max_steps={end}")
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert steps(history(tmp_path / "run")) == list(range(40))
    assert len({path.name.rpartition("-")[2] for path in (tmp_path / "run/wandb").glob("*run-*-*")}) == 1
    assert len(server.runs) == (not offline)
    assert all(steps(run.history) == list(range(40)) for run in server.runs.values())


SWEEP = ROOT / "configs/sweeps/digits.yaml"


def wandb_command(server: Server, folder: Path, *words: str) -> str:
    environment = {**os.environ, **server.environment, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        [BIN / "wandb", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def trials(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings of trials such that each value occurs."""
    values = {key: p.get("values") or [p["min"], p["max"]] for key, p in sweep["parameters"].items()}
    return [{key: {"value": these[k % len(these)]} for key, these in values.items()}
            for k in range(max(map(len, values.values())))]  # fmt: skip


def test_the_sweep_is_taken_as_it_is_and_its_trials_are_commands(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = wandb_command(server, tmp_path, "sweep", str(SWEEP))
    assert "WARNING" not in said
    assert "wandb agent me/diffusion_lightning/s" in said
    monkeypatch.chdir(ROOT)
    for settings in trials(server.sweeps[0]):
        args = sweep_utils.create_sweep_command_args({"args": settings})["args"]
        command = server.sweeps[0]["command"]
        words = [word for part in command for word in (args if part == "${args}" else [part])]
        assert words[0] == "${program}"
        with pytest.raises(SystemExit) as end:
            main([*words[1:], "--print_config"])
        assert end.value.code == 0
        found = yaml.safe_load(capsys.readouterr().out)
        assert found["ema"]["decay"] == settings["ema.decay"]["value"]
        chosen = settings["model.init_args.schedule"]["value"]
        assert found["model"]["init_args"]["schedule"]["class_path"].endswith(f".{chosen}")
        assert found["trainer"]["logger"]["init_args"]["offline"] is False


@pytest.mark.slow
def test_an_agent_runs_a_trial_in_a_folder_of_its_own(server: Server, tmp_path: Path) -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    small = str(fit_config(tmp_path, offline=True))
    means = {"digits": [small], "${program}": [sys.executable, "-m", "diffusion_lightning"]}
    sweep["command"] = [word for part in sweep["command"] for word in means.get(part, [part])]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    wandb_command(server, tmp_path, "sweep", "sweep.yaml")
    settings = trials(sweep)[0]
    server.trials = [{"type": "run", "run_id": "t0", "program": "diffusion-lightning", "args": settings}]
    wandb_command(server, tmp_path, "agent", "--count", "1", "me/diffusion_lightning/s")
    assert steps(server.runs["t0"].history) == list(range(40))
    assert (tmp_path / "run/t0/checkpoints/last.ckpt").exists()
