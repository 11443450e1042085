"""Servers that break the OpenAI protocol: what is asked again, what fails and is named, and that the rest finishes."""

import asyncio
import email.utils
import json
import re
import subprocess
import sys
import time

import anyio
import pytest

from common.command import Failure
from data_prep.rows import row, write_rows
from eval import answering, endpoint
from eval.answering import answer_all
from eval.endpoint import CLIENT_RETRIES, Endpoint, sample_of
from eval.engines import TRIES, ModelSettings
from eval.failures import Overflow
from eval.judge import Question, ask
from tests.chat_server import MODEL, RAW, Answer, ChatServer, choices, reply
from tests.conftest import ROOT

SENT = TRIES * (1 + CLIENT_RETRIES)  # of a request that the client repeats too
FAULTY = 3  # the seed of the request that is answered with a fault
GATEWAY = Answer(b"<html>\n<h1>Bad Gateway</h1></html>", 502, Content_Type="text/html")

# What is answered: how often it is sent in all, and what the failure says.
BODIES = {
    "no choices": (reply(choices=[]), "choices: List should have at least 1 item"),
    "null choices": (reply(choices=None), "choices: Input should be a valid array"),
    "missing choices": (reply(choices=...), "choices: Field required"),
    "choices as an object": (reply(choices={}), "choices: Input should be a valid array"),
    "a choice that is null": (reply(choices=[None]), "choices.0: "),
    "two choices": (reply(choices=choices() * 2), "at most 1 item"),
    "null message": (reply(choices=choices(message=None)), "choices.0.message: "),
    "missing message": (reply(choices=choices(message=...)), "choices.0.message: Field required"),
    "missing content": (reply(choices=choices(message={"role": "assistant"})), "message.content: Field required"),
    "content in parts": (
        reply(choices=choices(message={"content": [{"type": "text", "text": "4"}]})),
        "message.content: Input should be a valid string",
    ),
    "content as a number": (reply(choices=choices(message={"content": 4})), "message.content: "),
    "half a character": (reply(choices=choices(message={"content": "\ud83d"})), "Invalid JSON"),
    "missing finish_reason": (reply(choices=choices(finish_reason=...)), "finish_reason: Field required"),
    "null finish_reason": (reply(choices=choices(finish_reason=None)), "finish_reason: "),
    "finish_reason error": (reply(choices=choices(finish_reason="error")), "no finished sample: finish_reason error"),
    "finish_reason abort": (reply(choices=choices(finish_reason="abort")), "finish_reason abort"),
    "finish_reason content_filter": (reply(choices=choices(finish_reason="content_filter")), "content_filter"),
    "finish_reason tool_calls": (reply(choices=choices(finish_reason="tool_calls")), "tool_calls"),
    "another model": (reply(model="mm"), "model mm's, not m's; check --model"),
    "model as a number": (reply(model=1), "model: "),
    "an error with status 200": ({"error": {"message": "out of memory"}}, "choices: Field required.*out of memory"),
    "a list": ([reply()], "breaks the protocol: body: "),
    "null": (None, "breaks the protocol: body: "),
    "empty body": (b"", "Invalid JSON: EOF"),
    "half a document": (json.dumps(reply()).encode()[:60], "Invalid JSON: EOF"),
    "two documents": (json.dumps(reply()).encode() * 2, "Invalid JSON: trailing characters"),
    "not UTF-8": (b'{"choices": "\xff"}', "breaks the protocol"),
    "deep nesting": (b"[" * 100_000, "recursion limit"),
    "an event stream": (b"data: {}\n\ndata: [DONE]\n\n", "Invalid JSON"),
}
FAULTS = {name: (Answer(body), TRIES, says) for name, (body, says) in BODIES.items()} | {
    "an HTML page": (Answer(b"<html>\nhello</html>", Content_Type="text/html"), TRIES, "Invalid JSON.*<html> hello"),
    "status 204": (Answer(status=204), TRIES, "Invalid JSON"),
    "status 500": (Answer({"error": {"message": "boom"}}, 500), SENT, "status 500: .*boom"),
    "status 502 of a proxy": (GATEWAY, SENT, "status 502: <html> <h1>Bad Gateway"),
    "status 503": (Answer(status=503), SENT, "status 503"),
    "status 429": (Answer({"error": {"message": "slow down"}}, 429), SENT, "status 429: .*slow down"),
    "status 408": (Answer(status=408), SENT, "status 408"),
    "a wait of an hour": (Answer(status=429, Retry_After="3600"), TRIES, "status 429"),
    "status 400": (Answer({"error": {"message": "no seed"}}, 400), 1, "status 400: .*no seed"),
    "status 401": (Answer({"error": {"message": "who?"}}, 401), 1, "status 401: .*who.*; set OPENAI_API_KEY"),
    "status 403": (Answer(status=403), 1, "status 403: ; set OPENAI_API_KEY to a key that may use the model"),
    "status 404": (Answer({"detail": "Not Found"}, 404), 1, "status 404: .*; check --endpoint, .*--model"),
    "status 413": (Answer(status=413), 1, "status 413"),
    "status 422": (Answer({"detail": [{"msg": "no"}]}, 422), 1, "status 422: .*no"),
    "a long prompt": (Answer({"error": {"message": "the context length is 9"}}, 400), 1, "context length is 9"),
    "a redirect that forgets the request": (
        Answer(status=302, Location="/v1/models"),
        TRIES,
        "choices: Field required",
    ),
    "a redirect to nowhere": (Answer(status=307), 1, "status 307"),
    "dropped before an answer": (Answer(status=RAW), SENT, r"Connection error. \(Server disconnected"),
    "dropped in the body": (Answer(reply(), cut=9), SENT, r"Connection error. \(peer closed"),
    "dropped in the headers": (Answer(b"HTTP/1.1 200 OK\r\nContent-Le", RAW), SENT, "Connection error"),
    "no HTTP": (Answer(b"SSH-2.0-OpenSSH_9.7\r\n", RAW), SENT, "Connection error"),
    "no gzip": (Answer(reply(), Content_Encoding="gzip"), SENT, "Connection error"),
}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Wait for milliseconds where a run waits for seconds."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(answering, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(endpoint, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(endpoint, "RESTART_SECONDS", 5)


