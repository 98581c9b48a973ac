"""A run in Weights & Biases that holds nothing up."""

import contextlib
import glob
import json
import os
import secrets
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

# wandb reports its own faults to its makers, and where no one answers its end waits some 15 s for that.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

UNSENT = "unsent"  # the file in a start's folder that marks it, until `wandb sync` leaves its own beside it
FIRST = "first_step"  # the file in a start's folder that holds the step of its first row
FLUSHED = 1.0  # seconds until a row is in the file; wandb's own 15 are lost where its process is killed


class WeightsAndBiases(WandbLogger):
    """A run in Weights & Biases with one row an optimizer step, whose failures never stop the training.

    All that is logged of a step is one row with `_step` = the number that Lightning logs it at, whatever calls it came
    in; a row is written when the next begins, and at the end. A resumed run goes on in the same run (give its `id`) and
    leaves the rows that it holds as they are.

    Where the server cannot be reached or refuses the run at the start, after at most `init_timeout` + 10 seconds, the
    run is recorded offline. Where it goes away later, the end waits for it `finish_timeout` seconds. The data lie in
    `save_dir/wandb` in either case, for the command `wandb sync`, with a warning; the run's next start sends
    them first.

    WANDB_MODE in the environment wins over `offline`: with `disabled` there is no run, no file and no need of a key,
    and with `offline` or `online` the run is such a one.

    Args:
        name: the run's, for people; None lets the server find one.
        save_dir: the folder in which `wandb/` is made.
        id: the run's, for machines; None is WANDB_RUN_ID or a new one.
        offline: contact no one; `wandb sync` sends the run later.
        project: in which the run is listed.
        entity: the user or team that owns the project; None is the key's own.
        group: a name that several runs share.
        job_type: what the run is within its group.
        tags: words to find the run by.
        notes: a longer description.
        resume: what to do if the server has a run of this `id`, as `wandb.init` takes it.
        init_timeout: seconds that the start waits for the server.
        finish_timeout: seconds that the end waits for the server.

    Raises:
        ValueError: without an API key, unless offline, on every rank and without a question; of a project or id that
            the server would not take; of timeouts that are no times.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        id: str | None = None,
        offline: bool = False,
        project: str = "diffusion_lightning",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        resume: Literal["allow", "must", "never", "auto"] | None = "allow",
        init_timeout: float = 45,
        finish_timeout: float = 20,
    ) -> None:
        for key, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{key} is {seconds}, but a wait for the server must end: give seconds above 0")
        mode = _mode(offline)
        offline = mode == "offline"
        super().__init__(
            name=name, save_dir=save_dir, id=id or os.environ.get("WANDB_RUN_ID"), offline=offline, project=project,
            entity=entity, group=group, job_type=job_type, tags=tags, notes=notes, resume=resume,
        )  # fmt: skip
        self._timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self._disabled = mode == "disabled"
        _check_names(project, self._id)
        if mode == "online":
            _check_key()
        self._row: dict[str, Any] = {}
        self._step = 0
        self._held = -1  # the last step that the run held when it was opened
        self._told = False  # that rows come twice
        self._begun = False  # this start has written a row
        self._recent: list[tuple[float, int, dict[str, Any]]] = []  # when written, step, row

    def __getstate__(self) -> dict[str, Any]:
        """Without the run: the process that logs opens it."""
        return {**self.__dict__, "_experiment": None}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, opened if it is not; again after its end."""
        if self._experiment is None:
            self._experiment = self._open()
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        step = self._step if step is None else step
        if step < self._step:
            rank_zero_warn(
                f"{', '.join(metrics)} of step {step} came after the row of step {self._step} was begun and cannot be "
                "added to Weights & Biases: log a step's values before the next step's"
            )
            return
        if step > self._step:
            self._write()
            self._step = step
        self._row.update({**metrics, "trainer/global_step": step})  # the x-axis of everyone's charts of Lightning

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self._tell(lambda: super(WeightsAndBiases, self).log_hyperparams(params))

    @rank_zero_only
    def preempting(self, step: int | None = None) -> None:
        """Mark the run as preempted on the server: it goes on later.

        Args:
            step: from which it goes on; a row of that step is begun again then, and is dropped now.
        """
        if step is not None and self._step >= step:
            self._row = {}
        self._tell(lambda: self.experiment.mark_preempting())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run, whatever the status; what is logged later opens it again."""
        self._write()
        if self._experiment is None:
            return
        run: Any = self._experiment
        self._experiment, self._id = None, self._id if self._disabled else run.id
        try:
            run.finish(exit_code=0 if status in ("success", "finished") else 1)
        except Exception as error:  # wandb's own faults have no class in common, and the training is done
            self._abandon(run)
            rank_zero_warn(
                f"Weights & Biases did not take all of the run ({_words(error) or type(error).__name__}), and what is "
                f"missing lies here: send it later by {_sync(run)}"
            )

    def _open(self) -> Any:
        wandb = _wandb()
        if self._disabled:
            return wandb.init(mode="disabled", reinit="create_new")  # which leaves wandb.run alone
        Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
        self._id = self._wandb_init["id"] = self._id or secrets.token_hex(4)
        earlier = _folders(Path(self._save_dir or "."), self._id)
        try:
            if not self._offline:
                self._send([folder for folder in earlier if _unsent(folder)])
            run = self._start()
        except (wandb.Error, OSError, subprocess.SubprocessError) as error:
            if self._offline:
                raise
            with contextlib.suppress(Exception):
                wandb.teardown()  # else its service holds the id as in use
            self._offline = True
            run = self._start()
            rank_zero_warn(
                f"Weights & Biases did not begin the run ({_words(error)}), so it is recorded offline: send it later "
                f"by {_sync(run)}"
            )
        if run.offline:
            _mark(run)
        self._begun = False
        self._held = run.starting_step - 1 if not run.offline else _last_step(earlier)
        return run

    def _start(self) -> Any:
        wandb = _wandb()
        settings = wandb.Settings(
            console="off", quiet=True, finish_timeout_raises=True, x_transaction_log_flush_interval=FLUSHED,
            silent=self._offline,  # its lines at the start advertise, and `fit` says where an offline run lies
            **self._timeouts,
        )  # fmt: skip
        options = {key: value for key, value in self._wandb_init.items() if key != "anonymous"}
        # wandb's process may have been started elsewhere, by a notebook (WANDB_SERVICE): it would take a relative path
        # as one below its own folder, and write there.
        options["dir"] = str(Path(self._save_dir or ".").absolute())
        mode = "offline" if self._offline else None
        return wandb.init(**options, mode=mode, reinit="finish_previous", settings=settings)

    def _send(self, folders: list[Path]) -> None:
        """What an earlier start of the run kept to itself goes first: a server takes rows in their order alone."""
        if folders:
            words = [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)]
            subprocess.run(words, capture_output=True, check=True, timeout=self._timeouts["init_timeout"])

    def _write(self) -> None:
        row, self._row = self._row, {}
        if not row:
            return
        self.experiment  # noqa: B018 opened before its content is read
        if self._step > self._held:
            now = time.monotonic()
            self._recent = [*(kept for kept in self._recent if now - kept[0] < 5 * FLUSHED), (now, self._step, row)]
            self._tell(lambda: self._log(self._step))
        elif not self._told:
            rank_zero_warn(
                f"the run in Weights & Biases holds steps up to {self._held}, which are not written again, and this "
                f"one goes on from step {self._step}"
            )
            self._told = True

    def _log(self, since: int) -> None:
        for _, step, row in self._recent:
            if step >= since:
                if not self._begun:
                    self._begun = True
                    _note(self.experiment, FIRST, str(step))
                self.experiment.log(row, step=step, commit=True)

    def _tell(self, what: Callable[[], Any]) -> None:
        """Send it to wandb's own process; if that ended, to a new one that records offline."""
        try:
            what()
        except OSError as error:  # SLURM sends SIGTERM to all processes of a job, and wandb's obeys
            run, self._experiment, self._offline = self._experiment, None, True
            self._abandon(run)
            self.experiment  # noqa: B018
            self._log(self._held + 1)  # what had not reached the file
            rank_zero_warn(
                f"wandb's own process ended ({_words(error)}), and what it had not sent yet lies here: send it later "
                f"by {_sync(run, self._experiment)}"
            )

    def _abandon(self, run: Any) -> None:
        _mark(run)
        with contextlib.suppress(Exception):
            _wandb().teardown()


