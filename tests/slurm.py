"""A real Slurm of a few nodes on one machine: each node is a set of namespaces with its own address and host name.

The nodes' network namespaces are joined by a bridge in another one, in which slurmctld runs, so that nothing is
added to the machine's own network and two such clusters can run side by side. Needs root and the packages of
`tests/system_packages.sh`.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import HANGING_SECONDS
from tests.test_processes import wait_until

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "munged", "ip", "nsenter", "unshare")
SYSTEM_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])
ENDED = ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT")  # states that no other follows
CPUS = 8  # that a node says it has: Ray's count is logical, and verl holds some CPUs for each rank

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=15
SlurmdTimeout={silent}
MessageTimeout=60
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# What a node runs: its own /tmp/ray and /dev/shm, as on a machine of its own; first its commands, then slurmd.
NODE = """\
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /dev/shm
{before}
slurmd -D -N {name} &
wait
"""


def missing() -> str | None:
    """Return why no Slurm can run here, or None."""
    if os.geteuid():
        return "needs root, to make network namespaces"
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":" + SYSTEM_PATH)]
    return f"needs {', '.join(lacking)}: see tests/system_packages.sh" if lacking else None


class Slurm:
    """A running cluster; a context manager. Nodes are called n1, n2, ... and have addresses from 10.77.0.11.

    Args:
        folder: for its files; short, because sockets lie in it.
        nodes: how many.
        before: a bash command that each node runs before slurmd, in its own namespaces.
        silent: seconds without an answer after which Slurm takes a node for dead, as one on a loaded machine is not.
    """

    def __init__(self, folder: Path, nodes: int = 2, before: str = "", silent: int = 300):
        self.folder, self.before, self.silent = folder, before, silent
        self.names = [f"n{i}" for i in range(1, nodes + 1)]
        self.network = f"slurm{os.getpid()}"  # the prefix of the namespaces
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + os.pathsep + SYSTEM_PATH,
        }
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Slurm":
        for name in ("state", *(f"spool-{name}" for name in self.names)):
            (self.folder / name).mkdir(parents=True)
        addresses = {name: f"10.77.0.{11 + i}" for i, name in enumerate(self.names)}
        lines = [f"NodeName={name} NodeAddr={address} CPUs={CPUS} State=UNKNOWN" for name, address in addresses.items()]
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(folder=self.folder, silent=self.silent, host=socket.gethostname(), nodes="\n".join(lines))
        )
        hosts = ["127.0.0.1 localhost", "10.77.0.1 control", *(f"{a} {n}" for n, a in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        try:
            self.make_network(addresses)
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            self.start(
                "munged",
                "munged",
                "--foreground",
                "--force",
                *(f"--{k}={self.folder}/munge.{v}" for k, v in files.items()),
            )
            self.start("control", "nsenter", f"--net=/run/netns/{self.network}", "slurmctld", "-D")
            for name in self.names:
                self.start_node(name)
            up = f"idle {len(self.names)}\n"
            sinfo = ("sinfo", "-h", "-o", "%t %D")
            wait_until(lambda: self.client(*sinfo, check=False).stdout == up, *self.daemons.values(), pause=0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def make_network(self, addresses: dict[str, str]) -> None:
        """Make a namespace for the control daemon, with a bridge in it, and one for each node."""
        control = self.network
        self.run("ip", "netns", "add", control)
        self.run("ip", "-n", control, "link", "add", "bridge", "type", "bridge")
        self.run("ip", "-n", control, "addr", "add", "10.77.0.1/24", "dev", "bridge")
        for link in ("lo", "bridge"):
            self.run("ip", "-n", control, "link", "set", link, "up")
        for name, address in addresses.items():
            inside = f"{control}-{name}"
            self.run("ip", "netns", "add", inside)
            self.run("ip", "-n", control, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inside)
            self.run("ip", "-n", control, "link", "set", name, "master", "bridge", "up")
            self.run("ip", "-n", inside, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                self.run("ip", "-n", inside, "link", "set", link, "up")

    def start(self, what: str, *command: str) -> None:
        """Start a daemon, which ends with this process if not before."""
        with open(self.folder / f"{what}.out", "a") as out:
            pdeath = ["setpriv", "--pdeathsig", "KILL", "--", *command]
            self.daemons[what] = subprocess.Popen(
                pdeath, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def start_node(self, name: str) -> None:
        """Start a node, or start it again after `end_node`."""
        script = NODE.format(name=name, folder=self.folder, before=self.before)
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.start(
            name, "nsenter", f"--net=/run/netns/{self.network}-{name}", "unshare", *spaces, "bash", "-ec", script
        )

    def end_node(self, name: str) -> None:
        """Kill a node and everything that runs on it, as a power cut would."""
        self.daemons[name].kill()
        self.daemons.pop(name).wait()

    def move_node(self, name: str, address: str) -> None:
        """Give a node that was ended another address, and tell Slurm as an administrator would."""
        inside = f"{self.network}-{name}"
        self.run("ip", "-n", inside, "addr", "flush", "dev", "eth0")
        self.run("ip", "-n", inside, "addr", "add", f"{address}/24", "dev", "eth0")
        for file, known in (("hosts", rf"\S+(?= {name}$)"), ("slurm.conf", rf"(?<=^NodeName={name} NodeAddr=)\S+")):
            path = self.folder / file
            path.write_text(re.sub(known, address, path.read_text(), flags=re.MULTILINE))
        self.client("scontrol", "reconfigure")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command to its end."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=HANGING_SECONDS)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def client(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run a Slurm command beside the control daemon."""
        return self.run("nsenter", f"--net=/run/netns/{self.network}", *command, check=check)

    def on(self, name: str, *command: str) -> subprocess.CompletedProcess:
        """Run a command inside a node, beside its jobs."""
        child = Path(f"/proc/{self.daemons[name].pid}/task/{self.daemons[name].pid}/children").read_text().split()[0]
        return self.run("nsenter", "-a", "-t", child, *command, check=False)

    def sbatch(self, *arguments: str, cwd: Path, **variables: str) -> str:
        """Submit a job from the folder `cwd` and return its id."""
        before = self.env
        self.env = before | variables
        try:
            return self.client("sbatch", "--parsable", f"--chdir={cwd}", *arguments).stdout.strip()
        finally:
            self.env = before

    def job(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job: JobState, ExitCode, Restarts, ..."""
        shown = self.client("scontrol", "show", "job", "-o", job).stdout.split()
        return dict(word.split("=", 1) for word in shown if "=" in word)

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of `states` and return what Slurm says of it."""
        wait_until(lambda: self.job(job)["JobState"] in (*states, *ENDED), pause=0.3)
        shown = self.job(job)
        assert shown["JobState"] in states, f"job {job} is {shown['JobState']}, not {states}"
        return shown

    def restart_now(self, job: str) -> None:
        """Let a requeued job start soon: Slurm would wait two minutes."""
        self.wait(job, "PENDING")
        time.sleep(2)  # slurmd refuses credentials of the second in which it killed the job
        self.client("scontrol", "update", f"JobId={job}", "StartTime=now")

    def __exit__(self, *exception) -> None:
        if "control" in self.daemons:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.client("scancel", "--state=RUNNING")
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        spaces = [self.network, *(f"{self.network}-{name}" for name in self.names)]
        for space in spaces:
            self.run("ip", "netns", "delete", space, check=False)


@pytest.fixture
def slurm(tmp_path_factory, request):
    """A cluster of two nodes; a test's parameter is the seconds after which it takes a silent node for dead."""
    if reason := missing():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm"), silent=getattr(request, "param", 300)) as cluster:
        yield cluster