def ask_servers(*urls, count=6):
    """Have servers answer `count` requests; returns the seeds that were answered and the failures."""
    done = []
    records = [{"seed": seed, "prompt": "2 + 2"} for seed in range(count)]
    served = [Endpoint(url, MODEL, {"max_tokens": 8}) for url in urls]
    failed = asyncio.run(answer_all(records, served, lambda record, result: done.append((record["seed"], result))))
    return dict(sorted(done)), failed


def faulty(answer, most=10**9):
    return lambda seed, number: answer if seed == FAULTY and number <= most else None


@pytest.mark.parametrize("name", FAULTS)
def test_a_request_that_is_always_answered_with_a_fault_fails_and_the_others_finish(name):
    answer, sent, says = FAULTS[name]
    with ChatServer(faulty(answer)) as server:
        done, failed = ask_servers(server.url)
        assert list(done) == [0, 1, 2, 4, 5]
        assert server.requests == {0: 1, 1: 1, 2: 1, 3: sent, 4: 1, 5: 1}
    [(record, error)] = failed
    assert record["seed"] == FAULTY
    assert re.search(says, str(error)), str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    assert isinstance(error, Overflow) == (name == "a long prompt")


@pytest.mark.parametrize("name", [name for name, (_, sent, _) in FAULTS.items() if sent > 1])
def test_a_fault_that_passes_costs_nothing(name):
    answer, sent, _ = FAULTS[name]
    with ChatServer(faulty(answer, most=sent - 1)) as server:
        done, failed = ask_servers(server.url)
        assert (list(done), failed) == ([0, 1, 2, 3, 4, 5], [])
        assert server.requests[FAULTY] == sent
    assert done[FAULTY] == {"response": "4", "tokens": 2, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("body", "sample"),
    [
        (reply(usage=None), ("4", None, "stop")),
        (reply(usage=...), ("4", None, "stop")),
        (reply(usage="many"), ("4", None, "stop")),
        (reply(usage={}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": None}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": -1}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": "2"}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": 2.5}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": True}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": 0}), ("4", 0, "stop")),
        (reply(choices=choices(message={"content": None}, finish_reason="length")), ("", 2, "length")),
        (
            reply(choices=choices(message={"content": None, "reasoning_content": "so"}, finish_reason="length")),
            ("", 2, "length"),
        ),
        (reply(choices=choices(message={"content": ""})), ("", 2, "stop")),
        (reply(choices=choices(message={"content": "\u2028é\x00"})), ("\u2028é\x00", 2, "stop")),
        (reply(model=..., id=..., created=..., object=...), ("4", 2, "stop")),
        (reply(model="m-2026-01-31"), ("4", 2, "stop")),
        (reply(choices=choices(index=7, logprobs={}, stop_reason=5), extra=1), ("4", 2, "stop")),
    ],
)
def test_what_the_protocol_leaves_open_is_a_sample(body, sample):
    assert tuple(sample_of(json.dumps(body).encode(), {MODEL}).values()) == sample


