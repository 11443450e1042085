"""One run per folder, on this machine and on others that share it."""

import fcntl
import itertools
import os
import subprocess
import sys

import pytest

from common import locks, patience
from common.locks import RunInProgressError, lock_holder, run_lock
from tests.test_processes import wait_until


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    with run_lock(tmp_path), pytest.raises(RunInProgressError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path):
    code = f"""
import time
from pathlib import Path
from common.locks import run_lock
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
    path = tmp_path / "run.lock"
    path.write_text(ELSEWHERE + "\n")
    touching = subprocess.Popen(["sh", "-c", f"while sleep 0.2; do touch {path}; done"])
    try:
        with pytest.raises(RunInProgressError, match=ELSEWHERE), run_lock(tmp_path):
            pass
        assert lock_holder(tmp_path) == (True, ELSEWHERE)
    finally:
        touching.kill()
        touching.wait()
    monkeypatch.setattr(locks, "SILENT_SECONDS", 1)
    with run_lock(tmp_path):
        assert f"process {os.getpid()}" in lock_holder(tmp_path).text
    assert lock_holder(tmp_path) == (False, ""), "it ended in good order"


def test_a_silent_holder_on_another_machine_is_dead(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(ELSEWHERE + "\n")
    os.utime(path, (1, 1))
    assert lock_holder(tmp_path) == (False, ELSEWHERE)


def test_a_holder_keeps_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)
    with run_lock(tmp_path):
        os.utime(tmp_path / "run.lock", (1, 1))
        wait_until(lambda: (tmp_path / "run.lock").stat().st_mtime > 1)


def test_a_file_system_without_locks_has_the_heartbeat(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)
    with run_lock(tmp_path):
        assert lock_holder(tmp_path).text.startswith(f"process {os.getpid()} on")
        with pytest.raises(RunInProgressError), run_lock(tmp_path):
            pass
    with run_lock(tmp_path):
        pass


def test_a_lock_that_a_file_server_keeps_for_a_dead_machine_is_no_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 1)
    with open(tmp_path / "run.lock", "w") as kept:
        kept.write(ELSEWHERE + "\n")
        kept.flush()
        fcntl.flock(kept, fcntl.LOCK_EX)
        with run_lock(tmp_path):
            assert lock_holder(tmp_path).text.startswith(f"process {os.getpid()} on")


def test_a_watcher_that_a_loaded_machine_holds_up_does_not_pass_for_a_run(tmp_path, monkeypatch):
    """It has the lock for an instant, shared; stopped in that instant, it has it for as long as it is."""
    with run_lock(tmp_path):
        pass
    looks = []
    with open(tmp_path / "run.lock") as watcher:
        fcntl.flock(watcher, fcntl.LOCK_SH)

        def sleep(seconds):
            looks.append(seconds)
            if len(looks) == 100:
                fcntl.flock(watcher, fcntl.LOCK_UN)

        monkeypatch.setattr(locks.time, "sleep", sleep)
        with run_lock(tmp_path):
            assert len(looks) >= 100, "it waited for the watcher"


def test_a_hold_up_of_the_one_who_waits_is_no_silence(monkeypatch):
    """A file server that answers after an hour has shown one look, not an hour without a heartbeat."""
    monkeypatch.setattr(patience.time, "monotonic", itertools.count(step=3600.0).__next__)
    waiting = patience.Patience("waiting", lambda: "the same", seconds=4 * patience.LOOK_SECONDS)
    assert [waiting.lasts() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("content", [b"", b"x", b"null", b"\xff\xfe\0", b"a b c\n"])
def test_a_damaged_lock_is_no_traceback(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content)
    assert not lock_holder(tmp_path).alive
    with run_lock(tmp_path):
        assert lock_holder(tmp_path).alive
