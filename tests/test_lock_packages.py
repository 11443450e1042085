"""The locking of packages, with a stub in uv's place that resolves to a few lines."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import HANGING_SECONDS, ROOT

# Resolves to a==1, and to b on x86-64 alone; `for-aarch64` and `by-version` change that. Notes its arguments.
UV = """#!/usr/bin/env bash
echo "$*" >>calls
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out="$2" ;;
    --python-platform) platform="$2" ;;
    --python-version) version="$2" ;;
  esac
  shift
done
{
  echo "# made by uv"
  echo "a[extra]==1.0+cpu         # via c"
  [[ "$platform" != x86_64* ]] || echo "b==2                      # via a"
  [[ "$platform$CASE" != aarch64*for-aarch64 ]] || echo "d==4                      # via a"
  [[ "$CASE" != by-version ]] || echo "e==$version"
  [[ "$out" != build/* ]] || echo "transformers==5.19.0      # via a"
} >"$out"
"""


@pytest.fixture
def lock(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "requirements-cpu.txt").write_text("the lock before\n")
    (tmp_path / "uv").write_text(UV)
    (tmp_path / "uv").chmod(0o755)

    def run(*arguments, **variables):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CASE": ""} | variables
        command = [str(tmp_path / "scripts" / "lock.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)

    return run


def test_what_one_platform_has_alone_gets_a_marker(lock, tmp_path):
    done = lock()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requirements-cpu.txt").read_text().splitlines() == [
        "# made by uv",
        "a[extra]==1.0+cpu         # via c",
        "b==2 ; platform_machine == 'x86_64'  # via a",
    ]
    assert (tmp_path / "requirements.txt").exists()


@pytest.mark.parametrize(("case", "message"), [("for-aarch64", "for aarch64 alone: d==4"), ("by-version", "e==3.12")])
def test_platforms_or_pythons_that_differ_change_nothing(lock, tmp_path, case, message):
    done = lock(CASE=case)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert (tmp_path / "requirements-cpu.txt").read_text() == "the lock before\n"


def test_the_next_versions_are_listed_beside_the_lock(lock, tmp_path):
    (tmp_path / "requirements-cpu.txt").write_text("a[extra]==1.0+cpu\nb==1\n")
    done = lock("next", VERL="verl @ git+https://github.com/verl-project/verl")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line[0] in "<>"] == [
        "< b==1",
        "> b==2",
        "> transformers==5.19.0",
    ]
    wanted = (tmp_path / "build" / "next.in").read_text()
    assert "\nverl @ git+https://github.com/verl-project/verl\n" in wanted
    assert "==" not in wanted.replace("platform_machine ==", "")
    assert (tmp_path / "build" / "overrides.txt").read_text() == "transformers==5.19.0\n"
    assert lock("nxt").returncode == 2
