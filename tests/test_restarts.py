"""Servers that restart or stay away, several of them, and the commands that ask them."""

import json
import subprocess
import sys

import pytest

from common.command import Failure
from data_prep.rows import row, write_rows
from eval import endpoint
from eval.endpoint import Endpoint
from eval.engines import ModelSettings
from eval.judge import Question, ask
from tests.chat_server import MODEL, RAW, Answer, ChatServer, choices, reply
from tests.conftest import ROOT
from tests.server_faults import FAULTS, GATEWAY, ask_servers

pytestmark = pytest.mark.usefixtures("impatient")


def restarting(server, monkeypatch, looks, down, up):
    """Have `down` end the server at the fifth request, and `up` bring it back after so many looks whether it is."""
    describe, seen = Endpoint.describe, []

    def fault(seed, number):
        if seed == 4 and number == 1:
            down()
            return Answer(status=RAW)
        return None

    async def look(self):
        seen.append(1)
        if len(seen) == looks:
            up()
        return await describe(self)

    server.fault = fault
    monkeypatch.setattr(Endpoint, "describe", look)


@pytest.mark.parametrize("kind", ["refuses connections", "status 502", "an HTML page", "another model"])
def test_a_server_that_restarts_is_waited_for(kind, monkeypatch):
    with ChatServer() as server:
        listed = server.models
        states = {
            "status 502": GATEWAY,
            "an HTML page": Answer(b"<html>"),
            "another model": {"data": [{"id": "other"}]},
        }

        def down():
            if kind in states:
                server.models = states[kind]
                server.fault = lambda seed, number: GATEWAY
            else:
                server.server.socket.close()

        def up():
            server.models, server.fault = listed, lambda seed, number: None
            if kind not in states:
                server.server = None
                server.start()

        restarting(server, monkeypatch, 5, down, up)
        done, failed = ask_servers(server.url, count=300)
        assert (len(done), failed) == (300, [])


def test_a_server_that_stays_away_is_lost_and_another_takes_its_requests(monkeypatch, capfd):
    monkeypatch.setattr(endpoint, "RESTART_SECONDS", 0.3)
    with ChatServer() as well, ChatServer() as ill:
        ill.stop()
        done, failed = ask_servers(ill.url, well.url, count=600)
        assert (len(done), failed) == (600, [])
        assert set(well.requests.values()) == {1}
        with pytest.raises(
            RuntimeError, match=r"every engine died: no answer for 0.3 s: http://.*: does not answer as"
        ):
            ask_servers(ill.url)
    assert "try 1 of 3 failed" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["no choices", "status 500", "dropped before an answer", "another model"])
def test_a_request_that_failed_at_one_server_goes_to_another(name):
    with ChatServer() as well, ChatServer(lambda seed, number: FAULTS[name][0]) as ill:
        done, failed = ask_servers(ill.url, well.url, count=100)
        assert (len(done), failed) == (100, [])
        assert ill.requests, "both were asked"


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "bench").mkdir()
    rows = [row("sums", f"{number} + 1", str(number + 1), number, "test") for number in range(9)]
    write_rows(tmp_path / "bench" / "sums.parquet", rows, {})
    return tmp_path / "bench"


IMPATIENT = """
import runpy
from eval import endpoint
endpoint.CLIENT_RETRIES, endpoint.RESTART_SECONDS = 1, 0.3
runpy.run_module("eval.generate", run_name="__main__", alter_sys=True)
"""


def command(server, bench, output, *how):
    arguments = ["--model", MODEL, "--bench", bench, "--output", output, "--samples", 2, "--max-tokens", 8]
    return subprocess.run(
        [sys.executable, *(how or ("-m", "eval.generate")), *map(str, arguments), "--endpoint", server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_keeps_the_other_samples_names_the_failed_and_goes_on(bench, tmp_path):
    output = tmp_path / "output"
    faults = {}  # seeds come in the order of the requests

    def fault(seed, number):
        kinds = [FAULTS[name][0] for name in ("no choices", "an HTML page", "status 400")]
        answer = faults.setdefault(seed, kinds[len(faults)] if len(faults) < len(kinds) else GATEWAY)
        return answer if answer is not GATEWAY or number == 1 else None

    with ChatServer(fault) as server:
        done = command(server, bench, output)
        assert (done.returncode, done.stderr) == (1, "")
        assert "  3 of 18 samples failed; the same command tries them again\n" in done.stdout
        assert done.stdout.count("  sums, problem ") == 3
        assert "status 400" in done.stdout
        samples = (output / "sums.samples.jsonl").read_text().splitlines()
        assert len(samples) == 15
        assert "try 3 of 3 failed" in (output / "generate.log").read_text()

        server.fault = lambda seed, number: None
        server.requests.clear()
        assert command(server, bench, output).returncode == 0
        assert server.requests.total() == 3
    found = [json.loads(line) for line in (output / "sums.samples.jsonl").read_text().splitlines()]
    assert len({(record["problem_id"], record["sample"]) for record in found}) == len(found) == 18


def test_when_all_servers_are_lost_the_command_ends_with_what_it_has_and_goes_on(bench, tmp_path):
    output = tmp_path / "output"
    with ChatServer() as server:

        def fault(seed, number):
            if len(server.requests) > 12:
                server.models = GATEWAY
            return GATEWAY if server.models is GATEWAY else None

        listed, server.fault = server.models, fault
        done = command(server, bench, output, "-c", IMPATIENT)
        assert done.returncode == 1
        assert "every engine died: no answer for 0.3 s: http" in done.stderr
        assert "the same command continues\n  see " in done.stderr
        kept = (output / "sums.samples.jsonl").read_text().splitlines()
        assert 0 < len(kept) < 18
        server.models, server.fault = listed, lambda seed, number: None
        server.requests.clear()
        assert command(server, bench, output).returncode == 0
        assert server.requests.total() == 18 - len(kept)


def test_a_judges_questions_fail_in_the_same_way(tmp_path):
    questions = [Question(f"What is\n{number} + 1?", "2", "3") for number in range(4)]
    verdict = Answer(reply(choices=choices(message={"content": "A"})))
    with ChatServer() as server:
        server.fault = lambda seed, number: FAULTS["no choices"][0] if seed == 0 and number <= 2 else verdict
        assert set(ask(questions[:2], tmp_path, ModelSettings(MODEL, endpoint=[server.url])).values()) == {"A"}
        server.fault = lambda seed, number: FAULTS["no choices"][0]
        with pytest.raises(Failure, match=r"^2 of 2 questions failed, the first on 'What is \d \+ 1\?': .*ask"):
            ask(questions, tmp_path, ModelSettings(MODEL, endpoint=[server.url]))
        server.fault = lambda seed, number: FAULTS["a long prompt"][0]
        found = ask(questions, tmp_path, ModelSettings(MODEL, endpoint=[server.url]))
    assert sorted(found.values()) == ["A", "A", "overflow", "overflow"]
