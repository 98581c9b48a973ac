"""A real SLURM of two nodes on one machine: munge, a controller and two daemons, all of them this test's own."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

HOSTS = Path("/etc/hosts")
LOCK = Path(tempfile.gettempdir()) / "diffusion_lightning_slurm.lock"
NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

CONFIG = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
MailProg=/bin/true
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port=16821 CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port=16822 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why this machine cannot run one; None where it can."""
    if os.geteuid() != 0:
        return "SLURM's daemons take root here"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{absent[0]} is not installed (apt-get install slurm-wlm munge)" if absent else None


class Slurm:
    """The cluster, from entering to leaving the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        self._one = LOCK.open("w")
        fcntl.flock(self._one, fcntl.LOCK_EX)  # another of these would take the same ports
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, host=socket.gethostname()))
        self._hosts = HOSTS.read_text()
        HOSTS.write_text(self._hosts + "".join(f"127.0.0.1 {node}\n" for node in NODES))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        door = self.folder / "munge.socket"
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={door}",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        while not door.exists():
            time.sleep(0.05)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        for _ in range(100):
            with contextlib.suppress(subprocess.CalledProcessError):  # before the controller listens
                if self.ask("sinfo", "--noheader", "--states=idle", "--format=%D") == "2":
                    return self
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"the nodes do not come up:\n{(self.folder / 'slurmctld.log').read_text()}")

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("a") as out:
            self._daemons.append(subprocess.Popen(words, env=self.environment, stdout=out, stderr=out))

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ask("scancel", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        HOSTS.write_text(self._hosts)
        self._one.close()

    def ask(self, *words: str, **options: str) -> str:
        """What a command of SLURM prints."""
        environment = {**self.environment, **options}
        return subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    def submit(self, folder: Path, *words: str, **environment: str) -> str:
        """A job's number; its log is `folder/slurm-<number>.log`."""
        done = subprocess.run(
            ["sbatch", "--parsable", *words], check=True, capture_output=True, text=True, cwd=folder,
            env={**self.environment, **environment},
        )  # fmt: skip
        return done.stdout.strip().partition(";")[0]

    def show(self, number: str) -> dict[str, str]:
        """The fields that `scontrol` knows of a job: JobState, Restarts, ExitCode, …"""
        found = self.ask("scontrol", "show", "--oneliner", "job", number)
        return dict(field.partition("=")[::2] for field in found.split() if "=" in field)

    def signal(self, number: str, name: str = "USR1") -> None:
        """To all processes of a job's steps, as `--signal` does ahead of its time limit."""
        self.ask("scancel", f"--signal={name}", number)