def _wandb() -> Any:
    import wandb  # takes half a second, and not every run has one

    return wandb


def _mode(offline: bool) -> str:
    """`online`, `offline` or `disabled`: from the environment, else the argument, else wandb's own settings."""
    known = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline",
             "disabled": "disabled"}  # fmt: skip
    given = os.environ.get("WANDB_MODE")
    if given and given not in known:
        raise ValueError(
            f"WANDB_MODE is {given}, but wandb has the modes online, offline and disabled: set it to one of these"
        )
    if given or offline:
        return known[given or "offline"]
    _wandb()
    from wandb.sdk import wandb_setup

    return known[wandb_setup.singleton().settings.mode]


def _check_names(project: str, id: str | None) -> None:
    wandb = _wandb()
    try:
        wandb.Settings(project=project, run_id=id)
    except wandb.Error as error:
        raise ValueError(f"Weights & Biases does not take the run's names: {_words(error)}") from error


def _check_key() -> None:
    """Raise ValueError if there is no usable API key; asks neither the server nor the terminal."""
    wandb = _wandb()
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    fixes = "run `wandb login`, set WANDB_API_KEY, or add --trainer.logger.offline true"
    try:
        found = wbauth.authenticate_session(host=settings.base_url, source="", prompt=False, update_session=False)
    except wandb.Error as error:
        raise ValueError(f"the API key of Weights & Biases cannot be used ({_words(error)}): {fixes}") from error
    if found is None:
        raise ValueError(f"the run is to be sent to {settings.base_url}, but there is no API key for it: {fixes}")


