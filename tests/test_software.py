"""What a run records of its packages and of the checkout that it ran from."""

import subprocess

import pytest

from recipe import software


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit, taken for this repository; git takes no settings of the user's."""
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(software, "REPOSITORY", tmp_path)
    (tmp_path / "file").write_text("1")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-q", "-m", "one"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_and_whether_files_were_changed_since(checkout, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert software.software()["commit"] == head.stdout[:12]
    (checkout / "file").write_text("2")
    assert software.software()["commit"] == f"{head.stdout[:12]}-dirty"
    (checkout / ".git").rename(checkout / "moved")
    assert software.software()["commit"] == "?"
    monkeypatch.setenv("PATH", "")
    assert software.software()["commit"] == "?"


def test_the_packages_that_are_there():
    versions = software.software()["versions"]
    assert versions["verl"] == "0.9.1"
    assert "?" not in versions.values()