@pytest.mark.parametrize("content_type", ["text/plain", "text/html", "application/x-ndjson", ""])
def test_a_wrong_content_type_of_a_right_reply_does_not_matter(content_type):
    with ChatServer(lambda seed, number: Answer(reply(), Content_Type=content_type)) as server:
        assert ask_servers(server.url)[1] == []


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("120", 120, 120),
        ("DATE", 50, 60),
        ("-5", 0, 0.001),
        ("soon", 0, 0.001),
        ("nan", 0, 0.001),
    ],
)
def test_the_client_waits_as_retry_after_states(header, low, high, monkeypatch):
    slept, sleep = [], anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda seconds: (slept.append(seconds), sleep(0))[1])
    if header == "DATE":
        header = email.utils.formatdate(time.time() + 60, usegmt=True)
    with ChatServer(faulty(Answer(status=429, Retry_After=header), most=1)) as server:
        assert ask_servers(server.url)[1] == []
    [seconds] = slept
    assert low <= seconds <= high


def test_a_server_that_does_not_answer_in_time_is_asked_again(monkeypatch):
    monkeypatch.setattr(endpoint, "ENDPOINT_SECONDS", 0.2)
    sleeping = Answer(reply())
    with ChatServer(lambda seed, number: time.sleep(2) if seed == FAULTY and number < TRIES else sleeping) as server:
        done, failed = ask_servers(server.url)
        assert (len(done), failed, server.requests[FAULTY]) == (6, [], TRIES)
    with ChatServer(lambda seed, number: time.sleep(2) if seed == FAULTY else None) as server:
        _, [(record, error)] = ask_servers(server.url)
        assert record["seed"] == FAULTY
        assert "no answer in 0.2 s" in str(error)


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


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (Answer(status=401), "status 401: ; set OPENAI_API_KEY to the server's key"),
        (Answer({"error": {"message": "no\nway"}}, 403), "status 403: .*; set OPENAI_API_KEY"),
        (Answer(b"Not Found", 404), "status 404: Not Found; check --endpoint, which mostly ends with /v1"),
        (Answer(status=500), "does not answer as an OpenAI-compatible server: status 500"),
        (Answer(b"<html>"), "breaks the protocol: body: Invalid JSON.*<html>"),
        (Answer({"data": None}), "data: Input should be a valid array"),
        (Answer({"data": [{}]}), "data.0.id: Field required"),
        (Answer(status=RAW), "Connection error"),
        (Answer(status=302, Location="/v1/models"), "redirect"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "has no model m; it has a, b"),
        ({"data": []}, "has no model m; it has none"),
    ],
)
def test_a_server_that_is_wrong_at_the_start_is_one_line_with_the_fix(models, says):
    with ChatServer() as server:
        server.models = models
        with pytest.raises(ValueError, match=rf"^{server.url}: .*{says}") as caught:
            asyncio.run(Endpoint(server.url, MODEL, {}).describe())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1/v1", "http://", "http://[::1", "ftp://127.0.0.1/v1", "http://127.0.0.1:x"]
)
def test_a_url_that_is_none_is_one_line(url):
    with pytest.raises(ValueError, match=r".") as caught:
        asyncio.run(Endpoint(url, MODEL, {}).describe())
    assert url in str(caught.value)


def test_names_of_the_same_model_are_one():
    with ChatServer(lambda seed, number: Answer(reply(model="first"))) as server:
        cards = [{"id": "first", "root": "/model"}, {"id": MODEL, "root": "/model"}, {"id": "other", "root": "/o"}]
        server.models = {"data": cards}
        one = Endpoint(server.url, MODEL, {})
        asyncio.run(one.describe())
        assert one.names == {"first", MODEL}


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_server_that_refuses_everything_ends_it_at_once(status):
    with ChatServer(lambda seed, number: Answer(status=status)) as server:
        with pytest.raises(ValueError, match=f"status {status}"):
            ask_servers(server.url, count=1000)
        assert max(server.requests.values()) == 1


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