def _folders(root: Path, id: str) -> list[Path]:
    """Those of a run's starts, `[offline-]run-DATE_TIME-ID`, in the order of their first steps, then of the clock.

    Clocks of two machines differ, and a server takes rows in the order of their steps alone. A start without a row, and
    one of an earlier version, which wrote no file of its first step, comes before all others.
    """
    found = (root / "wandb").glob(f"*run-????????_??????-{glob.escape(id)}")
    return sorted(found, key=lambda path: (_first_step(path), path.name.removeprefix("offline-")))


def _first_step(folder: Path) -> int:
    try:
        return int((folder / FIRST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return -1


def _mark(run: Any) -> None:
    """Leave a mark for the next start that not all of this one was sent."""
    _note(run, UNSENT)


def _note(run: Any, name: str, text: str = "") -> None:
    with contextlib.suppress(OSError):
        Path(run.settings.sync_dir, name).write_text(text, encoding="utf-8")


def _unsent(folder: Path) -> bool:
    return (folder / UNSENT).exists() and not any(folder.glob("*.synced"))


def _sync(*runs: Any) -> str:
    folders = [Path(run.settings.sync_dir) for run in runs]
    here = Path.cwd()
    near = [str(folder.relative_to(here) if folder.is_relative_to(here) else folder) for folder in folders]
    return f"`wandb sync --include-online {' '.join(near)}`"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _last_step(folders: list[Path]) -> int:
    """The last step that a run's files hold, -1 where there is none: a killed run wrote more than it kept."""
    for folder in reversed(folders):
        read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        text = subprocess.run(read, capture_output=True, encoding="utf-8", errors="replace", check=False).stdout
        records = [json.loads(line) for line in text.splitlines() if '"type":"history"' in line]
        if records:
            return max(record["history"]["step"]["num"] for record in records)
    return -1
