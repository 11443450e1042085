"""One run per folder, and leftovers of a dead one ended by their recorded ids."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from recipe.processes import ProcessRecord, RunInProgressError, run_lock

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
from recipe.processes import run_lock
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


def test_leftovers_are_ended_by_id_and_start_time(tmp_path):
    mine, other = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    try:
        record = ProcessRecord(tmp_path)
        entries = {mine.pid: psutil.Process(mine.pid).create_time(), other.pid: 1.0, 2**22 - 1: 2.0}
        record.path.write_text(json.dumps({"processes": entries}))
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
from recipe.processes import ProcessRecord, adopt_orphans
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
