"""The alerts' templates of docs/monitoring.md, and W&B's own alerts: against servers on this machine."""

import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.alerts import TEXTS, folder_for_alerts, make_alerts, notes, settle
from tests.conftest import ENDING_SECONDS, ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with folder_for_alerts(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture
def log(folder):
    with open(folder / "train.log", "a") as file:
        yield file


class Server:
    """Answers each POST with what `reply` makes of its body."""

    def __init__(self, reply):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = reply(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def templates() -> dict[str, str]:
    """Read the commands of docs/monitoring.md, by their program or service."""
    ntfy, slack, mail = re.findall(r"--alert '([^']*)'", (ROOT / "docs" / "monitoring.md").read_text())
    return {"ntfy": ntfy, "slack": slack, "mail": mail}


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("text", TEXTS)
def test_the_templates_for_curl_post_any_text(text, templates, folder, log, monkeypatch, tmp_path):
    bodies = []
    with Server(lambda body: bodies.append(body) or b"ok") as server:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".slack-webhook").write_text(f'url = "{server.url}"\n')
        for command in (templates["ntfy"].replace("https://ntfy.sh", server.url), templates["slack"]):
            alerts = make_alerts(command, folder, log)
            alerts.send(text)
            settle(alerts)
    assert bodies[0].decode() == f"run: {text}\n"
    assert json.loads(bodies[1]) == {"text": f"run: {text}"}
    assert notes(log) == []


def test_the_template_for_mail_passes_subject_receiver_and_body(templates, folder, log, monkeypatch, tmp_path):
    (tmp_path / "mail").write_text(f'#!/bin/sh\nprintf "%s|" "$@" >{folder}/arguments\ncat >{folder}/body\n')
    (tmp_path / "mail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    alerts = make_alerts(templates["mail"], folder, log)
    alerts.send(TEXTS[2])
    settle(alerts)
    assert (folder / "arguments").read_text() == "-s|JustRL: run|me@example.org|"
    assert (folder / "body").read_text() == f"run: {TEXTS[2]}\n"


class Wandb:
    """Stands for W&B's GraphQL endpoint; `answer` is what it says to an alert."""

    def __init__(self):
        self.alerts: list[dict] = []
        self.requests = 0
        self.answer = {"data": {"notifyScriptableRunAlert": {"success": True}}}

    def reply(self, body: bytes) -> bytes:
        self.requests += 1
        if b"notifyScriptableRunAlert" in body:
            self.alerts.append(json.loads(body)["variables"])
            return json.dumps(self.answer).encode()
        viewer = {"id": "1", "entity": "somebody", "username": "u", "flags": "{}", "teams": {"edges": []}}
        return json.dumps({"data": {"viewer": viewer}}).encode()


@pytest.fixture
def wandb(monkeypatch):
    wandb = Wandb()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with Server(lambda body: wandb.reply(body)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield wandb


def test_wandb_gets_the_alert_for_the_runs_id_beside_the_command(folder, log, wandb, monkeypatch):
    alerts = make_alerts(f"touch {folder}/done", folder, log, ["console", "wandb"])
    text = TEXTS[2] + " é" * 40
    alerts.send(text)
    settle(alerts)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    alerts.send("second")
    settle(alerts)
    common = {"projectName": "justrl", "runName": (folder / "wandb.id").read_text(), "waitDuration": 0}
    first = {"entityName": "somebody", "title": f"run: {text}"[:63], "text": f"run: {text}"}
    second = {"entityName": "team", "title": "run: second", "text": "run: second"}
    assert wandb.alerts == [common | first, common | second]
    assert (folder / "done").exists()
    assert notes(log) == []
    assert {path.name for path in folder.iterdir()} == {"done", "train.log", "wandb.id"}


@pytest.mark.parametrize("variable", ["JUSTRL_WANDB", "WANDB_MODE"])
def test_offline_nothing_is_sent_and_noted(variable, folder, log, wandb, monkeypatch):
    monkeypatch.setenv(variable, "offline")
    alerts = make_alerts(None, folder, log, ["wandb"])
    alerts.send("x")
    settle(alerts)
    assert len(alerts.outstanding) == 1
    assert (wandb.requests, notes(log)) == (0, [])


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ({"errors": [{"message": "run not found"}]}, "run not found"),
        ({"data": {"notifyScriptableRunAlert": {"success": False}}}, "W&B did not take the alert"),
        ({"data": {"notifyScriptableRunAlert": None}}, "W&B did not take the alert"),
        ({"data": None}, "W&B did not take the alert"),
        ([], ""),
    ],
)
def test_what_wandb_refuses_is_one_note(answer, note, folder, log, wandb):
    wandb.answer = answer
    alerts = make_alerts(None, folder, log, ["wandb"])
    alerts.send("x")
    settle(alerts)
    (line,) = notes(log)
    assert line.startswith("failed: exit status 1: recipe.monitor.wandb_alert: ")
    assert note in line


def test_without_an_account_or_with_a_damaged_id_it_is_one_note(folder, log, wandb, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    alerts = make_alerts(f"touch {folder}/done", folder, log, ["wandb"])
    (folder / "wandb.id").write_text("a b")
    alerts.send("x")
    settle(alerts)
    assert "wandb.id: damaged; write the run's id on W&B" in notes(log)[0]
    assert (folder / "done").exists()
    (folder / "wandb.id").write_text("abcd1234")
    alerts.send("x")
    settle(alerts)
    assert "No API key configured" in notes(log)[1]
    assert len(notes(log)) == 2


def test_a_wandb_server_that_hangs_is_given_up_and_its_service_ends(folder, log, wandb, monkeypatch):
    asked, released = threading.Event(), threading.Event()

    def hang(body):
        asked.set()
        released.wait(ENDING_SECONDS)
        return b""

    wandb.reply = hang
    alerts = make_alerts(None, folder, log, ["wandb"])
    alerts.send("x")
    assert asked.wait(ENDING_SECONDS)
    alerts.outstanding[0].deadline = 0.0
    settle(alerts)
    released.set()
    assert notes(log)[0].startswith("failed: took too long and was killed")
