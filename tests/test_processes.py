"""One run per folder, and leftovers of a dead one ended by their recorded ids."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from common import processes
from common.processes import (
    BOOT_ID,
    ProcessRecord,
    RunInProgressError,
    lock_holder,
    run_lock,
    start_ticks,
    temporary_root,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def wait_until(condition, seconds=20):
    """Poll a condition; fail if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    with run_lock(tmp_path), pytest.raises(RunInProgressError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path):
    code = f"""
import time
from pathlib import Path
from common.processes import run_lock
with run_lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunInProgressError), run_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with run_lock(tmp_path):
        pass


ELSEWHERE = "process 7 on elsewhere, Slurm job 3, since 2026-01-01 00:00:00"


def test_a_living_holder_on_another_machine_is_known_by_its_heartbeat(tmp_path, monkeypatch):
    """Where the kernel's lock does not reach: nobody holds one here, and somebody touches the file."""
    monkeypatch.setattr(processes, "SILENT_SECONDS", 4)
    path = tmp_path / "run.lock"
    path.write_text(ELSEWHERE + "\n")
    touching = subprocess.Popen(["sh", "-c", f"while sleep 0.2; do touch -d 2001-01-01 {path}; touch {path}; done"])
    try:
        with pytest.raises(RunInProgressError, match=ELSEWHERE), run_lock(tmp_path):
            pass
        assert lock_holder(tmp_path) == (True, ELSEWHERE)
    finally:
        touching.kill()
        touching.wait()
    with run_lock(tmp_path):
        assert f"process {os.getpid()}" in lock_holder(tmp_path).text
    assert lock_holder(tmp_path) == (False, ""), "it ended in good order"


def test_a_silent_holder_on_another_machine_is_dead(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(ELSEWHERE + "\n")
    os.utime(path, (1, 1))
    assert lock_holder(tmp_path) == (False, ELSEWHERE)


def test_a_holder_keeps_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.1)
    with run_lock(tmp_path):
        os.utime(tmp_path / "run.lock", (1, 1))
        wait_until(lambda: (tmp_path / "run.lock").stat().st_mtime > 1)


def test_a_file_system_without_locks_has_the_heartbeat(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(processes.fcntl, "flock", refuse)
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(processes, "SILENT_SECONDS", 4)
    with run_lock(tmp_path):
        assert lock_holder(tmp_path).text.startswith(f"process {os.getpid()} on")
        with pytest.raises(RunInProgressError), run_lock(tmp_path):
            pass
    with run_lock(tmp_path):
        pass


def test_a_lock_that_a_file_server_keeps_for_a_dead_machine_is_no_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SILENT_SECONDS", 1)
    with open(tmp_path / "run.lock", "w") as kept:
        kept.write(ELSEWHERE + "\n")
        kept.flush()
        fcntl.flock(kept, fcntl.LOCK_EX)
        with run_lock(tmp_path):
            assert lock_holder(tmp_path).text.startswith(f"process {os.getpid()} on")


def test_leftovers_are_ended_by_id_and_start_time(tmp_path):
    mine, other = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    try:
        record = ProcessRecord(tmp_path)
        entries = {mine.pid: start_ticks(mine.pid), other.pid: 1, 2**22 - 1: 2}
        record.path.write_text(json.dumps({"boot": "another machine's", "processes": entries}))
        assert record.end_leftovers() == 0
        assert mine.poll() is None, "the same ids on another machine are other processes"
        record.path.write_text(json.dumps({"boot": BOOT_ID.read_text(), "processes": entries}))
        assert record.end_leftovers() == 1
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None, "a process with the id but another start time must live"
        assert record.end_leftovers() == 0
    finally:
        other.kill()
        other.wait()


def test_orphaned_descendants_are_recorded_and_ended(tmp_path):
    """A grandchild in its own session, whose parent has ended, is found all the same."""
    code = f"""
import subprocess, sys, time
from pathlib import Path
from common.processes import ProcessRecord, adopt_orphans
adopt_orphans()
subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.Popen({SLEEP!r}, start_new_session=True)"])
record = ProcessRecord(Path({str(tmp_path)!r}))
time.sleep(0.5)
record.update()
print(record.path.read_text(), flush=True)
record.end_descendants()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in json.loads(done.stdout)["processes"]]
    assert len(pids) == 1
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert not (tmp_path / "processes.json").exists()


def test_a_long_tmpdir_is_left_alone_where_a_socket_would_not_fit(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/of/a/job")
    assert temporary_root() == Path("/scratch/of/a/job")
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/users/somebody/slurm/job/1234567")
    assert temporary_root() == Path("/tmp")
