"""Uploads to a local server that speaks the hub's protocol: what arrives, what is refused, what is sent again."""

import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants

from common.command import Failure
from recipe import export
from recipe.card import CARD, RUN_KEY
from recipe.push import claim, create, upload
from tests.conftest import HANGING_SECONDS, ROOT
from tests.hub import ORGANISATION, TOKEN, Models, local_hub
from tests.test_checkpoints import checkpoint
from tests.test_report import make_run

REPOSITORY = f"{ORGANISATION}/model"
OF_THIS_RUN = f"---\nlicense: mit\n{RUN_KEY}: this-run\n---\n\nA card\n".encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server without repositories, and this process as a user who may write there."""
    models = Models()
    with local_hub({}, models) as environment:
        for name in ("NO_PROXY", "HF_ENDPOINT"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants._HF_DEFAULT_ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", environment["HF_ENDPOINT"] + template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.close_session()
        yield models
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    """A small exported model with a card."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / CARD).write_bytes(OF_THIS_RUN)
    return tmp_path / "model"


def push(folder, repository=REPOSITORY, private=False, message="Step 3 of run"):
    newest = claim(repository, folder / CARD, private) or create(repository, private)
    return upload(folder, repository, message, newest)


def command(run, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "recipe.export", str(run), *arguments],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_DISABLE_XET": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )


def test_from_a_folder_of_a_run_to_a_model_on_the_hub(hub, tmp_path):
    run = make_run(tmp_path / "run")
    checkpoint(run / "checkpoints", 3)
    exported = run / "export" / "step_3"
    exported.mkdir(parents=True)
    names = {"config.json", "model.safetensors"}
    for name in (*names, ".hidden"):
        (exported / name).write_text(name)
    (run / "train.log").write_text("not for the hub")
    dry = command(run, "--dry-run", "--push", REPOSITORY, HF_TOKEN="")
    assert (dry.returncode, dry.stdout) == (0, f"{run}/export/card_step_3/{CARD}\n"), dry.stderr
    assert not hub.requests
    refused = command(run, "--push", "nobody/model")
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert {path.name for path in exported.iterdir()} == names | {".hidden"}
    done = command(run, "--step", "3", "--push", REPOSITORY, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    initial, commit = hub.repositories[REPOSITORY]
    assert done.stdout.splitlines()[-1] == f"{hub.address}/{REPOSITORY}/commit/{commit.oid}"
    assert commit.message == "Step 3 of run"
    card = (run / "export" / "card_step_3" / CARD).read_bytes()
    assert commit.files[CARD] == card
    assert commit.files.keys() == names | {CARD, "curves.png", "details.png"} | initial.files.keys()
    assert commit.files["curves.png"].startswith(b"\x89PNG")
    assert b"](curves.png)" in card


def test_another_step_is_another_commit_and_the_same_again_is_none(hub, folder):
    push(folder, private=True)
    push(folder)
    (folder / "model.safetensors").write_bytes(b"other weights")
    push(folder, message="Step 4 of run")
    commits = hub.repositories[REPOSITORY]
    assert [commit.message for commit in commits[1:]] == ["Step 3 of run", "Step 4 of run"]
    assert commits[-1].files["model.safetensors"] == b"other weights"
    assert hub.private == {REPOSITORY}


def test_nothing_is_made_before_the_upload(hub, folder):
    assert claim(REPOSITORY, folder / CARD, private=True) is None
    assert not hub.repositories


@pytest.mark.parametrize("files", [{".gitattributes": b""}, {CARD: OF_THIS_RUN}])
def test_private_does_not_publish_into_a_public_repository(hub, folder, files):
    hub.add(REPOSITORY, "theirs", files)
    with pytest.raises(ValueError, match=f"^{REPOSITORY}: is public; make it private .*, or leave out --private$"):
        push(folder, private=True)
    assert [commit.message for commit in hub.repositories[REPOSITORY]] == ["theirs"]
    hub.private.add(REPOSITORY)
    push(folder, private=True)
    assert hub.repositories[REPOSITORY][-1].message == "Step 3 of run"


@pytest.mark.parametrize("name", ["", "model", "lab/", "/model", "a/b/c", "lab/-model-", "lab/a--b", "a/é", "a/b.git"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--private"]])
def test_a_name_that_is_none_is_wrong_use(tmp_path, monkeypatch, capsys, name, more):
    monkeypatch.setattr(sys, "argv", ["recipe.export", str(tmp_path), "--push", name, *more])
    with pytest.raises(SystemExit) as ended:
        export.main()
    assert ended.value.code == 2
    assert f"argument --push: {name!r}: give ORG/NAME" in capsys.readouterr().err


def test_private_alone_is_wrong_use(tmp_path, monkeypatch):
    for more in ([], ["--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["recipe.export", str(tmp_path), "--private", *more])
        with pytest.raises(ValueError, match=r"^--private is for --push ORG/NAME; give both, or neither$"):
            export.main()


@pytest.mark.parametrize(
    ("files", "owner"),
    [
        ({CARD: f"---\n{RUN_KEY}: other-run\n---\n".encode()}, r"the model of another run \(other-run\)"),
        ({CARD: b"---\nlicense: mit\n---\n", "model.safetensors": b"1"}, "files that are no run's"),
        ({CARD: b"---\nlicense: [mit\n---\n"}, "files that are no run's"),
        ({CARD: b"no head"}, "files that are no run's"),
        ({"model.safetensors": b"1"}, "files that are no run's"),
    ],
)
def test_what_is_not_of_this_run_is_left_alone(hub, folder, files, owner):
    hub.add(REPOSITORY, "theirs", files)
    with pytest.raises(ValueError, match=f"^{REPOSITORY}: has {owner}, and this run is this-run; push to another .*$"):
        push(folder)
    assert [commit.message for commit in hub.repositories[REPOSITORY]] == ["theirs"]
    assert not hub.objects


def test_a_busy_server_is_asked_again(hub, folder):
    hub.failures["/lfs/"] = 1
    push(folder)
    assert hub.repositories[REPOSITORY][-1].files["model.safetensors"] == b"weights"


def test_an_interrupted_upload_continues_without_sending_again(hub, folder):
    hub.failures["/commit/"] = 1
    with pytest.raises(Failure, match=r"^lab/model: not uploaded: busy; nothing is lost, the same command continues$"):
        push(folder)
    assert [commit.message for commit in hub.repositories[REPOSITORY]] == ["initial commit"]
    push(folder)
    assert hub.repositories[REPOSITORY][-1].files["model.safetensors"] == b"weights"
    assert [method for method, _ in hub.requests].count("PUT") == 1


def test_a_commit_in_between_is_not_overwritten(hub, folder):
    push(folder)
    parent = claim(REPOSITORY, folder / CARD, private=False)
    hub.add(REPOSITORY, "theirs", {CARD: b"theirs"})
    with pytest.raises(Failure, match="not uploaded: A commit has happened since"):
        upload(folder, REPOSITORY, "ours", parent)
    assert hub.repositories[REPOSITORY][-1].message == "theirs"


def test_wrong_use_is_one_line(hub, folder, monkeypatch):
    refused = "the hub refuses: .*; check the name, and that the token .* may write there$"
    with pytest.raises(
        ValueError, match="^nobody/model: " + refused.replace(".*", "You don't have the rights to .*", 1)
    ):
        push(folder, "nobody/model")
    with pytest.raises(ValueError, match=r"^Repo id must .*'lab/-model-'"):
        push(folder, "lab/-model-")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ValueError, match="^lab/model: " + refused.replace(".*", "Invalid username or password", 1)):
        push(folder)
    assert not hub.repositories
    for token in ("hf_é", "hf_a b"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ValueError, match=r"^the token for the Hugging Face hub has blanks or .*, or set HF_TOKEN$"):
            push(folder)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "absent"))
    with pytest.raises(ValueError, match=r"^no token for the Hugging Face hub; run hf auth login, or set HF_TOKEN$"):
        push(folder)


def test_without_a_network_the_same_command_is_to_be_run_later(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Failure, match=r"^lab/model: not uploaded: .*refused.*; nothing is lost, the same command"):
        push(folder)
