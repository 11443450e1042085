"""Tell someone about a run: the command of `--alert`, JUSTRL_ALERT or `justrl.alert`, and W&B's own alert.

Both run in processes of their own with a time limit, so they can neither stop nor delay a run. docs/monitoring.md has
templates.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import psutil
from omegaconf import DictConfig, OmegaConf

from common.command import first_line
from common.processes import REPOSITORY, become_subreaper, descendants
from common.progress import ANSI, WARNING
from recipe.monitor.loggers import wandb_environment

VARIABLE = "JUSTRL_ALERT"
OUTSTANDING = 8  # commands at a time
LIMIT_SECONDS = 60.0
CLOSE_SECONDS = 10.0  # that a run's end waits for commands
DIE_SECONDS = 5.0  # of a killed command; longer only where the kernel holds it, on a lost file server
LOOK_SECONDS = 0.05
LINE_BYTES = 3000  # of the text, which a pipe of the smallest size holds
READ_BYTES, READS = 1 << 16, 16  # of a command's output between two looks
NOTE_CHARACTERS = 300


def add_argument(parser: argparse.ArgumentParser) -> None:
    told = "shell command that receives a line of text on warnings, restarts, hangs, failure and the end"
    parser.add_argument("--alert", metavar="COMMAND", help=f"{told}; see docs/monitoring.md")


def use_alert(command: str | None) -> None:
    """Take the command of `--alert`, if there is one, before JUSTRL_ALERT and `justrl.alert`.

    It stays out of the config: OmegaConf would resolve a `${...}` in it, and config.yaml goes to W&B and into reports.
    """
    if command is not None:
        os.environ[VARIABLE] = command


class Alerts:
    """Sends alerts of a run. No method raises an error of an alert or waits for one, except `close`.

    Args:
        config: the composed config.
        folder: the run's.
        log: train.log, open for appending, which gets a line on each alert that failed.
    """

    def __init__(self, config: DictConfig, folder: Path, log: TextIO):
        self.config, self.folder, self.log = config, folder, log
        self.sent: set[str] = set()
        self.outstanding: list[Command] = []
        self.dropping = False

    def send(self, text: str, once: str | None = None) -> None:
        """Start the alert's commands and return at once; with a key `once`, only the first time for this key."""
        try:
            self.outstanding = [command for command in self.outstanding if command.is_alive()]
            if once is None or once not in self.sent:
                self.start(one_line(f"{self.folder.name}: {text}"), once)
        except Exception as error:  # whatever it is, the run goes on
            self.note(first_line(error))

    def close(self) -> None:
        """Wait some seconds for the commands that still run, then kill them. `send` works afterwards too."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for command in self.outstanding:
            command.deadline = min(command.deadline, deadline)
        for command in self.outstanding:
            command.join(max(0.0, deadline + DIE_SECONDS - time.monotonic()))

    def start(self, text: str, once: str | None) -> None:
        commands = self.commands(text)
        if commands and len(self.outstanding) + len(commands) > OUTSTANDING:
            if not self.dropping:  # noted once, until one is sent again
                self.note(f"dropped, {len(self.outstanding)} alerts are still being sent: {text}")
            self.dropping = True
            return
        self.dropping = False
        self.sent |= {once} if once is not None else set()
        for command in commands:
            command.start()
            self.outstanding.append(command)

    def commands(self, text: str) -> list["Command"]:
        """Make the commands that send a line of text, not started yet."""
        variables = os.environ | {
            "JUSTRL_ALERT_TEXT": text,
            "JUSTRL_ALERT_JSON": json.dumps(text),
            "JUSTRL_ALERT_FOLDER": os.path.abspath(self.folder),
        }
        made = []
        # Unresolved: an interpolation that fails must not stop the run.
        if shell := os.environ.get(VARIABLE) or OmegaConf.to_container(self.config.justrl, resolve=False)["alert"]:
            made.append(Command(["/bin/sh", "-c", shell], variables, self.note))
        try:
            if wandb := wandb_environment(self.config, self.folder):
                wandb |= {"WANDB_PROJECT": self.config.trainer.project_name}
                made.append(Command([sys.executable, "-m", "recipe.monitor.wandb_alert"], variables | wandb, self.note))
        except (ValueError, OSError) as error:
            self.note(first_line(error))
        return made

    def note(self, problem: str) -> None:
        """Write a line into the log, in one call, since verl's processes and threads of alerts write there too."""
        line = "".join(c if c.isprintable() else " " for c in ANSI.sub("", problem))[:NOTE_CHARACTERS]
        with contextlib.suppress(OSError, ValueError):  # a full disk, or a closed log
            os.write(self.log.fileno(), f"\n{WARNING}alert: {line}\n".encode(errors="replace"))


