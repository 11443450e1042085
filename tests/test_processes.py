"""Stale processes of a killed run are ended by their recorded ids, and a run leaves none."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from common.processes import BOOT_ID, REPOSITORY, ProcessRecord, start_ticks, temporary_root
from tests.conftest import HANGING_SECONDS

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def wait_until(condition, *processes, pause=0.05):
    """Poll a condition; fail if it does not come true, or if a process that is to make it true has ended."""
    end = time.monotonic() + HANGING_SECONDS
    while not condition():
        assert all(process.poll() is None for process in processes), "a process ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)


def test_stale_processes_are_ended_by_id_and_start_time(tmp_path):
    mine, other = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    try:
        record = ProcessRecord(tmp_path)
        entries = {mine.pid: start_ticks(mine.pid), other.pid: 1, 2**22 - 1: 2}
        record.path.write_text(json.dumps({"boot": "another machine's", "processes": entries}))
        assert record.end_stale() == 0
        assert mine.poll() is None, "the same ids on another machine are other processes"
        record.path.write_text(json.dumps({"boot": BOOT_ID.read_text(), "processes": entries}))
        assert record.end_stale() == 1
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None, "a process with the id but another start time must live"
        assert record.end_stale() == 0
    finally:
        other.kill()
        other.wait()


def test_orphaned_descendants_are_recorded_and_ended(tmp_path):
    """A grandchild in its own session, whose parent has ended, is found all the same."""
    code = f"""
import subprocess, sys, time
from pathlib import Path
from common.processes import ProcessRecord, become_subreaper
become_subreaper()
subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.Popen({SLEEP!r}, start_new_session=True)"])
record = ProcessRecord(Path({str(tmp_path)!r}))
record.update()
print(record.path.read_text(), flush=True)
record.end_descendants()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGING_SECONDS)
    pids = [int(pid) for pid in json.loads(done.stdout)["processes"]]
    assert len(pids) == 1
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert not (tmp_path / "processes.json").exists()


def test_a_descendant_that_got_another_parent_is_recorded_and_ended(tmp_path):
    """When a fork server's fork ends, the kernel gives its child processes to init or to another subreaper."""
    code = f"""
import subprocess, sys, time, psutil
from pathlib import Path
from common.processes import ProcessRecord, living_descendants
shell = subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", *{SLEEP!r}])
while len(psutil.Process(shell.pid).children()) == 0:
    time.sleep(0.05)
escaped = psutil.Process(shell.pid).children()[0]
record = ProcessRecord(Path({str(tmp_path)!r}))
record.update()
shell.kill()
shell.wait()
assert escaped.is_running() and escaped not in living_descendants()
record.update()
assert str(escaped.pid) in record.path.read_text()
record.end_descendants()
assert not escaped.is_running() or escaped.status() == psutil.STATUS_ZOMBIE
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stderr


def test_a_long_tmpdir_is_left_alone_where_a_socket_would_not_fit(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/as/it/was")
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/of/a/job")
    assert temporary_root() == Path("/scratch/of/a/job")
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/users/somebody/slurm/job/1234567")
    assert temporary_root() == Path("/tmp")
    assert os.environ["TMPDIR"] == "/tmp", "for the sockets of child processes, such as multiprocessing's"
    monkeypatch.setattr(tempfile, "tempdir", "/" + 30 * "é")
    assert temporary_root() == Path("/tmp"), "bytes count"


def test_the_script_does_the_same():
    code = "set -eu; source scripts/processes.sh; echo $TMPDIR"
    for folder, expected in (("/tmp/" + 110 * "a", "/tmp"), ("/no/such/folder", "/tmp"), ("/var", "/var")):
        done = subprocess.run(
            ["bash", "-c", code], cwd=REPOSITORY, env={"TMPDIR": folder}, capture_output=True, text=True
        )
        assert done.stdout == f"{expected}\n"
        assert (folder in done.stderr) == (expected != folder)
