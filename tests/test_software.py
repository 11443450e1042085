"""What a run records of its packages and of the checkout that it ran from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from recipe import software


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit, taken for this repository; git takes no settings of the user's."""
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}.items():
        monkeypatch.setenv(name, value)
    repository = tmp_path / "checkout"
    monkeypatch.setattr(software, "REPOSITORY", repository)
    repository.mkdir()
    (repository / "file").write_text("1")
    (repository / ".gitignore").write_text("outputs/\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return repository


def head(checkout):
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout[:12]


def test_the_commit_and_whether_files_were_changed_since(checkout):
    assert software.software()["commit"] == head(checkout)
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "model").write_text("ignored")
    assert software.software()["commit"] == head(checkout)
    (checkout / "file").write_text("2")
    assert software.software()["commit"] == f"{head(checkout)}-dirty"


def test_a_new_file_is_a_change(checkout):
    """The file of a new arm changes what a run computes; settings of the user's do not hide it."""
    subprocess.run(["git", "config", "status.showUntrackedFiles", "no"], cwd=checkout, check=True)
    (checkout / "arm.yaml").write_text("1")
    assert software.software()["commit"] == f"{head(checkout)}-dirty"


def test_a_copy_within_another_checkout_has_no_commit(checkout, monkeypatch):
    copy = checkout / "copy"
    copy.mkdir()
    monkeypatch.setattr(software, "REPOSITORY", copy)
    assert software.software()["commit"] == "?"
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))  # as for a hook of the other checkout
    assert software.software()["commit"] == "?"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 3600", "printf '\\377'"])
def test_a_git_that_fails_or_hangs_is_no_error(checkout, tmp_path, monkeypatch, script):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{Path(shutil.which('sleep')).parent}")
    monkeypatch.setattr(software, "GIT_SECONDS", 0.5)
    assert software.software()["commit"] == "?"


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    (checkout / ".git").rename(checkout / "moved")
    assert software.software()["commit"] == "?"
    monkeypatch.setenv("PATH", "")
    assert software.software()["commit"] == "?"


def test_the_packages_that_are_there():
    versions = software.software()["versions"]
    assert versions["verl"] == "0.9.1"
    assert "?" not in versions.values()