def one_line(text: str) -> str:
    """Make a text fit for a header of a mail and a variable: line breaks become spaces, and it is cut at LINE_BYTES."""
    line = " ".join(text.replace("\0", "").splitlines())
    return line.encode(errors="replace")[:LINE_BYTES].decode(errors="ignore")


class Command(threading.Thread):
    """Runs a command until each process of its group has ended, also those it left in the background: mail(1) does.

    Args:
        arguments: of the command, which gets the text of `variables` on its standard input as well.
        variables: its environment.
        note: called with a line if it fails.
    """

    def __init__(self, arguments: list[str], variables: dict[str, str], note: Callable[[str], None]):
        super().__init__(daemon=True)
        # timeout(1) ends what hangs if this process is killed.
        self.arguments = ["timeout", "-s", "KILL", f"{LIMIT_SECONDS + 2 * DIE_SECONDS:g}", *arguments]
        self.variables, self.note = variables, note
        self.deadline = time.monotonic() + LIMIT_SECONDS
        self.output = b""  # the last of it

    def run(self) -> None:
        try:
            problem = self.problem()
        except Exception as error:
            problem = first_line(error)
        if problem:
            last = self.output.decode(errors="replace").strip().rpartition("\n")[2]
            self.note(f"failed: {problem}" + (f": {last}" if last else ""))

    def problem(self) -> str:
        """Run the command; return what went wrong, "" if nothing did."""
        become_subreaper()  # else the group's processes in the background could not be followed
        output, output_end = os.pipe()
        try:
            os.set_blocking(output, False)
            process = self.spawn(output_end)
            while group_lives(process) and time.monotonic() < self.deadline:
                time.sleep(LOOK_SECONDS)
                self.read(output)
            if hangs := group_lives(process):
                kill(process)
            self.read(output)
        finally:
            os.close(output)
        if hangs:
            return "took too long and was killed"
        status = process.poll()  # 0 also where the end of the run's processes has reaped it
        return f"exit status {status}" if status else ""

    def spawn(self, output: int) -> subprocess.Popen:
        """Start the command with the text as its input; closes the descriptor of its output here."""
        text, text_end = os.pipe()
        try:
            os.write(text_end, f"{self.variables['JUSTRL_ALERT_TEXT']}\n".encode())
            os.close(text_end)
            return subprocess.Popen(
                self.arguments,
                cwd=REPOSITORY,
                env=self.variables,
                stdin=text,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(text)
            os.close(output)

    def read(self, output: int) -> None:
        """Take what the command has printed, so that it never waits, but only so much: it may print without end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS):
                self.output = (self.output + os.read(output, READ_BYTES))[-NOTE_CHARACTERS * 4 :]


def kill(process: subprocess.Popen) -> None:
    """Kill the group that a process leads, and descendants that left it, as that of W&B's library does."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(child.pid) == process.pid:
                found |= descendants(child)
    os.killpg(process.pid, signal.SIGKILL)
    for descendant in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    until = time.monotonic() + DIE_SECONDS
    while group_lives(process) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    psutil.wait_procs(found, timeout=DIE_SECONDS)  # reaps them


def group_lives(process: subprocess.Popen) -> bool:
    """Reap what has ended of the group that a process leads, and return whether a child of ours is left in it.

    While one is, no other process can get the group's id.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-process.pid, os.WNOHANG)
            if not pid:
                return True
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
    return False
